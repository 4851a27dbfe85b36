package cni

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// FuzzConfiguration decodes configurations. One that is refused is so with a
// sentence on one line and a code of the specification, and DEL and GC, which
// take what they can get, read it without falling over.
func FuzzConfiguration(f *testing.F) {
	for _, keys := range []string{
		`{}`, `{"name": "net", "mode": "bridge"}`, `{"mode": "macvlan", "master": "eth0"}`, `{"mode": 1}`, `[]`, `{"ipam": {"type": "fairlead-ipam"}}`,
		`{"vlan": 100, "vlanTrunk": [{"minID": 1, "maxID": 4094}, {"id": 7}, {}], "isGateway": true}`,
		`{"ipMasq": true, "ipMasqBackend": "nftables", "nonMasqueradeCIDRs": ["10.0.0.0/8", "fd00::/8"]}`,
		`{"args": {"cni": {"mac": "02:00:00:00:00:01"}}, "runtimeConfig": {"mac": "", "dns": {"servers": ["::1"]}}}`,
		`{"cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}], "mtu": 1e9}`, `{"vlanTrunk": [null]}`,
	} {
		f.Add([]byte(keys), "IgnoreUnknown=1;MAC=02:00:00:00:00:02")
	}
	f.Fuzz(func(t *testing.T, stdin []byte, cniArgs string) {
		_, err := load(&skel.CmdArgs{StdinData: stdin, Args: cniArgs, Path: "/nowhere"})
		var coded *types.Error
		if err != nil && (!errors.As(err, &coded) || coded.Code == 0 || strings.Contains(err.Error(), "\n")) {
			t.Errorf("error %q", err)
		}
		if _, err := validAttachments(stdin); err != nil && !errors.As(err, &coded) {
			t.Errorf("error %q", err)
		}
	})
}

// FuzzPrevResult decodes results of other plugins. What is read of one must
// survive being written, and appending a result to it keeps both.
func FuzzPrevResult(f *testing.F) {
	for _, result := range []string{
		`{"cniVersion": "1.1.0", "interfaces": [{"name": "lo"}], "ips": [{"address": "127.0.0.1/8", "interface": 0}]}`,
		`{"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.9.0.2/24"}], "routes": [{"dst": "0.0.0.0/0"}]}`,
		`{"cniVersion": "0.2.0", "ip4": {"ip": "10.9.0.2/24"}}`, `null`, `{}`, `{"cniVersion": "1.1.0", "ips": [null]}`,
		`{"cniVersion": "1.1.0", "routes": [null]}`, `{"cniVersion": "1.1.0", "interfaces": [null]}`, `{"cniVersion": "1.1.0", "ips": [{}]}`,
		`{"cniVersion": "0.3.0", "routes": [{}]}`,
	} {
		f.Add([]byte(result))
	}
	own := &types100.Result{CNIVersion: types100.ImplementedSpecVersion, Interfaces: []*types100.Interface{{Name: "eth0"}},
		IPs: []*types100.IPConfig{{Interface: types100.Int(0)}}}
	f.Fuzz(func(t *testing.T, text []byte) {
		if !json.Valid(text) {
			return // decoding the configuration refused it
		}
		previous, err := document{PrevResult: text}.previous()
		if err != nil || previous == nil {
			return
		}
		all := after(previous, own)
		if index := *all.IPs[len(all.IPs)-1].Interface; all.Interfaces[index].Name != "eth0" {
			t.Errorf("the address is of interface %d of %v", index, all.Interfaces)
		}
		if diff := cmp.Diff(previous.IPs, all.IPs[:len(previous.IPs)], cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("addresses of others (-before +after):\n%s", diff)
		}
		written, err := json.Marshal(previous)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeResult(written)
		if err != nil {
			t.Fatalf("%v: %s", err, written)
		}
		if diff := cmp.Diff(previous, again, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("read again (-first +again):\n%s", diff)
		}
	})
}
