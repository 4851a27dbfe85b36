package hostlocal

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"
	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/ipam"
)

// configs are valid ones, and what they mean: First-Last gateway, sets apart by
// semicolons.
var configs = []struct {
	name, stdin, want string
}{
	{"first form", `{"ipam": {"subnet": "10.1.2.0/24"}}`, "10.1.2.1-10.1.2.254 10.1.2.1"},
	{
		"first form with everything",
		`{"ipam": {"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.20", "gateway": "10.1.2.30"}}`,
		"10.1.2.9-10.1.2.20 10.1.2.30",
	},
	{"first form without its subnet", `{"ipam": {"rangeStart": "1.2.3.4", "ranges": [[{"subnet": "10.1.2.0/24"}]]}}`, "10.1.2.1-10.1.2.254 10.1.2.1"},
	{"dual stack", `{"ipam": {"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1::/64"}]]}}`,
		"10.1.2.1-10.1.2.254 10.1.2.1; fd00:1::1-fd00:1::ffff:ffff:ffff:ffff fd00:1::1"},
	{"several ranges in a set", `{"ipam": {"ranges": [[{"subnet": "10.1.2.0/24", "rangeEnd": "10.1.2.9"}, {"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.20"}, {"subnet": "10.9.0.0/30"}]]}}`,
		"10.1.2.1-10.1.2.9 10.1.2.1, 10.1.2.20-10.1.2.254 10.1.2.1, 10.9.0.1-10.9.0.2 10.9.0.1"},
	{"order of sources", `{"cniVersion": "1.0.0", "runtimeConfig": {"ipRanges": [[{"subnet": "10.3.0.0/30"}]]}, "ipam": {"ranges": [[{"subnet": "10.1.0.0/30"}]], "subnet": "10.2.0.0/30"}}`,
		"10.3.0.1-10.3.0.2 10.3.0.1; 10.2.0.1-10.2.0.2 10.2.0.1; 10.1.0.1-10.1.0.2 10.1.0.1"},
	{"runtime only", `{"runtimeConfig": {"ipRanges": [[{"subnet": "10.3.0.0/30"}]]}, "ipam": {}}`, "10.3.0.1-10.3.0.2 10.3.0.1"},
	{"empty and null values are none", `{"ipam": {"subnet": "10.1.2.0/30", "rangeStart": "", "rangeEnd": null, "gateway": "", "routes": null}}`, "10.1.2.1-10.1.2.2 10.1.2.1"},
	{"network and broadcast as bounds", `{"ipam": {"subnet": "10.1.2.0/30", "rangeStart": "10.1.2.0", "rangeEnd": "10.1.2.3"}}`, "10.1.2.0-10.1.2.3 10.1.2.1"},
	{"IPv4 in IPv6 form", `{"ipam": {"subnet": "10.1.2.0/24", "rangeStart": "::ffff:10.1.2.4", "gateway": "::ffff:10.1.2.9"}}`, "10.1.2.4-10.1.2.254 10.1.2.9"},
	{"half of IPv6", `{"ipam": {"subnet": "8000::/1"}}`, "8000::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 8000::1"},
	{"smallest subnets", `{"ipam": {"ranges": [[{"subnet": "10.1.2.4/30"}], [{"subnet": "fd00::8/126"}]]}}`, "10.1.2.5-10.1.2.6 10.1.2.5; fd00::9-fd00::b fd00::9"},
}

func text(sets []ipam.Set) string {
	var texts []string
	for _, set := range sets {
		var ranges []string
		for _, r := range set {
			ranges = append(ranges, fmt.Sprintf("%s-%s %s", r.First, r.Last, r.Gateway))
		}
		texts = append(texts, strings.Join(ranges, ", "))
	}
	return strings.Join(texts, "; ")
}

// reference is what host-local itself makes of a configuration.
func reference(stdin, env string) (string, error) {
	conf, _, err := allocator.LoadIPAMConfig([]byte(stdin), env)
	if err != nil {
		return "", err
	}
	var sets []ipam.Set
	for _, refSet := range conf.Ranges {
		var set ipam.Set
		for _, r := range refSet {
			set = append(set, ipam.Range{First: unmapped(r.RangeStart), Last: unmapped(r.RangeEnd), Gateway: unmapped(r.Gateway)})
		}
		sets = append(sets, set)
	}
	return text(sets), nil
}

func unmapped(ip []byte) netip.Addr {
	addr, _ := netip.AddrFromSlice(ip)
	return addr.Unmap()
}

func TestConfig(t *testing.T) {
	for _, tt := range configs {
		t.Run(tt.name, func(t *testing.T) {
			got, err := decodeAddition(&skel.CmdArgs{StdinData: []byte(tt.stdin)})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, text(got.sets)); diff != "" {
				t.Errorf("sets: -want +got\n%s", diff)
			}
			want, err := reference(tt.stdin, "")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, text(got.sets)); diff != "" {
				t.Errorf("sets: -host-local +got\n%s", diff)
			}
		})
	}
}

