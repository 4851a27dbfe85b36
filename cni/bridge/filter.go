package bridge

import (
	"errors"
	"net/netip"
	"os/exec"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/fairlead/fairlead/cni/iptables"
	"github.com/fairlead/fairlead/cni/link"
	"github.com/fairlead/fairlead/cni/mode"
	"github.com/fairlead/fairlead/cni/nft"
	"github.com/fairlead/fairlead/cni/step"
)

// The values of ipMasqBackend. The reference plugin, left to choose, takes
// iptables where there is one; nftables costs a hundredth of it.
const (
	withNFTables = "nftables"
	withIPTables = "iptables"
)

func (c *Config) completeMasquerade() error {
	switch c.IPMasqBackend {
	case "", withNFTables, withIPTables:
	default:
		return invalid("ipMasqBackend: %q is unknown: it must be %q or %q", c.IPMasqBackend, withIPTables, withNFTables)
	}
	c.spared = nil
	for _, text := range c.NonMasqueradeCIDRs {
		prefix, err := netip.ParsePrefix(text)
		if err != nil || prefix.Addr().Is4In6() {
			return invalid("nonMasqueradeCIDRs: %q is not allowed: it must be a network like 10.0.0.0/8 or fd00::/8", text)
		}
		c.spared = append(c.spared, prefix.Masked())
	}
	return nil
}

// checkSource has frames from the pod dropped unless they are from its own
// addresses.
func (a *Attachment) checkSource() (step.Undo, error) {
	if !a.Config.MACSpoofChk {
		return nil, nil
	}
	addrs, _ := addresses(a.Result)
	undo := func() error {
		return withFilter(func(f *filter) error { return stopCheck(f, a.Owner()) })
	}
	return undo, withFilter(func(f *filter) error {
		return f.do(func(c *nft.Conn) error {
			return c.CheckSource(a.Owner(), PortName(a.ContainerID, a.IfName), a.mac, addrs)
		})
	})
}

// masquerade has what the pod sends leave the node with the node's address. Other
// than with the reference plugin all subnets of the pod are spared for all of its
// addresses.
func (a *Attachment) masquerade() (step.Undo, error) {
	addrs, subnets := addresses(a.Result)
	if err := a.release(addrs); err != nil {
		return nil, err
	}
	if !a.Config.IPMasq || len(addrs) == 0 {
		return nil, nil
	}
	spared := append(subnets, a.Config.spared...)
	undo := func() error {
		return withFilter(func(f *filter) error { return a.Config.stopMasquerade(f, a.Owner()) })
	}
	return undo, withFilter(func(f *filter) error {
		return a.Config.byBackend(f,
			func(c *nft.Conn) error { return c.Masquerade(a.Owner(), addrs, spared) },
			func() error { return iptables.Masquerade(a.Owner(), addrs, spared) },
		)
	})
}

// release takes the pod's addresses from pods that had them before. Where they
// are masqueraded by nftables that is part of masquerading them.
func (a *Attachment) release(addrs []netip.Addr) error {
	if a.Config.IPMasq && a.Config.IPMasqBackend != withIPTables {
		return nil
	}
	return withFilter(func(f *filter) error {
		return supported(f.do(func(c *nft.Conn) error { return c.Release(addrs) }))
	})
}

// byBackend does with nftables or iptables what the configuration wants done
// with either.
func (c *Config) byBackend(f *filter, byNFTables func(*nft.Conn) error, byIPTables func() error) error {
	if c.IPMasqBackend == withIPTables {
		return byIPTables()
	}
	err := f.do(byNFTables)
	if errors.Is(err, nft.ErrUnsupported) && c.IPMasqBackend == "" {
		return byIPTables()
	}
	return err
}

// stopMasquerade always looks at nftables, where it costs next to nothing: the
// configuration may have been another one when the pod came.
func (c *Config) stopMasquerade(f *filter, owner mode.Owner) error {
	stopped := f.do(func(conn *nft.Conn) error { return conn.StopMasquerade(owner) })
	if c.IPMasqBackend == withIPTables || errors.Is(stopped, nft.ErrUnsupported) && c.IPMasq {
		return errors.Join(supported(stopped), supported(iptables.Stop(owner)))
	}
	return supported(stopped)
}

func stopCheck(f *filter, owner mode.Owner) error {
	return supported(f.do(func(c *nft.Conn) error { return c.StopCheck(owner) }))
}

// supported is err, but none where there is nothing to remove because the node
// cannot have had it.
func supported(err error) error {
	if errors.Is(err, nft.ErrUnsupported) || errors.Is(err, exec.ErrNotFound) {
		return nil
	}
	return err
}

// filter is nftables, opened when it is first needed.
type filter struct{ conn *nft.Conn }

func (f *filter) do(change func(*nft.Conn) error) error {
	if f.conn == nil {
		conn, err := nft.Open()
		if err != nil {
			return err
		}
		f.conn = conn
	}
	return change(f.conn)
}

// withFilter closes what do opened.
func withFilter(do func(*filter) error) error {
	var f filter
	defer f.close()
	return do(&f)
}

func (f *filter) close() {
	if f.conn != nil {
		f.conn.Close()
	}
}

// forget takes a pod out of the packet filter. A pod whose source is checked is
// cut off first, so that there is no moment in which it is not.
//
// This is before the pod's interface goes, and f is closed after that: the kernel
// waits long before it frees elements (see nft.Open) and interfaces, and this way
// for both at the same time.
func (c *Config) forget(f *filter, host *link.NS, owner mode.Owner) error {
	failed := []error{c.stopMasquerade(f, owner)}
	if c.MACSpoofChk {
		failed = append(failed, cutOff(host, owner))
	}
	return errors.Join(append(failed, stopCheck(f, owner))...)
}

func cutOff(host *link.NS, owner mode.Owner) error {
	port, err := host.Device(PortName(owner.ContainerID, owner.IfName))
	if errors.Is(err, link.ErrNoDevice) {
		return nil
	}
	if err != nil || mode.Foreign(port, owner.Network) {
		return err
	}
	return host.SetDown(port)
}

// addresses are those that IPAM gave, and their subnets, each once.
func addresses(r *types100.Result) (addrs []netip.Addr, subnets []netip.Prefix) {
	seen := map[netip.Prefix]bool{}
	for _, ip := range r.IPs {
		addr, _ := netip.AddrFromSlice(ip.Address.IP) // of 4 or 16 bytes, decoding saw to it
		bits, _ := ip.Address.Mask.Size()
		subnet := netip.PrefixFrom(addr.Unmap(), bits).Masked()
		addrs = append(addrs, addr.Unmap())
		if !seen[subnet] {
			seen[subnet] = true
			subnets = append(subnets, subnet)
		}
	}
	return addrs, subnets
}
