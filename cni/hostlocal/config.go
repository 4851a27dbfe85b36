package hostlocal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/fairlead/fairlead/ipam"
	"github.com/fairlead/fairlead/ipam/disk"
)

// storeConf is the part of a network's configuration that every verb reads.
type storeConf struct {
	CNIVersion string          `json:"cniVersion"`
	Name       string          `json:"name"`
	PrevResult json.RawMessage `json:"prevResult"`
	IPAM       struct {
		DataDir string `json:"dataDir"`
	} `json:"ipam"`
}

// openStore returns the network's store and the part of the configuration that
// says where it is.
func openStore(stdin []byte) (*disk.Store, storeConf, error) {
	var conf storeConf
	if err := decode("", stdin, &conf); err != nil {
		return nil, conf, err
	}
	if conf.IPAM.DataDir == "" {
		conf.IPAM.DataDir = disk.DefaultDir
	}
	if !filepath.IsAbs(conf.IPAM.DataDir) {
		return nil, conf, invalid("ipam.dataDir", "%q is not allowed: it must be an absolute path", conf.IPAM.DataDir)
	}
	store, err := disk.New(conf.IPAM.DataDir, conf.Name)
	if err != nil {
		return nil, conf, invalid("name", "%v", err)
	}
	return store, conf, nil
}

// prevResult returns nil when the configuration has none.
func (c storeConf) prevResult() (*types100.Result, error) {
	if c.PrevResult == nil || bytes.Equal(c.PrevResult, []byte("null")) {
		return nil, nil
	}
	result, err := version.NewResult(c.CNIVersion, c.PrevResult)
	if err != nil {
		return nil, invalid("prevResult", "%v", err)
	}
	current, err := types100.NewResultFromResult(result)
	if err != nil {
		return nil, invalid("prevResult", "%v", err)
	}
	return current, nil
}

// addConf is the part that only ADD and STATUS read. Addresses are of any JSON type here,
// so that an error about one can show its path and its value.
type addConf struct {
	IPAM *struct {
		rangeConf                    // host-local's first form, with one range
		Ranges     [][]rangeConf     `json:"ranges"`
		Routes     []json.RawMessage `json:"routes"`
		ResolvConf string            `json:"resolvConf"`
		Cooldown   any               `json:"cooldown"`
		Sticky     bool              `json:"sticky"`
		Pools      []any             `json:"pools"`
	} `json:"ipam"`
	RuntimeConfig struct {
		IPRanges [][]rangeConf `json:"ipRanges"`
		IPs      []any         `json:"ips"`
	} `json:"runtimeConfig"`
	Args struct {
		CNI struct {
			IPs []any `json:"ips"`
		} `json:"cni"`
	} `json:"args"`
}

// addition is what an ADD is to do, validated.
type addition struct {
	sets       []ipam.Set
	pools      []string // of each of which an address is given after those of sets
	routes     []*types.Route
	resolvConf string
	wanted     []netip.Addr
	pod        string // namespace/name, "" when the runtime does not say
	cooldown   time.Duration
	sticky     bool
}

// decodeAddition decodes and validates. Every error is a *types.Error that names
// the field, its value and what is allowed.
func decodeAddition(args *skel.CmdArgs) (*addition, error) {
	var conf addConf
	if err := decode("", args.StdinData, &conf); err != nil {
		return nil, err
	}
	if conf.IPAM == nil {
		return nil, invalid("ipam", "no value is not allowed: it must be an object with at least a subnet, ranges or pools")
	}
	env, err := decodeEnv(args.Args)
	if err != nil {
		return nil, err
	}
	a := &addition{resolvConf: conf.IPAM.ResolvConf, pod: env.pod, sticky: conf.IPAM.Sticky}
	if a.pools, err = conf.pools(); err != nil {
		return nil, err
	}
	if a.sets, err = conf.sets(); err != nil {
		return nil, err
	}
	if a.routes, err = decodeRoutes(conf.IPAM.Routes); err != nil {
		return nil, err
	}
	if a.cooldown, err = parseCooldown(conf.IPAM.Cooldown); err != nil {
		return nil, err
	}
	a.wanted, err = conf.wanted(env)
	return a, err
}

// defaultCooldown is as long as a Linux neighbour holds an entry for reachable
// after it heard of it (base_reachable_time), and then asks again.
const defaultCooldown = 30 * time.Second

func parseCooldown(value any) (time.Duration, error) {
	if value == nil {
		return defaultCooldown, nil
	}
	text, _ := value.(string)
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, invalid("ipam.cooldown", "%s is not allowed: it must be a duration, such as 30s or 5m", shown(value))
	}
	return d, nil
}

// wanted is the addresses that the runtime requests. Where args.cni.ips is given
// the one in CNI_ARGS is not: so CNI's conventions have it.
func (c addConf) wanted(env environment) ([]netip.Addr, error) {
	sources := []struct {
		path string
		ips  []any
	}{
		{"runtimeConfig.ips", c.RuntimeConfig.IPs},
		{"args.cni.ips", c.Args.CNI.IPs},
	}
	var wanted []netip.Addr
	for _, source := range sources {
		for i, ip := range source.ips {
			addr, err := parseIP(fmt.Sprintf("%s[%d]", source.path, i), ip)
			if err != nil {
				return nil, err
			}
			wanted = append(wanted, addr)
		}
	}
	if env.ip.IsValid() && len(c.Args.CNI.IPs) == 0 {
		wanted = append(wanted, env.ip)
	}
	return wanted, nil
}

// parseIP takes an address that may carry the length of its subnet, which the
// range knows better.
func parseIP(path string, value any) (netip.Addr, error) {
	text, _ := value.(string)
	if prefix, err := netip.ParsePrefix(text); err == nil {
		return prefix.Addr().Unmap(), nil
	}
	return parseAddr(path, value, "an address, such as 10.1.2.3 or 10.1.2.3/24")
}

func parseAddr(path string, value any, want string) (netip.Addr, error) {
	text, _ := value.(string)
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" {
		return addr, invalid(path, "%s is not allowed: it must be %s", shown(value), want)
	}
	return addr.Unmap(), nil
}

// decode is json.Unmarshal with errors for people; path is where in
// the configuration data stands, "" for all of it.
func decode(path string, data []byte, into any) error {
	err := json.Unmarshal(data, into)
	var wrongType *json.UnmarshalTypeError
	if errors.As(err, &wrongType) {
		return invalid(strings.Trim(path+"."+wrongType.Field, "."), "a JSON %s is not allowed: it must be %s", wrongType.Value, inWords(wrongType.Type))
	}
	if err != nil {
		return types.NewError(types.ErrDecodingFailure, fmt.Sprintf("decode network configuration: %v", err), "")
	}
	return nil
}

// inWords is what JSON calls a Go type.
func inWords(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Slice:
		return "a list"
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "a whole number"
	default:
		return "an object"
	}
}

// shown is a value as the configuration has it.
func shown(value any) string {
	if value == nil {
		return "no value"
	}
	text, err := json.Marshal(value)
	if err != nil { // it was decoded from JSON
		return fmt.Sprint(value)
	}
	return string(text)
}