func TestConfigErrors(t *testing.T) {
	for _, tt := range []struct {
		name, stdin, env string
		want             string // the message; the code is 7 where codes says no other
	}{
		{"no JSON", `{"ipam": `, "", "decode network configuration: unexpected end of JSON input"},
		{"no ipam", `{"name": "x"}`, "", "ipam: no value is not allowed: it must be an object with at least a subnet, ranges or pools"},
		{"ipam a string", `{"ipam": "host-local"}`, "", "ipam: a JSON string is not allowed: it must be an object"},
		{"no ranges", `{"ipam": {}}`, "", "ipam.ranges: no value is not allowed: there must be at least one range, here or as ipam.subnet, or a pool in ipam.pools"},
		{"an empty set", `{"ipam": {"ranges": [[{"subnet": "10.1.0.0/16"}], []]}}`, "", "ipam.ranges[1]: an empty list is not allowed: it must be ranges to choose from"},
		{"a list of ranges, not of sets", `{"ipam": {"ranges": [{"subnet": "10.1.0.0/16"}]}}`, "", "ipam.ranges: a JSON object is not allowed: it must be a list"},
		{"no subnet", `{"ipam": {"ranges": [[{"rangeStart": "10.1.0.1"}]]}}`, "", "ipam.ranges[0][0].subnet: no value is not allowed: it must be a subnet, such as 10.1.2.0/24 or fd00:1::/64"},
		{"subnet a number", `{"ipam": {"subnet": 10.1}}`, "", "ipam.subnet: 10.1 is not allowed: it must be a subnet, such as 10.1.2.0/24 or fd00:1::/64"},
		{"subnet without length", `{"ipam": {"subnet": "10.1.0.0"}}`, "", `ipam.subnet: "10.1.0.0" is not allowed: it must be a subnet, such as 10.1.2.0/24 or fd00:1::/64`},
		{"subnet in IPv6 form", `{"ipam": {"subnet": "::ffff:10.1.0.0/112"}}`, "", `ipam.subnet: "::ffff:10.1.0.0/112" is not allowed: it must be a subnet, such as 10.1.2.0/24 or fd00:1::/64`},
		{"host bits", `{"ipam": {"subnet": "10.1.2.3/24"}}`, "", "ipam.subnet: 10.1.2.3/24 has host bits set: the subnet is 10.1.2.0/24"},
		{"too small", `{"ipam": {"subnet": "10.1.2.2/31"}}`, "", "ipam.subnet: 10.1.2.2/31 is too small: it must have room for hosts, which /30 has"},
		{"too small for IPv6", `{"ipam": {"subnet": "fd00::/127"}}`, "", "ipam.subnet: fd00::/127 is too small: it must have room for hosts, which /126 has"},
		{"rangeEnd elsewhere", `{"ipam": {"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "10.1.1.0/24", "rangeEnd": "10.1.2.9"}]]}}`, "", "ipam.ranges[0][1].rangeEnd: 10.1.2.9 is not in subnet 10.1.1.0/24"},
		{"rangeStart of the other family", `{"ipam": {"subnet": "10.1.1.0/24", "rangeStart": "fd00::1"}}`, "", "ipam.rangeStart: fd00::1 is not in subnet 10.1.1.0/24"},
		{"rangeStart no address", `{"ipam": {"subnet": "10.1.1.0/24", "rangeStart": ["10.1.1.4"]}}`, "", `ipam.rangeStart: ["10.1.1.4"] is not allowed: it must be an address of 10.1.1.0/24`},
		{"zone", `{"ipam": {"subnet": "fe80::/64", "rangeStart": "fe80::1%eth0"}}`, "", `ipam.rangeStart: "fe80::1%eth0" is not allowed: it must be an address of fe80::/64`},
		{"end before start", `{"ipam": {"subnet": "10.1.1.0/24", "rangeStart": "10.1.1.9", "rangeEnd": "10.1.1.5"}}`, "", "ipam.rangeEnd: 10.1.1.5 is before rangeStart 10.1.1.9"},
		{"gateway elsewhere", `{"runtimeConfig": {"ipRanges": [[{"subnet": "10.1.1.0/24", "gateway": "10.1.2.1"}]]}, "ipam": {}}`, "", "runtimeConfig.ipRanges[0][0].gateway: 10.1.2.1 is not in subnet 10.1.1.0/24"},
		{"two families in a set", `{"ipam": {"ranges": [[{"subnet": "10.1.0.0/16"}, {"subnet": "fd00::/64"}]]}}`, "", "ipam.ranges[0][1].subnet: fd00::/64 is not of the family of 10.1.0.0/16, which the set begins with"},
		{"overlap in a set", `{"ipam": {"ranges": [[{"subnet": "10.1.0.0/16"}, {"subnet": "10.1.7.0/24"}]]}}`, "", "ipam.ranges[0][1]: 10.1.7.0/24 overlaps 10.1.0.0/16 of ipam.ranges[0][0]"},
		{"overlap between sets", `{"ipam": {"subnet": "10.1.0.0/16", "ranges": [[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9"}]]}}`, "", "ipam.ranges[0][0]: 10.1.0.9-10.1.0.254 overlaps 10.1.0.0/16 of ipam"},
		{"route no object", `{"ipam": {"subnet": "10.1.0.0/16", "routes": ["0.0.0.0/0"]}}`, "", "ipam.routes[0]: a JSON string is not allowed: it must be an object"},
		{"route without dst", `{"ipam": {"subnet": "10.1.0.0/16", "routes": [{"gw": "10.1.0.1"}]}}`, "", "ipam.routes[0].dst: no value is not allowed: it must be a destination, such as 0.0.0.0/0 or fd00::/8"},
		{"route by a subnet", `{"ipam": {"subnet": "10.1.0.0/16", "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1/16"}]}}`, "", `ipam.routes[0].gw: "10.1.0.1/16" is not allowed: it must be an address`},
		{"route with a word for mtu", `{"ipam": {"subnet": "10.1.0.0/16", "routes": [{"dst": "0.0.0.0/0"}, {"dst": "0.0.0.0/0", "mtu": "big"}]}}`, "", "ipam.routes[1].mtu: a JSON string is not allowed: it must be a whole number"},
		{"resolvConf a list", `{"ipam": {"subnet": "10.1.0.0/16", "resolvConf": []}}`, "", "ipam.resolvConf: a JSON array is not allowed: it must be a string"},
		{"cooldown a number", `{"ipam": {"subnet": "10.1.0.0/16", "cooldown": 30}}`, "", "ipam.cooldown: 30 is not allowed: it must be a duration, such as 30s or 5m"},
		{"cooldown without a unit", `{"ipam": {"subnet": "10.1.0.0/16", "cooldown": "30"}}`, "", `ipam.cooldown: "30" is not allowed: it must be a duration, such as 30s or 5m`},
		{"cooldown negative", `{"ipam": {"subnet": "10.1.0.0/16", "cooldown": "-1s"}}`, "", `ipam.cooldown: "-1s" is not allowed: it must be a duration, such as 30s or 5m`},
		{"sticky a word", `{"ipam": {"subnet": "10.1.0.0/16", "sticky": "yes"}}`, "", "ipam.sticky: a JSON string is not allowed: it must be true or false"},
		{"ips of the runtime", `{"runtimeConfig": {"ips": ["10.1.0.5", true]}, "ipam": {"subnet": "10.1.0.0/16"}}`, "", "runtimeConfig.ips[1]: true is not allowed: it must be an address, such as 10.1.2.3 or 10.1.2.3/24"},
		{"ips of args", `{"args": {"cni": {"ips": ["10.1.0"]}}, "ipam": {"subnet": "10.1.0.0/16"}}`, "", `args.cni.ips[0]: "10.1.0" is not allowed: it must be an address, such as 10.1.2.3 or 10.1.2.3/24`},
		{"IP of CNI_ARGS", `{"ipam": {"subnet": "10.1.0.0/16"}}`, "IP=10.1.0.256", `CNI_ARGS IP: "10.1.0.256" is not allowed: it must be an address, such as 10.1.2.3 or 10.1.2.3/24`},
		{"unknown in CNI_ARGS", `{"ipam": {"subnet": "10.1.0.0/16"}}`, "COLOUR=red", `CNI_ARGS: "COLOUR=red": ARGS: unknown args ["COLOUR=red"]`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := decodeAddition(&skel.CmdArgs{StdinData: []byte(tt.stdin), Args: tt.env})
			var coded *types.Error
			if !errors.As(err, &coded) {
				t.Fatalf("got error %v, want a *types.Error", err)
			}
			want := map[string]uint{"no JSON": 6, "IP of CNI_ARGS": 4, "unknown in CNI_ARGS": 4}[tt.name]
			if want == 0 {
				want = 7
			}
			if coded.Msg != tt.want || coded.Code != want {
				t.Errorf("got error %d %q\nwant      %d %q", coded.Code, coded.Msg, want, tt.want)
			}
		})
	}
}

