package bridge

import (
	"errors"
	"net/netip"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/fairlead/fairlead/cni/filter"
	"github.com/fairlead/fairlead/cni/link"
	"github.com/fairlead/fairlead/cni/mode"
	"github.com/fairlead/fairlead/cni/step"
)

func (c *Config) completeMasquerade() error {
	switch c.IPMasqBackend {
	case "", filter.NFTables, filter.IPTables:
	default:
		return invalid("ipMasqBackend: %q is unknown: it must be %q or %q", c.IPMasqBackend, filter.IPTables, filter.NFTables)
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

// filtered is the pod as the packet filter is to know it. Other than with the
// reference plugin all subnets of the pod are spared for all of its addresses.
func (a *Attachment) filtered() filter.Pod {
	addrs, subnets := addresses(a.Result)
	return filter.Pod{
		Owner:       a.Owner(),
		Port:        PortName(a.ContainerID, a.IfName),
		MAC:         filter.MAC(a.mac),
		Addrs:       addrs,
		CheckSource: a.Config.MACSpoofChk,
		Masquerade:  a.Config.IPMasq && len(addrs) != 0,
		Spared:      append(subnets, a.Config.spared...),
		Backend:     a.Config.IPMasqBackend,
	}
}

// filter has the packet filter masquerade the pod and check its source, as far as
// the configuration asks for it.
func (a *Attachment) filter() (step.Undo, error) {
	err := filter.With(a.Host, func(f *filter.Filter) error { return f.Add(a.filtered()) })
	undo := func() error { return a.stopFilter() }
	if err != nil && (a.Config.MACSpoofChk || a.Config.IPMasq) {
		return nil, errors.Join(err, a.stopFilter())
	}
	return undo, err
}

// stopFilter takes filter back.
func (a *Attachment) stopFilter() error {
	if !a.Config.MACSpoofChk && !a.Config.IPMasq {
		return nil
	}
	return filter.With(a.Host, func(f *filter.Filter) error { return f.Remove(a.Owner(), a.Config.byIPTables()) })
}

// checkFilter returns what the packet filter does not have of the pod. It is not
// asked about a pod of the reference plugin's, whose port has another name.
func (a *Attachment) checkFilter(port, pod link.Device) (differences []string, err error) {
	if port.Name != PortName(a.ContainerID, a.IfName) || !a.Config.MACSpoofChk && !a.Config.IPMasq {
		return nil, nil
	}
	a.mac = pod.MAC
	err = filter.With(a.Host, func(f *filter.Filter) (err error) {
		differences, err = f.Check(a.filtered())
		return err
	})
	return differences, err
}

// byIPTables reports whether the configuration asks for iptables.
func (c *Config) byIPTables() bool { return c.IPMasqBackend == filter.IPTables }

// forget takes a pod out of the packet filter. A pod whose source is checked is
// cut off first, so that there is no moment in which it is not. The configuration
// may have been another one when the pod came.
func (c *Config) forget(f *filter.Filter, host *link.NS, owner mode.Owner) error {
	record, err := f.Record(owner)
	failed := []error{err}
	if c.MACSpoofChk || record.CheckSource {
		failed = append(failed, cutOff(host, owner))
	}
	return errors.Join(append(failed, f.Remove(owner, c.byIPTables()))...)
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
