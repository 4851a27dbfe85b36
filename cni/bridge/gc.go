package bridge

import (
	"errors"
	"hash/fnv"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/fairlead/fairlead/cni/link"
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

// GC removes the ports of a network, and with them the pods' interfaces, that
// belong to none of the valid attachments. It goes on after one that could not
// be removed.
func GC(host *link.NS, network string, valid []types.GCAttachment) error {
	keep := make(map[string]bool, len(valid))
	for _, a := range valid {
		keep[PortName(a.ContainerID, a.IfName)] = true
	}
	devices, err := host.Devices()
	if err != nil {
		return err
	}
	var failed []error
	for _, d := range devices {
		if d.Kind != vethKind || d.Group != group(network) || keep[d.Name] {
			continue
		}
		_, err := host.Delete(d.Name, vethKind)
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}
