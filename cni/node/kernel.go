package node

import (
	"errors"
	"fmt"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cni/link"
)

// Protocol is the number by which our routes and rules are told from others'
// (rtm_protocol; ip route shows it as "proto 250"). The kernel gives those from
// 5 on no meaning. Routing daemons have theirs below 200 (rtnetlink.h, and
// rt_protos of iproute2 and FRR), 250 is nobody's.
const Protocol = 250

// Kernel is the kernel of this node, as far as package node changes it. It knows
// what of ours the kernel has, and learns from news when somebody changes that:
// Sync reads nothing unless news were lost or a write failed.
//
// It is for one goroutine.
type Kernel struct {
	host   *link.NS
	handle *netlink.Handle // for writes
	dumps  *nl.SocketHandle
	news   *nl.NetlinkSocket
	passed chan News
	done   chan struct{} // closed by Close

	closing sync.Once
	wrote   int

	// Nothing below is to be trusted unless known.
	known    bool
	have     state
	agreed   bool  // have is what is wanted
	last     *Plan // have is what it wants; nil: have may be anything, or what a Change left
	underlay Underlay
	links    map[int]device // those that are ours or part of the underlay, by index
}

// device is what is known of a network device.
type device struct {
	Device
	index int
	up    bool
}

// Open opens the kernel of the network namespace of the calling thread. News
// are collected from now on.
func Open() (*Kernel, error) {
	host, err := link.Host()
	if err != nil {
		return nil, err
	}
	k := &Kernel{host: host, passed: make(chan News, 64), done: make(chan struct{})}
	if err := k.open(); err != nil {
		k.close()
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	go k.passNews()
	return k, nil
}

// receiveBuffer is room for news while the loop is busy: some ten thousand.
const receiveBuffer = 16 << 20

func (k *Kernel) open() error {
	var err error
	// The news come first: what happens between them and the first reading is
	// told twice, not never.
	if k.news, err = nl.Subscribe(unix.NETLINK_ROUTE, newsGroups...); err != nil {
		return err
	}
	if err := k.news.SetReceiveBufferSize(receiveBuffer, true); err != nil {
		return err
	}
	if k.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return err
	}
	dumps, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	k.dumps = &nl.SocketHandle{Socket: dumps}
	return nil
}

// Close gives the sockets back, the first time. What the kernel has stays.
func (k *Kernel) Close() {
	k.closing.Do(func() {
		close(k.done)
		k.close()
	})
}

func (k *Kernel) close() {
	if k.news != nil {
		k.news.Close()
	}
	if k.handle != nil {
		k.handle.Close()
	}
	if k.dumps != nil {
		k.dumps.Close()
	}
	k.host.Close()
}

// Underlay returns what the underlay looks like now. It must not be changed.
func (k *Kernel) Underlay() (*Underlay, error) {
	if err := k.learn(); err != nil {
		return nil, err
	}
	return &k.underlay, nil
}

// Sync makes the kernel agree with the plan. What cannot be done does not keep
// the rest from being done: the error is that of all that failed. After an error
// the next Sync starts from what the kernel says.
func (k *Kernel) Sync(p Plan) error {
	err := k.try(p)
	if err != nil {
		// It may be that somebody else was at work, and that the news of it are
		// still on their way.
		err = k.try(p)
	}
	return err
}

func (k *Kernel) try(p Plan) error {
	if err := k.learn(); err != nil {
		return err
	}
	if k.last == nil {
		if err := k.bring(p, nil); err != nil {
			return err
		}
	} else if err := k.bring(p.differing(*k.last)); err != nil {
		return err
	}
	k.last = &p
	return nil
}

// Change makes the kernel agree with what the plan has become by a change. It
// must have agreed before. After an error the next call must be a Sync.
func (k *Kernel) Change(c Change) error {
	err := k.bring(c.New, &c.Old)
	k.last = nil
	return err
}

// Agrees says that the kernel has exactly what Sync and Change were to bring last,
// and that the underlay has not changed.
func (k *Kernel) Agrees() bool { return k.known && k.agreed }

// bring writes what of want the kernel has not, and removes what of old it has and
// is not wanted; of old nil, everything.
func (k *Kernel) bring(want Plan, old *Plan) error {
	w := writer{Kernel: k}
	w.bring(want, old)
	k.agreed = len(w.errs) == 0
	if !k.agreed {
		k.known = false
		return errors.Join(w.errs...)
	}
	return nil
}

// Routes is how many of ours the kernel has.
func (k *Kernel) Routes() int { return len(k.have.routes) }

// Wrote is how many things were written or removed since Open.
func (k *Kernel) Wrote() int { return k.wrote }

// Cleanup removes everything that is ours.
func (k *Kernel) Cleanup() error { return k.Sync(Plan{}) }

// learn reads all there is to know, unless it is known.
func (k *Kernel) learn() error {
	if k.known {
		return nil
	}
	if err := k.read(); err != nil {
		return err
	}
	k.known = true
	return nil
}
