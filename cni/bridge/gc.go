package bridge

import (
	"errors"

	"github.com/fairlead/fairlead/cni/filter"
	"github.com/fairlead/fairlead/cni/link"
	"github.com/fairlead/fairlead/cni/mode"
)

// GC removes what Add made for pods of a network that are not to be kept: ports,
// and with them the pods' interfaces, and what the packet filter has. It goes on
// after something that could not be removed. The configuration need not be
// complete, nor one that Add would take.
func (c *Config) GC(host *link.NS, network string, keep []mode.Owner) error {
	// Ports first: a pod whose source is not checked any more is not connected.
	return errors.Join(collectPorts(host, network, keep), c.collectFilter(host, network, keep))
}

// collectFilter also makes what others removed of the pods that are kept.
func (c *Config) collectFilter(host *link.NS, network string, keep []mode.Owner) error {
	return filter.With(host, func(f *filter.Filter) error {
		return errors.Join(f.Collect(network, keep, c.byIPTables()), f.Repair())
	})
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
		if d.Kind != vethKind || d.Group != mode.Group(network) || kept[d.Name] {
			continue
		}
		_, err := host.Delete(d.Name, vethKind)
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}
