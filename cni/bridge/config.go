package bridge

import (
	"fmt"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"

	"github.com/fairlead/fairlead/ebpf/pins"
)

// Config is what a network's configuration says about its bridge: the keys of
// the reference bridge plugin, with its defaults.
type Config struct {
	Bridge           string `json:"bridge"`           // name; "cni0"
	IsGateway        bool   `json:"isGateway"`        // the bridge has the gateways' addresses
	IsDefaultGateway bool   `json:"isDefaultGateway"` // and pods a default route to them
	ForceAddress     bool   `json:"forceAddress"`     // in the place of other addresses
	MTU              int    `json:"mtu"`              // of pods and of a bridge made for them; 0: the kernel's default
	HairpinMode      bool   `json:"hairpinMode"`      // frames go back out of the port they came in by
	PromiscMode      bool   `json:"promiscMode"`      // the bridge takes frames for every address

	PortIsolation bool `json:"portIsolation"` // pods reach the node, and none of each other

	VLAN                int     `json:"vlan"`                // of what pods send without a tag; 0: none of its own
	VLANTrunk           []Trunk `json:"vlanTrunk"`           // those that pods may tag frames with
	PreserveDefaultVLAN bool    `json:"preserveDefaultVlan"` // pods keep the bridge's default VLAN beside these

	MACSpoofChk bool `json:"macspoofchk"` // pods send from their own addresses only

	IPMasq             bool     `json:"ipMasq"`             // what pods send leaves the node with the node's address
	IPMasqBackend      string   `json:"ipMasqBackend"`      // "nftables", "iptables"; "": the first that the kernel has
	NonMasqueradeCIDRs []string `json:"nonMasqueradeCIDRs"` // except to these, and to the pod's own subnets

	DisableContainerInterface bool `json:"disableContainerInterface"` // the pod's end stays down, and the port with it

	BPFRoot string `json:"bpfRoot"` // where 'fairlead proxy' pins its programs (--bpf-root); "/sys/fs/bpf/fairlead"

	spared []netip.Prefix // NonMasqueradeCIDRs
}

const (
	defaultBridge = "cni0"
	minMTU        = 68    // RFC 791: what every link must carry
	maxMTU        = 65535 // IFLA_MTU of a veth ends here
)

// Complete gives keys that were left out their defaults and reports the first
// value that is not allowed, as a *types.Error.
func (c *Config) Complete() error {
	if c.Bridge == "" {
		c.Bridge = defaultBridge
	}
	if c.BPFRoot == "" {
		c.BPFRoot = pins.DefaultRoot
	}
	c.IsGateway = c.IsGateway || c.IsDefaultGateway

	if err := utils.ValidateInterfaceName(c.Bridge); err != nil {
		return invalid("bridge: %q is not the name of an interface: 1 to 15 characters are allowed, none of them / or : or a space", c.Bridge)
	}
	if c.MTU != 0 && (c.MTU < minMTU || c.MTU > maxMTU) {
		return invalid("mtu: %d is out of range: 0 (the kernel's default) or %d to %d is allowed", c.MTU, minMTU, maxMTU)
	}
	if c.HairpinMode && c.PromiscMode {
		return invalid("promiscMode: true is not allowed together with hairpinMode: true: pods would get frames twice")
	}
	if err := c.checkVLANs(); err != nil {
		return err
	}
	return c.completeMasquerade()
}

func invalid(format string, args ...any) error {
	return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf(format, args...), "")
}