func TestStoreConfigErrors(t *testing.T) {
	for _, tt := range []struct{ name, stdin, want string }{
		{"dataDir relative", `{"name": "x", "ipam": {"dataDir": "data"}}`, `ipam.dataDir: "data" is not allowed: it must be an absolute path`},
		{"dataDir a number", `{"name": "x", "ipam": {"dataDir": 7}}`, "ipam.dataDir: a JSON number is not allowed: it must be a string"},
		{"name a path", `{"name": "../x"}`, `name: network name "../x" is not allowed: it must be letters, digits and _.-, of which the first is a letter or digit`},
		{"no name", `{}`, `name: network name "" is not allowed: it must be letters, digits and _.-, of which the first is a letter or digit`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := openStore([]byte(tt.stdin))
			var coded *types.Error
			if !errors.As(err, &coded) || coded.Msg != tt.want || coded.Code != types.ErrInvalidNetworkConfig {
				t.Errorf("got error %v, want %s", err, tt.want)
			}
		})
	}
}

func TestWanted(t *testing.T) {
	const subnet = `"ipam": {"subnet": "10.1.0.0/16", "ranges": [[{"subnet": "fd00::/64"}]]}`
	for _, tt := range []struct{ name, stdin, env, want string }{
		{"nothing", `{` + subnet + `}`, "", "[]"},
		{"the runtime's", `{"runtimeConfig": {"ips": ["10.1.0.5/16", "fd00::5"]}, ` + subnet + `}`, "", "[10.1.0.5 fd00::5]"},
		{"args", `{"args": {"cni": {"ips": ["10.1.0.6"]}}, ` + subnet + `}`, "", "[10.1.0.6]"},
		{"CNI_ARGS", `{` + subnet + `}`, "IgnoreUnknown=1;IP=::ffff:10.1.0.7", "[10.1.0.7]"},
		{"args before CNI_ARGS", `{"args": {"cni": {"ips": ["10.1.0.6"]}}, ` + subnet + `}`, "IP=10.1.0.7", "[10.1.0.6]"},
		{"CNI_ARGS beside the runtime's", `{"runtimeConfig": {"ips": ["fd00::5"]}, ` + subnet + `}`, "IP=10.1.0.7", "[fd00::5 10.1.0.7]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := decodeAddition(&skel.CmdArgs{StdinData: []byte(tt.stdin), Args: tt.env})
			if err != nil {
				t.Fatal(err)
			}
			if fmt.Sprint(got.wanted) != tt.want {
				t.Errorf("got %s, want %s", got.wanted, tt.want)
			}
		})
	}
}

