package cni_test

import (
	"encoding/json"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

// TestConfigurationIsRefused has values that are not allowed. Each error names
// the field, the value and what is allowed, and nothing is changed.
func TestConfigurationIsRefused(t *testing.T) {
	const invalid = types.ErrInvalidNetworkConfig
	tests := map[string]struct {
		keys     string // JSON
		args     string
		wantCode uint
		want     string
	}{
		"mode":                  {keys: `{"mode": "macvtap"}`, wantCode: invalid, want: `mode: "macvtap" is unknown: it must be "bridge" or "macvlan"`},
		"mode of wrong type":    {keys: `{"mode": 1}`, wantCode: invalid, want: `mode: a JSON number is not allowed: it must be a string`},
		"bridge with a slash":   {keys: `{"bridge": "a/b"}`, wantCode: invalid, want: `bridge: "a/b" is not the name of an interface: 1 to 15 characters are allowed, none of them / or : or a space`},
		"bridge too long":       {keys: `{"bridge": "a234567890123456"}`, wantCode: invalid, want: `bridge: "a234567890123456" is not the name of an interface: 1 to 15 characters are allowed, none of them / or : or a space`},
		"mtu too small":         {keys: `{"mtu": 67}`, wantCode: invalid, want: `mtu: 67 is out of range: 0 (the kernel's default) or 68 to 65535 is allowed`},
		"mtu too large":         {keys: `{"mtu": 65536}`, wantCode: invalid, want: `mtu: 65536 is out of range: 0 (the kernel's default) or 68 to 65535 is allowed`},
		"mtu negative":          {keys: `{"mtu": -1}`, wantCode: invalid, want: `mtu: -1 is out of range: 0 (the kernel's default) or 68 to 65535 is allowed`},
		"mtu as text":           {keys: `{"mtu": "1500"}`, wantCode: invalid, want: `mtu: a JSON string is not allowed: it must be a whole number`},
		"isGateway as text":     {keys: `{"isGateway": "yes"}`, wantCode: invalid, want: `isGateway: a JSON string is not allowed: it must be true or false`},
		"hairpin and promisc":   {keys: `{"hairpinMode": true, "promiscMode": true}`, wantCode: invalid, want: `promiscMode: true is not allowed together with hairpinMode: true: pods would get frames twice`},
		"prevResult of no kind": {keys: `{"prevResult": {"cniVersion": "9.9"}}`, wantCode: invalid, want: `prevResult: decode result: unsupported CNI result version "9.9"`},
		"dns of the runtime":    {keys: `{"runtimeConfig": {"dns": {"servers": "10.9.0.53"}}}`, wantCode: invalid, want: `runtimeConfig.dns.servers: a JSON string is not allowed: it must be a list`},
		"dns of wrong type":     {keys: `{"dns": {"nameservers": "10.9.0.53"}}`, wantCode: invalid, want: `dns.nameservers: a JSON string is not allowed: it must be a list`},
		"ipam without type":     {keys: `{"ipam": {"subnet": "10.9.0.0/24"}}`, wantCode: invalid, want: `ipam.type: no value is not allowed: it must be the name of a plugin, or ipam be left out`},
		"ipam type of 1":        {keys: `{"ipam": {"type": 1}}`, wantCode: invalid, want: `ipam.type: 1 is not allowed: it must be the name of a plugin, or ipam be left out`},
		"ipam as text":          {keys: `{"ipam": "host-local"}`, wantCode: invalid, want: `ipam: a JSON string is not allowed: it must be an object`},
		"ipam type with path":   {keys: `{"ipam": {"type": "../x"}}`, wantCode: invalid, want: `ipam.type: "../x" is not allowed: it must be the name of a file, without a path`},
		"ipam type of no file":  {keys: `{"ipam": {"type": "x"}}`, wantCode: invalid, want: `ipam.type: there is no plugin "x" in CNI_PATH (/nowhere)`},
		"mac of the runtime":    {keys: `{"runtimeConfig": {"mac": "02:00"}}`, wantCode: invalid, want: `runtimeConfig.mac: "02:00" is not allowed: it must be the hardware address of one host, like 0a:58:0a:f4:01:05`},
		"mac of a group":        {keys: `{"args": {"cni": {"mac": "01:00:5e:00:00:01"}}}`, wantCode: invalid, want: `args.cni.mac: "01:00:5e:00:00:01" is not allowed: it must be the hardware address of one host, like 0a:58:0a:f4:01:05`},
		"mac of nobody":         {args: "MAC=00:00:00:00:00:00", wantCode: invalid, want: `CNI_ARGS MAC: "00:00:00:00:00:00" is not allowed: it must be the hardware address of one host, like 0a:58:0a:f4:01:05`},
		"mac of InfiniBand":     {args: "MAC=02:00:5e:10:00:00:00:01", wantCode: invalid, want: `CNI_ARGS MAC: "02:00:5e:10:00:00:00:01" is not allowed: it must be the hardware address of one host, like 0a:58:0a:f4:01:05`},
		"unknown argument":      {args: "FOO=bar", wantCode: types.ErrInvalidEnvironmentVariables, want: `CNI_ARGS: "FOO=bar": ARGS: unknown args ["FOO=bar"]`},
		"broken argument":       {args: "MAC", wantCode: types.ErrInvalidEnvironmentVariables, want: `CNI_ARGS: "MAC": ARGS: invalid pair "MAC"`},

		"disableContainerInterface": {keys: `{"disableContainerInterface": true, "ipam": {"type": "fairlead-ipam"}}`, wantCode: invalid, want: `disableContainerInterface: true is not allowed together with ipam: an interface that is down has no use for addresses`},
		"vlan of wrong type":        {keys: `{"vlan": "100"}`, wantCode: invalid, want: `vlan: a JSON string is not allowed: it must be a whole number`},
		"vlan too large":            {keys: `{"vlan": 4095}`, wantCode: invalid, want: `vlan: 4095 is out of range: 0 (no VLAN) to 4094 is allowed`},
		"vlan negative":             {keys: `{"vlan": -1}`, wantCode: invalid, want: `vlan: -1 is out of range: 0 (no VLAN) to 4094 is allowed`},
		"vlan of a long name":       {keys: `{"vlan": 4000, "isGateway": true, "bridge": "abcdefghijk"}`, wantCode: invalid, want: `bridge: "abcdefghijk" is too long for a gateway in a VLAN, whose interface would be "abcdefghijk.4000": 15 characters are allowed`},
		"vlanTrunk as object":       {keys: `{"vlanTrunk": {"id": 7}}`, wantCode: invalid, want: `vlanTrunk: a JSON object is not allowed: it must be a list`},
		"vlanTrunk of text":         {keys: `{"vlanTrunk": [{"id": "7"}]}`, wantCode: invalid, want: `vlanTrunk.id: a JSON string is not allowed: it must be a whole number`},
		"vlanTrunk id 0":            {keys: `{"vlanTrunk": [{"id": 7}, {"id": 0}]}`, wantCode: invalid, want: `vlanTrunk[1].id: 0 is out of range: 1 to 4094 is allowed`},
		"vlanTrunk id too large":    {keys: `{"vlanTrunk": [{"minID": 7, "maxID": 5000}]}`, wantCode: invalid, want: `vlanTrunk[0].maxID: 5000 is out of range: 1 to 4094 is allowed`},
		"vlanTrunk without minID":   {keys: `{"vlanTrunk": [{"maxID": 7}]}`, wantCode: invalid, want: `vlanTrunk[0]: minID and maxID are allowed only together`},
		"vlanTrunk without maxID":   {keys: `{"vlanTrunk": [{"minID": 7}]}`, wantCode: invalid, want: `vlanTrunk[0]: minID and maxID are allowed only together`},
		"vlanTrunk backwards":       {keys: `{"vlanTrunk": [{"minID": 7, "maxID": 6}]}`, wantCode: invalid, want: `vlanTrunk[0]: minID 7 is larger than maxID 6`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			node, pod, conf := newNode(t), newPod(t, "pod"), newNetwork(t)
			node.path, pod.args = "/nowhere", tt.args
			if tt.keys != "" {
				if err := json.Unmarshal([]byte(tt.keys), &conf); err != nil {
					t.Fatal(err)
				}
			}
			host, inPod := dump(t, node.ns), dump(t, pod.ns)
			_, err := node.add(pod, conf)
			if text(err) != tt.want || code(err) != tt.wantCode {
				t.Errorf("code  %d, error %v\nwant  %d, %s", code(err), err, tt.wantCode, tt.want)
			}
			compare(t, "host", host, dump(t, node.ns))
			compare(t, "pod", inPod, dump(t, pod.ns))
		})
	}
}

// TestKeysThatChangeNothing are keys of the reference plugin at their defaults,
// as tools write them.
func TestKeysThatChangeNothing(t *testing.T) {
	conf := newNetwork(t)
	keys := `{"mode": "bridge", "bridge": "", "isGateway": false, "ipMasq": false, "ipMasqBackend": "nftables", "mtu": 0, "vlan": 0,
		"capabilities": {"mac": true}, "runtimeConfig": {}, "args": {"cni": {}}, "prevResult": {"cniVersion": "1.1.0"}}`
	if err := json.Unmarshal([]byte(keys), &conf); err != nil {
		t.Fatal(err)
	}
	newNode(t).addT(t, newPod(t, "pod"), conf)
}
