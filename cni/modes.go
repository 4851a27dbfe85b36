package cni

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/cni/bridge"
	"github.com/fairlead/fairlead/cni/mode"
)

// modes are the ways to connect a pod, by the value of the key mode.
var modes = map[string]modeKind{
	"bridge": {config: func() mode.Config { return new(bridge.Config) }, driver: "veth"},
}

// modeKind is what a mode is to the verbs.
type modeKind struct {
	config func() mode.Config // with the zero value of every key
	driver string             // the kind of a pod's interface, as the kernel names it
}

// defaultMode makes a configuration of the reference bridge plugin one of this.
const defaultMode = "bridge"

func findMode(name string) (modeKind, error) {
	if name == "" {
		name = defaultMode
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
