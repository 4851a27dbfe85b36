// Package ipam gives addresses out and takes them back: one address of each set
// of ranges to an owner, who is an interface of a container.
//
// It is pure: standard library only, no clock, no I/O. What it knows lives in an
// ordered map of byte strings (Tx, the keys are in schema.go), which package
// ipam/disk keeps in a file; configuration and requests come from
// cni/hostlocal, and the addresses go back there.
//
// Two promises. No address has two owners. And a freed address is given again as
// late as possible within a day, so that neither a peer's neighbour cache nor a
// flow's conntrack entry meets a new pod under an old address: for that a range
// gives its never-given addresses first and the longest freed ones after them.
// Both cost a few look-ups, whatever is held.
//
// So an address that is cooling, freed less than the configured cooldown ago, is
// given only when nothing else is left. Two owners are excepted: who requests the
// address by name, and the pod that it was freed by and sticks to (sticky.go).
package ipam

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Owner is what CNI calls an attachment to one network.
type Owner struct {
	ContainerID, IfName string
}

func (o Owner) String() string { return "container " + o.ContainerID + " interface " + o.IfName }

// Lease is what an owner holds, and what is known of the owner.
type Lease struct {
	Owner `json:"-"` // it is the key
	// Addrs is one address of each set that the configuration had, in its
	// order. It is empty when the owner holds nothing.
	Addrs []netip.Addr `json:"addrs"`
	Netns string       `json:"netns,omitempty"` // path of the network namespace
	Pod   string       `json:"pod,omitempty"`   // namespace/name, "" outside Kubernetes
	Boot  string       `json:"boot"`            // boot of the kernel in which the lease began
	Since time.Time    `json:"since"`
	// Sticky says that the pod, by its name, is to get Addrs again.
	Sticky bool `json:"sticky,omitempty"`
}

// Request asks for one address of each set.
type Request struct {
	Owner      Owner
	Netns, Pod string // as in Lease
	// Wanted are the addresses to give; a set that contains none of them gives
	// one of its choice.
	Wanted []netip.Addr
	Sticky bool // prefer what the pod of this name had before
	// Cooldown is how long an address that was freed is better not given.
	Cooldown time.Duration
	Boot     string // the running boot
	Now      time.Time
}

// Address is one address of a lease as an interface needs it.
type Address struct {
	Prefix  netip.Prefix // the address, with the length of its subnet
	Gateway netip.Addr
}

// Allocate gives the owner one address of each set and returns them in the
// order of the sets. It must follow Reclaim in the same transaction. On an error
// the transaction may hold half of the change and must be rolled back.
//
// The sets' ranges are valid and do not overlap. The errors that are the
// caller's to tell apart are *DuplicateError, *RequestError, *HeldError and
// *ExhaustedError.
func Allocate(tx Tx, sets []Set, req Request) ([]Address, error) {
	lease, err := Held(tx, req.Owner)
	if err != nil {
		return nil, err
	}
	if len(lease.Addrs) > 0 {
		return nil, &DuplicateError{Owner: req.Owner, Addrs: lease.Addrs}
	}
	wanted, err := place(sets, req.Wanted)
	if err != nil {
		return nil, err
	}
	b, err := openBook(tx)
	if err != nil {
		return nil, err
	}
	stocks, err := b.adopt(sets, req.Cooldown, req.Now)
	if err != nil {
		return nil, err
	}
	if req.Sticky {
		if err := recall(tx, req, stocks, wanted); err != nil {
			return nil, err
		}
	}
	lease = Lease{Owner: req.Owner, Netns: req.Netns, Pod: req.Pod, Boot: req.Boot, Since: req.Now, Sticky: req.Sticky}
	given := make([]Address, len(sets))
	for i, set := range sets {
		addr, err := b.give(stocks[i], wanted[i], req)
		if err != nil {
			return nil, err
		}
		if !addr.IsValid() {
			return nil, exhausted(tx, set)
		}
		lease.Addrs = append(lease.Addrs, addr)
		given[i] = set.address(addr)
	}
	if err := putLease(tx, lease); err != nil {
		return nil, err
	}
	return given, b.save()
}

// exhausted is the error of a set of which nothing is left.
func exhausted(tx Tx, set Set) error {
	e := &ExhaustedError{Set: set}
	if set[0].Pool == "" {
		return e
	}
	state, err := StateOf(tx, set[0].Pool)
	if err != nil {
		return err
	}
	e.Note = state.Note
	return e
}

// Release takes back whatever the owner holds; to hold nothing is no error. It
// needs no configuration: the stored ranges say where an address belongs. On an
// error the transaction must be rolled back.
func Release(tx Tx, owner Owner, now time.Time) error {
	lease, err := Held(tx, owner)
	if err != nil || len(lease.Addrs) == 0 {
		return err
	}
	b, err := openBook(tx)
	if err != nil {
		return err
	}
	freed := now.UnixNano()
	for _, addr := range lease.Addrs {
		position, err := b.free(addr, now)
		if err != nil {
			return err
		}
		freed = max(freed, position)
	}
	if lease.Sticky && lease.Pod != "" {
		if err := remember(tx, lease, freed); err != nil {
			return err
		}
	}
	if err := tx.Delete(leaseKey(owner)); err != nil {
		return err
	}
	return b.save()
}

// Reclaim frees what was given in an earlier boot than the one named: no pod
// outlives the kernel that ran it. A store is of one boot, the one it last saw,
// so this is one comparison when there is nothing to do and an empty store
// otherwise. Every transaction that writes begins with it.
func Reclaim(tx Tx, boot string) error {
	current, err := isOfBoot(tx, boot)
	if err != nil || current {
		return err
	}
	for _, prefix := range ofBoot {
		if err := deleteAll(tx, []byte{prefix}); err != nil {
			return err
		}
	}
	return tx.Put(bootKey, []byte(boot))
}

// Held returns what the owner holds. A lease of an earlier boot is void, and
// there is one only until the next transaction that writes (Reclaim).
func Held(tx Tx, owner Owner) (Lease, error) {
	text, err := get(tx, leaseKey(owner))
	if err != nil || text == nil {
		return Lease{}, err
	}
	return parseLease(owner, text)
}

func parseLease(owner Owner, text []byte) (Lease, error) {
	var lease Lease
	if err := json.Unmarshal(text, &lease); err != nil {
		return Lease{}, fmt.Errorf("decode lease of %s: %w", owner, err)
	}
	lease.Owner = owner
	return lease, nil
}

// place puts each wanted address to the set that gives it. The zero Addr stands
// for a set that is free to choose.
func place(sets []Set, wanted []netip.Addr) ([]netip.Addr, error) {
	placed := make([]netip.Addr, len(sets))
	what := reserved(sets)
	for _, addr := range wanted {
		i := slices.IndexFunc(sets, func(s Set) bool { return s.index(addr) >= 0 })
		if i < 0 {
			return nil, &RequestError{Addr: addr, Reason: "it is in no range"}
		}
		if what[addr] != "" {
			return nil, &RequestError{Addr: addr, Reason: "it is " + what[addr]}
		}
		if placed[i].IsValid() && placed[i] != addr {
			return nil, &RequestError{Addr: addr, Reason: "one address is given of " +
				sets[i].String() + ", and " + placed[i].String() + " is requested too"}
		}
		placed[i] = addr
	}
	return placed, nil
}

func putLease(tx Tx, lease Lease) error {
	text, err := json.Marshal(lease)
	if err != nil {
		return fmt.Errorf("encode lease of %s: %w", lease.Owner, err)
	}
	return tx.Put(leaseKey(lease.Owner), text)
}
