package macvlan

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cni/link"
)

// findMaster finds the master in the namespace where it is to be, and sees
// whether it can carry what is asked for.
func (c *Config) findMaster(ns *link.NS) (link.Device, error) {
	if c.Master == "" {
		master, err := ns.DefaultDevice()
		if err != nil {
			return link.Device{}, fmt.Errorf("master: none is given, and there is no default route to take that of: %w", err)
		}
		return master, c.checkMTU(master)
	}
	master, err := ns.Device(c.Master)
	if err != nil {
		return link.Device{}, fmt.Errorf("master: %w", err)
	}
	return master, c.checkMTU(master)
}

func (c *Config) checkMTU(master link.Device) error {
	if c.MTU > master.MTU {
		return invalid("mtu: %d is above %d, that of the master %s", c.MTU, master.MTU, master.Name)
	}
	return nil
}

// refusePort reports that the master is part of a bridge or the like, which gets
// all of its frames, so that the kernel lets nothing else have them.
func refusePort(ns *link.NS, master link.Device) error {
	if master.Master == 0 {
		return nil
	}
	above, err := ns.DeviceAt(master.Master)
	if err != nil {
		return err
	}
	if above.Kind == "vrf" { // takes no frames, only routes them
		return nil
	}
	return fmt.Errorf("master: %s is part of the %s %s", master.Name, above.Kind, above.Name)
}

// explain adds to the kernel's refusal of a macvlan who has the master already:
// its words are EBUSY, for a master whose frames go to something of another kind,
// and EINVAL, where one of the two macvlans is in mode passthru.
func (a *Attachment) explain(master link.Device, err error) error {
	if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EINVAL) {
		return err
	}
	ns := a.masterNS()
	if port := refusePort(ns, master); port != nil {
		return fmt.Errorf("%w: %w", port, err)
	}
	if stacked := ns.StackedOn(master); len(stacked) != 0 {
		return fmt.Errorf("master: %s is taken by %s: %w", master.Name, strings.Join(stacked, ", "), err)
	}
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("master: %s is taken by an interface of another namespace: %w", master.Name, err)
	}
	return fmt.Errorf("master: %s cannot have a macvlan in mode %s: it is no Ethernet, or another macvlan is in mode passthru: %w",
		master.Name, a.Config.mode, err)
}
