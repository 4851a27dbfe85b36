// Package nft is what pods need of the node's packet filter (nftables):
// masquerading of what leaves the cluster (masquerade.go) and a check that pods
// send from their own addresses only (source.go).
//
// There is one table of ours in each of two families, with a fixed handful of
// rules that look pods up in sets. A pod is elements of these sets and nothing
// else, so that a pod more or less costs the same whatever their number:
//
//	a pod's packet ──rule──▶ set: address or port ──verdict──▶ chain of its network
//
// Every element carries its owner as a comment, by which DEL and GC find it.
// Nothing else is kept, and other tables are not looked at. Tables, sets and
// chains are made when the first pod needs them, through google/nftables;
// elements are added and deleted through netlink itself (see element.go).
package nft

import (
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cni/mode"
)

// ErrUnsupported says that the kernel has no nftables, or not all of it that is
// needed.
var ErrUnsupported = errors.New("nftables is not supported by this kernel")

// Conn is a connection to the packet filter of one network namespace.
type Conn struct {
	socket *netlink.Conn
}

// Open connects to the namespace of the calling thread.
//
// Close may wait for about ten milliseconds after elements were deleted: the
// kernel waits for all processors before it frees them, and a socket for that
// (nft_rcv_nl_event). It is best called after everything else.
func Open() (*Conn, error) {
	socket, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, ErrUnsupported
	}
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return &Conn{socket: socket}, nil
}

// Close gives the socket back.
func (c *Conn) Close() { _ = c.socket.Close() }

// tableName is of both tables.
const tableName = "fairlead-cni"

// put adds elements of one owner. If what they need is not there it is made, by
// construct. Elements of the same keys that somebody else left are replaced: who
// gets an address now is its only owner. It reports whether anything was made.
func (c *Conn) put(elements []element, construct construct) (made bool, err error) {
	err = c.commit(adding(elements))
	for try := 0; errors.Is(err, unix.ENOENT) && try < attempts; try++ { // Collect may take it away before it is used
		if err := construct.build(); err != nil {
			return made, err
		}
		made, err = true, c.commit(adding(elements))
	}
	if errors.Is(err, unix.EEXIST) {
		err = c.replace(elements)
	}
	return made, err
}

// construct describes a table with its sets, chains and rules.
type construct func(*draft) error

// build makes what is described in one transaction.
func (f construct) build() error {
	d, err := newDraft()
	if err != nil {
		return err
	}
	if err := f(d); err != nil {
		return err
	}
	err = d.conn.Flush()
	if errors.Is(err, unix.ENOENT) { // a kind of chain or expression that the kernel lacks
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	if err != nil {
		return fmt.Errorf("make nftables table %s: %w", tableName, err)
	}
	return nil
}

func (c *Conn) replace(elements []element) error {
	stale, err := c.find(setsOf(elements), func(e element) bool { return e.in(elements) })
	if err != nil {
		return err
	}
	return c.commit(append(deleting(stale), adding(elements)...))
}

// remove deletes the elements of some sets whose comments say so. Sets that were
// never made have none.
func (c *Conn) remove(sets []set, gone func(comment string) bool) error {
	var failed error
	for range attempts {
		found, err := c.find(sets, func(e element) bool { return gone(e.comment) })
		if err != nil || len(found) == 0 {
			return err
		}
		failed = c.commit(deleting(found))
		if !errors.Is(failed, unix.ENOENT) { // else somebody deleted one of them in between
			break
		}
	}
	return failed
}

// find returns the elements of some sets that are wanted, each once.
func (c *Conn) find(sets []set, wanted func(element) bool) ([]element, error) {
	var found []element
	for _, s := range sets {
		present, err := c.list(s)
		if err != nil {
			return nil, err
		}
		for _, e := range present {
			if wanted(e) && !e.in(found) {
				found = append(found, e)
			}
		}
	}
	return found, nil
}

// Collect deletes what belongs to pods of a network that are not to be kept.
func (c *Conn) Collect(network string, keep []mode.Owner) error {
	kept := make(map[string]bool, len(keep))
	for _, o := range keep {
		kept[o.String()] = true
	}
	stale := func(comment string) bool { return mode.InNetwork(comment, network) && !kept[comment] }
	if err := c.remove(masqueradeSets, stale); err != nil {
		return errors.Join(err, c.remove(sourceSets, stale))
	}
	return errors.Join(collectChains(network), c.remove(sourceSets, stale))
}
