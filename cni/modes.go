package cni

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/cni/bridge"
	"github.com/fairlead/fairlead/cni/macvlan"
	"github.com/fairlead/fairlead/cni/mode"
)

// The values of the key mode.
const (
	modeBridge  = "bridge"
	modeMacvlan = "macvlan"
)

// modes are the ways to connect a pod, by the value of the key mode.
var modes = map[string]modeKind{
	modeBridge:  {config: func() mode.Config { return new(bridge.Config) }, driver: "veth"},
	modeMacvlan: {config: func() mode.Config { return new(macvlan.Config) }, driver: macvlan.Kind},
}

// modeKind is what a mode is to the verbs.
type modeKind struct {
	config func() mode.Config // with the zero value of every key
	driver string             // the kind of a pod's interface, as the kernel names it
}

// findMode returns the mode of a configuration that says mode: name.
func findMode(name string, stdin []byte) (modeKind, error) {
	name, err := meantMode(name, stdin)
	if err != nil {
		return modeKind{}, err
	}
	kind, ok := modes[name]
	if !ok {
		return modeKind{}, invalid("mode: %q is unknown: it must be %s", name, modeNames())
	}
	return kind, nil
}

func modeNames() string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(modes)) {
		names = append(names, fmt.Sprintf("%q", name))
	}
	return strings.Join(names, " or ")
}

// drivers are the kinds that a pod's interface may be of.
func drivers() []string {
	var drivers []string
	for _, kind := range modes {
		drivers = append(drivers, kind.driver)
	}
	return drivers
}
