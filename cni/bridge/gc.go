package bridge

import (
	"errors"
	"hash/fnv"

	"github.com/fairlead/fairlead/cni/iptables"
	"github.com/fairlead/fairlead/cni/link"
	"github.com/fairlead/fairlead/cni/mode"
	"github.com/fairlead/fairlead/cni/nft"
)

// group is the interface group (netdevice(7), IFLA_GROUP) of a network's ports.
// It is part of the message that makes a port, so that GC knows a network's
// ports also when ADD died right after it. Groups that people give are small
// numbers: the second highest bit sets these apart. (With the highest one ip(8)
// would show them as negative.)
func group(network string) uint32 {
	hash := fnv.New32a()
	hash.Write([]byte(network))
	return hash.Sum32()>>1 | 1<<30
}

// Foreign reports whether an interface is a port of another network of ours.
func Foreign(d link.Device, network string) bool {
	return d.Group>>30 == 1 && d.Group != group(network)
}

// GC removes what Add made for pods of a network that are not to be kept: ports,
// and with them the pods' interfaces, and what the packet filter has. It goes on
// after something that could not be removed. The configuration need not be
// complete, nor one that Add would take.
func (c *Config) GC(host *link.NS, network string, keep []mode.Owner) error {
	// Ports first: a pod whose source is not checked any more is not connected.
	return errors.Join(collectPorts(host, network, keep), c.collectFilter(network, keep))
}

func (c *Config) collectFilter(network string, keep []mode.Owner) error {
	collected := withFilter(func(f *filter) error {
		return f.do(func(conn *nft.Conn) error { return conn.Collect(network, keep) })
	})
	if c.IPMasqBackend == withIPTables || errors.Is(collected, nft.ErrUnsupported) && c.IPMasq {
		return errors.Join(supported(collected), iptables.Collect(network, keep))
	}
	return supported(collected)
}

func collectPorts(host *link.NS, network string, keep []mode.Owner) error {
	kept := make(map[string]bool, len(keep))
	for _, o := range keep {
		kept[PortName(o.ContainerID, o.IfName)] = true
	}
	devices, err := host.Devices()
	if err != nil {
		return err
	}
	var failed []error
	for _, d := range devices {
		if d.Kind != vethKind || d.Group != group(network) || kept[d.Name] {
			continue
		}
		_, err := host.Delete(d.Name, vethKind)
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}
