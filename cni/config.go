package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"reflect"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/fairlead/fairlead/cni/link"
	"github.com/fairlead/fairlead/cni/mode"
)

// document is a network's configuration as it comes in: the keys that mean the
// same in every mode.
type document struct {
	Name string      `json:"name"`
	Mode string      `json:"mode"`
	IPAM ipamSection `json:"ipam"`
	// EnableDAD has the kernel make sure that no other host has the pod's IPv6
	// addresses, and ADD wait for that.
	EnableDAD bool `json:"enabledad"`
	// DisableContainerInterface leaves the pod's interface down.
	DisableContainerInterface bool `json:"disableContainerInterface"`

	DNS        types.DNS       `json:"dns"`
	PrevResult json.RawMessage `json:"prevResult"`
	Args       struct {
		CNI struct {
			MAC string `json:"mac"`
		} `json:"cni"`
	} `json:"args"`
	RuntimeConfig struct {
		MAC string   `json:"mac"`
		DNS struct { // the keys are those of the capability, not of types.DNS
			Servers  []string `json:"servers"`
			Searches []string `json:"searches"`
			Options  []string `json:"options"`
		} `json:"dns"`
	} `json:"runtimeConfig"`
}

// ipamSection is for the IPAM plugin to read, but for its type.
type ipamSection map[string]json.RawMessage

// config is a valid configuration, with what the runtime asked for beside it.
type config struct {
	document
	ipam ipam
	mac  net.HardwareAddr // of the pod's interface; nil: any
	mode mode.Config
}

// load decodes and validates. Every error is a *types.Error that names the
// field, its value and what is allowed.
func load(args *skel.CmdArgs) (config, error) {
	var conf config
	if err := decode(args.StdinData, &conf.document); err != nil {
		return config{}, err
	}
	kind, err := findMode(conf.Mode, args.StdinData)
	if err != nil {
		return config{}, err
	}
	conf.mode = kind.config()
	plugin, err := conf.IPAM.plugin()
	if err != nil {
		return config{}, err
	}
	if conf.DisableContainerInterface && plugin != "" {
		return config{}, invalid("disableContainerInterface: true is not allowed together with ipam: an interface that is down has no use for addresses")
	}
	if conf.ipam, err = newIPAM(plugin, args.Path); err != nil {
		return config{}, err
	}
	if conf.mac, err = conf.wantedMAC(args.Args); err != nil {
		return config{}, err
	}
	if err := decode(args.StdinData, conf.mode); err != nil {
		return config{}, err
	}
	return conf, conf.mode.Complete()
}

// plugin returns the type of the IPAM plugin, "" if there is to be none.
func (s ipamSection) plugin() (string, error) {
	if len(s) == 0 {
		return "", nil
	}
	var name string
	if err := json.Unmarshal(s["type"], &name); err != nil || name == "" {
		return "", invalid("ipam.type: %s is not allowed: it must be the name of a plugin, or ipam be left out", orMissing(s["type"]))
	}
	return name, nil
}

func orMissing(value json.RawMessage) string {
	if value == nil {
		return "no value"
	}
	return string(value)
}

// wantedMAC returns the hardware address that the runtime or the configuration
// asks for, nil if none does. As with the reference plugin the capability goes
// before args, and args before CNI_ARGS.
func (d document) wantedMAC(cniArgs string) (net.HardwareAddr, error) {
	var env struct {
		types.CommonArgs
		MAC types.UnmarshallableString
		IP  types.UnmarshallableString // for IPAM
	}
	if err := types.LoadArgs(cniArgs, &env); err != nil {
		found := strings.ReplaceAll(err.Error(), "\n", `\n`) // it quotes values as they are
		return nil, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_ARGS: %q: %s", cniArgs, found), "")
	}
	for _, source := range []struct{ field, value string }{
		{"runtimeConfig.mac", d.RuntimeConfig.MAC},
		{"args.cni.mac", d.Args.CNI.MAC},
		{"CNI_ARGS MAC", string(env.MAC)},
	} {
		if source.value != "" {
			return parseMAC(source.field, source.value)
		}
	}
	return nil, nil
}

// dns are the settings that the runtime or the configuration asks for.
func (d document) dns() types.DNS {
	wanted := d.RuntimeConfig.DNS
	asked := types.DNS{Nameservers: wanted.Servers, Search: wanted.Searches, Options: wanted.Options}
	if !asked.IsEmpty() {
		return asked
	}
	return d.DNS
}

func parseMAC(field, value string) (net.HardwareAddr, error) {
	mac, err := link.ParseMAC(value)
	if err != nil {
		return nil, invalid("%s: %v", field, err)
	}
	return mac, nil
}

// decode is json.Unmarshal with errors for people.
func decode(data []byte, into any) error {
	err := json.Unmarshal(data, into)
	var wrongType *json.UnmarshalTypeError
	if errors.As(err, &wrongType) {
		return invalid("%s: a JSON %s is not allowed: it must be %s", wrongType.Field, wrongType.Value, inWords(wrongType.Type))
	}
	if err != nil {
		return types.NewError(types.ErrDecodingFailure, fmt.Sprintf("decode network configuration: %v", err), "")
	}
	return nil
}

// inWords is what JSON calls a Go type.
func inWords(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "a whole number"
	case reflect.String:
		return "a string"
	case reflect.Slice:
		return "a list"
	default:
		return "an object"
	}
}

func invalid(format string, args ...any) error {
	return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf(format, args...), "")
}
