package bench

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/netns"
)

const ifName = "eth0"

// sandbox is a network namespace for one pod after the other. It is used again,
// because the kernel takes a namespace away in the background, and keeps others
// waiting while it does.
type sandbox struct {
	ns      *netns.NS
	netlink *netlink.Handle
}

func newSandbox() (*sandbox, error) {
	ns, err := netns.New()
	if err != nil {
		return nil, err
	}
	handle, err := netlink.NewHandleAt(ns.Handle(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open netlink socket: %w", err), ns.Close())
	}
	return &sandbox{ns, handle}, nil
}

// close leaves the namespace to the kernel. What it could not close it forgets.
func (s *sandbox) close() {
	s.netlink.Close()
	_ = s.ns.Close()
}

// reset makes it what a new one is: one plugin sets the loopback up in ADD and
// is to do so every time.
func (s *sandbox) reset() error {
	lo, err := s.netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("reset sandbox: %w", err)
	}
	if err := s.netlink.LinkSetDown(lo); err != nil {
		return fmt.Errorf("reset sandbox: set lo down: %w", err)
	}
	return nil
}

// verify wants the pod's interface to be up and to have the addresses.
func (s *sandbox) verify(addrs []netip.Addr) error {
	eth, err := s.netlink.LinkByName(ifName)
	if err != nil {
		return fmt.Errorf("find %s of the pod: %w", ifName, err)
	}
	if eth.Attrs().RawFlags&unix.IFF_UP == 0 {
		return fmt.Errorf("%s of the pod is down", ifName)
	}
	found, err := s.netlink.AddrList(eth, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of the pod: %w", err)
	}
	for _, addr := range addrs {
		if !slices.ContainsFunc(found, func(a netlink.Addr) bool { return a.IP.Equal(addr.AsSlice()) }) {
			return fmt.Errorf("%s of the pod does not have %s", ifName, addr)
		}
	}
	return nil
}

// verifyGone wants the pod to have no interface.
func (s *sandbox) verifyGone() error {
	_, err := s.netlink.LinkByName(ifName)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find %s of the pod: %w", ifName, err)
	}
	return fmt.Errorf("%s of the pod is there after DEL", ifName)
}
