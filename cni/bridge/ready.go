package bridge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/fairlead/fairlead/cni/link"
	"github.com/fairlead/fairlead/cni/step"
)

// readyBridge makes the bridge what the configuration asks for: it is there and
// up, has the gateways' addresses, and the node forwards.
//
// The bridge is shared, so two things must never happen: that an ADD takes back
// a bridge or address that another ADD has come to rely on, and that one relies
// on what is about to be taken back. Therefore an ADD holds a lock on the host's
// namespace to its end: shared if it finds the bridge ready, which is nearly
// always, and exclusive if it has to change it. Who changes something is alone
// until it is sure to stay.
func (a *Attachment) readyBridge(gateways []netip.Prefix) (step.Undo, error) {
	if err := lock(a.Host, link.Shared, lockLimit); err != nil {
		return nil, err
	}
	changes, err := a.plan(gateways)
	if err != nil || len(changes) == 0 {
		return nil, err
	}
	if err := lock(a.Host, link.Exclusive, lockLimit); err != nil {
		return nil, err
	}
	changes, err = a.plan(gateways) // again: another ADD may have come before this one
	if err != nil {
		return nil, err
	}
	if len(changes) == 0 {
		return nil, lock(a.Host, link.Shared, lockLimit)
	}
	return step.Run(changes...)
}

// lockLimit is how long an ADD waits for others. Each of them is done in some
// milliseconds, with enabledad in some seconds.
const lockLimit = time.Minute

// lock has an error that tells the runtime to try again if others keep the lock.
func lock(host *link.NS, kind link.Lock, limit time.Duration) error {
	err := host.Lock(kind, limit)
	if errors.Is(err, context.DeadlineExceeded) {
		return types.NewError(types.ErrTryAgainLater, err.Error(), "")
	}
	return err
}

// plan looks at the bridge and returns the steps that are missing. It changes
// nothing, and finds what is in the way before anything is changed.
func (a *Attachment) plan(gateways []netip.Prefix) ([]step.Func, error) {
	_, err := a.findBridge()
	if errors.Is(err, link.ErrNoDevice) {
		return a.planNew(gateways)
	}
	if err != nil {
		return nil, err
	}
	return a.planExisting(gateways)
}

func (a *Attachment) planNew(gateways []netip.Prefix) ([]step.Func, error) {
	gateway, err := a.planGateway(gateways)
	if err != nil {
		return nil, err
	}
	changes := []step.Func{a.addBridge, a.findBridge}
	if a.Config.PromiscMode {
		changes = append(changes, a.setPromisc)
	}
	changes = append(changes, a.setAll(a.bridgeSysctls())...)
	return slices.Concat(changes, gateway, a.setAll(nodeSysctls(gateways))), nil
}

func (a *Attachment) planExisting(gateways []netip.Prefix) ([]step.Func, error) {
	var changes []step.Func
	if !a.bridge.Up {
		changes = append(changes, a.setUp)
	}
	if a.Config.PromiscMode && !a.bridge.Promisc {
		changes = append(changes, a.setPromisc)
	}
	if a.Config.filtersVLANs() && !a.bridge.VLAN.Filtering {
		changes = append(changes, a.setFiltering)
	}
	settings, err := a.planSysctls(a.bridgeSysctls())
	if err != nil {
		return nil, err
	}
	gateway, err := a.planGateway(gateways)
	if err != nil {
		return nil, err
	}
	forwarding, err := a.planSysctls(nodeSysctls(gateways))
	if err != nil {
		return nil, err
	}
	return slices.Concat(changes, settings, gateway, forwarding), nil
}

// planGateway returns the steps that make an interface of the node, the bridge as
// a rule, the pods' gateway.
func (a *Attachment) planGateway(gateways []netip.Prefix) ([]step.Func, error) {
	if len(gateways) == 0 {
		return nil, nil
	}
	_, err := a.findGateway()
	if errors.Is(err, link.ErrNoDevice) || err == nil && a.gateway.Index == 0 { // the bridge, which is not there yet
		return a.planNewGateway(gateways), nil
	}
	if err != nil {
		return nil, err
	}
	var changes []step.Func
	if works, err := a.gatewayWorks(); err != nil {
		return nil, err
	} else if !works {
		changes = append(changes, a.completeGateway)
	}
	settings, err := a.planSysctls(a.gatewaySysctls(gateways))
	if err != nil {
		return nil, err
	}
	addresses, err := a.planAddresses(gateways)
	return slices.Concat(changes, settings, addresses), err
}