func TestCooldown(t *testing.T) {
	for _, tt := range []struct {
		stdin string
		want  time.Duration
	}{
		{`{"ipam": {"subnet": "10.1.0.0/16"}}`, 30 * time.Second},
		{`{"ipam": {"subnet": "10.1.0.0/16", "cooldown": null}}`, 30 * time.Second},
		{`{"ipam": {"subnet": "10.1.0.0/16", "cooldown": "5m"}}`, 5 * time.Minute},
		{`{"ipam": {"subnet": "10.1.0.0/16", "cooldown": "0s"}}`, 0},
	} {
		got, err := decodeAddition(&skel.CmdArgs{StdinData: []byte(tt.stdin)})
		if err != nil || got.cooldown != tt.want {
			t.Errorf("%s: got %v and error %v, want %s", tt.stdin, got, err, tt.want)
		}
	}
}

// FuzzConfig expects of any configuration a valid range for each that it names,
// the same as host-local's, or an error with a code.
func FuzzConfig(f *testing.F) {
	for _, c := range configs {
		f.Add(c.stdin, "IgnoreUnknown=1;IP=10.1.2.5;K8S_POD_NAME=x")
	}
	f.Add(`{"ipam": {"ranges": [[{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9"}], [{"subnet": "10.1.2.0/24", "rangeEnd": "10.1.2.8"}]], "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.2.1", "mtu": 1400, "table": 7}]}, "args": {"cni": {"ips": ["10.1.2.7/24"]}}}`, "CommonArgs=1")
	f.Fuzz(func(t *testing.T, stdin, env string) {
		got, err := decodeAddition(&skel.CmdArgs{StdinData: []byte(stdin), Args: env})
		if coded := (*types.Error)(nil); err != nil {
			if !errors.As(err, &coded) || coded.Code == 0 || coded.Msg == "" {
				t.Fatalf("got error %v, want a *types.Error with code and message", err)
			}
			return
		}
		if len(got.sets) == 0 {
			t.Fatal("no set and no error")
		}
		for _, set := range got.sets {
			for _, r := range set {
				if !r.Subnet.Contains(r.First) || !r.Subnet.Contains(r.Last) || !r.Subnet.Contains(r.Gateway) || r.Last.Less(r.First) {
					t.Fatalf("invalid range %+v", r)
				}
			}
		}
		if want, err := reference(stdin, env); err == nil && want != text(got.sets) {
			t.Fatalf("sets: got %s, host-local's are %s", text(got.sets), want)
		}
		if _, err := json.Marshal(got.routes); err != nil {
			t.Fatalf("encode routes: %v", err)
		}
	})
}
