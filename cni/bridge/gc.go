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
	ports, err := Ports(host, network)
	if err != nil {
		return err
	}
	kept := make(map[string]bool, len(keep))
	for _, o := range keep {
		kept[PortName(o.ContainerID, o.IfName)] = true
	}
	var failed []error
	for _, name := range ports {
		if kept[name] {
			continue
		}
		_, err := host.Delete(name, vethKind)
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

// Ports returns the names of the ports of a network's pods.
func Ports(host *link.NS, network string) ([]string, error) {
	devices, err := host.Devices()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, d := range devices {
		if d.Kind == vethKind && d.Group == mode.Group(network) {
			names = append(names, d.Name)
		}
	}
	return names, nil
}