func (a *Attachment) planNewGateway(gateways []netip.Prefix) []step.Func {
	changes := []step.Func{a.findGateway}
	if a.Config.gatewayName() != a.Config.Bridge {
		changes = []step.Func{a.addGateway}
	}
	changes = append(changes, a.setAll(a.gatewaySysctls(gateways))...)
	for _, gateway := range gateways {
		changes = append(changes, a.addAddress(gateway))
	}
	return changes
}

// planAddresses returns the steps that give their interface the gateways'
// addresses. It is in the way if the interface has another IPv4 address, or one in an IPv6
// subnet that overlaps, and such addresses give way only to forceAddress.
//
// The reference plugin goes by the order in which the kernel lists addresses,
// and can hold only one gateway per family; here all of a pod's gateways count
// as one set.
func (a *Attachment) planAddresses(gateways []netip.Prefix) ([]step.Func, error) {
	present, err := a.Host.Addresses(a.gateway)
	if err != nil {
		return nil, err
	}
	missing := slices.DeleteFunc(slices.Clone(gateways), func(gateway netip.Prefix) bool {
		return slices.ContainsFunc(present, func(p link.Address) bool { return p.Prefix == gateway })
	})
	if len(missing) == 0 {
		return nil, nil
	}
	var changes []step.Func
	// Backwards, so that undoing restores them in the order they had.
	for _, p := range slices.Backward(present) {
		i := slices.IndexFunc(missing, func(m netip.Prefix) bool { return inTheWay(p.Prefix, m) })
		if i < 0 || slices.Contains(gateways, p.Prefix) {
			continue
		}
		if !a.Config.ForceAddress {
			return nil, fmt.Errorf("bridge %s has the address %s, which is in the way of the gateway %s: only forceAddress: true replaces it",
				a.gateway.Name, p, missing[i])
		}
		changes = append(changes, a.deleteAddress(p))
	}
	for _, m := range missing {
		changes = append(changes, a.addAddress(m))
	}
	if a.gateway.Index == a.bridge.Index {
		changes = append(changes, a.pinMAC)
	}
	return changes, nil
}

func inTheWay(present, wanted netip.Prefix) bool {
	if present.Addr().Is4() != wanted.Addr().Is4() {
		return false
	}
	return wanted.Addr().Is4() || present.Overlaps(wanted)
}

// bridgeSysctls are the values wanted of the bridge itself: else a pod could
// advertise itself as the node's router (RFC 4861).
func (a *Attachment) bridgeSysctls() []link.Sysctl {
	return []link.Sysctl{{Path: "net/ipv6/conf/" + a.Config.Bridge + "/accept_ra", Value: "0"}}
}

// gatewaySysctls are the values wanted of the interface of the gateways.
func (a *Attachment) gatewaySysctls(gateways []netip.Prefix) []link.Sysctl {
	conf := "net/ipv6/conf/" + a.Config.gatewayName() + "/"
	values := []link.Sysctl{{Path: conf + "accept_ra", Value: "0"}}
	if slices.ContainsFunc(gateways, isIPv6) {
		// Nodes without IPv6 of their own often have it off for new interfaces.
		values = append(values, link.Sysctl{Path: conf + "disable_ipv6", Value: "0"})
	}
	return values
}

// nodeSysctls are the values wanted of the node. They come last: the kernel drops
// the default routes that routers advertised when IPv6 forwarding is turned on.
func nodeSysctls(gateways []netip.Prefix) []link.Sysctl {
	var values []link.Sysctl
	if slices.ContainsFunc(gateways, isIPv6) {
		values = append(values, link.Sysctl{Path: "net/ipv6/conf/all/forwarding", Value: "1"})
	}
	if slices.ContainsFunc(gateways, func(g netip.Prefix) bool { return !isIPv6(g) }) {
		values = append(values, link.Sysctl{Path: "net/ipv4/ip_forward", Value: "1"})
	}
	return values
}

func isIPv6(p netip.Prefix) bool { return p.Addr().Is6() }

// planSysctls returns the steps for those values that are not as wanted.
func (a *Attachment) planSysctls(wanted []link.Sysctl) ([]step.Func, error) {
	var changes []step.Func
	for _, s := range wanted {
		value, err := a.Host.Sysctl(s.Path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, err
		}
		if value != s.Value {
			changes = append(changes, a.set(s))
		}
	}
	return changes, nil
}
