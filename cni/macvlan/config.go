package macvlan

import (
	"net"

	"github.com/containernetworking/cni/pkg/utils"

	"github.com/fairlead/fairlead/cni/link"
)

// Config is what a network's configuration says about its macvlan: the keys of
// the reference macvlan plugin, with its defaults.
type Config struct {
	Master          string `json:"master"`          // name; "": the interface of the default route
	Mode            string `json:"mode"`            // "macvlan", or what the reference plugin has here: see the package comment
	MacvlanMode     string `json:"macvlanMode"`     // "bridge", "private", "vepa" or "passthru"; "bridge"
	MTU             int    `json:"mtu"`             // at most the master's; 0: the master's
	MAC             string `json:"mac"`             // of the pod's interface, if the runtime asks for none; "": any
	LinkInContainer bool   `json:"linkInContainer"` // the master is in the pod's namespace
	BCQueueLen      int    `json:"bcqueuelen"`      // see link.Macvlan; 0: the kernel's default

	mode string           // of the interface, as the kernel names it
	mac  net.HardwareAddr // MAC; nil: any
}

const (
	defaultMode = "bridge"
	minMTU      = 68        // RFC 791: what every link must carry
	maxBCQueue  = 1<<32 - 1 // IFLA_MACVLAN_BC_QUEUE_LEN has 32 bits
)

// Complete gives keys that were left out their defaults and reports the first
// value that is not allowed, as a *types.Error.
func (c *Config) Complete() (err error) {
	if c.Master != "" && utils.ValidateInterfaceName(c.Master) != nil {
		return invalid("master: %q is not the name of an interface: 1 to 15 characters are allowed, none of them / or : or a space", c.Master)
	}
	if c.mode, err = c.interfaceMode(); err != nil {
		return err
	}
	if c.MTU != 0 && c.MTU < minMTU {
		return invalid("mtu: %d is out of range: 0 (the master's) or %d to the master's is allowed", c.MTU, minMTU)
	}
	if c.BCQueueLen < 0 || c.BCQueueLen > maxBCQueue {
		return invalid("bcqueuelen: %d is out of range: 0 (the kernel's default) to %d is allowed", c.BCQueueLen, maxBCQueue)
	}
	if c.MAC == "" {
		return nil
	}
	if c.mac, err = link.ParseMAC(c.MAC); err != nil {
		return invalid("mac: %v", err)
	}
	return nil
}

// interfaceMode is the mode by either key.
func (c *Config) interfaceMode() (string, error) {
	switch c.MacvlanMode {
	case "", "bridge", "private", "vepa", "passthru":
	default:
		return "", invalid(`macvlanMode: %q is unknown: it must be "bridge", "private", "vepa" or "passthru"`, c.MacvlanMode)
	}
	switch c.Mode {
	case "private", "vepa", "passthru":
		if c.MacvlanMode != "" && c.MacvlanMode != c.Mode {
			return "", invalid(`macvlanMode: %q is not allowed together with mode: %q: they must be the same, or mode "macvlan"`, c.MacvlanMode, c.Mode)
		}
		return c.Mode, nil
	}
	if c.MacvlanMode != "" {
		return c.MacvlanMode, nil
	}
	return defaultMode, nil
}
