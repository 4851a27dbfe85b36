package macvlan

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/cni/link"
)

// Collect removes the interface of a pod that the runtime no longer knows, if the
// pod's namespace is still there: the kernel answers for its addresses, which are
// about to be given to others, also when no process is left in it.
//
// The interface must be a macvlan with one of the pod's addresses. The path of
// the namespace may have become that of another pod.
func Collect(netns, ifName string, addrs []netip.Addr) error {
	pod, err := link.Open(netns)
	if errors.Is(err, link.ErrNoNamespace) {
		return nil
	}
	if err != nil {
		return err
	}
	defer pod.Close()
	device, err := pod.Device(ifName)
	if errors.Is(err, link.ErrNoDevice) {
		return nil
	}
	if err != nil || device.Kind != Kind {
		return err
	}
	present, err := pod.Addresses(device)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(present, func(p link.Address) bool { return slices.Contains(addrs, p.Addr()) }) {
		return nil
	}
	_, err = pod.Delete(ifName, Kind)
	return err
}
