package hostlocal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/fairlead/fairlead/e2e/golden"
)

// node is a machine with the plugin on it.
type node struct {
	*Plugin
	t       *testing.T
	boot    string
	dataDir string
	network string // the configuration without name and dataDir
}

func newNode(t *testing.T, network string) *node {
	n := &node{t: t, boot: "first", dataDir: filepath.Join(t.TempDir(), "data"), network: network}
	n.Plugin = &Plugin{
		BootID: func() (string, error) { return n.boot, nil },
		Now:    func() time.Time { return time.Unix(1_700_000_000, 0) },
	}
	return n
}

// args are those of a pod's interface eth0, with more keys of the configuration.
func (n *node) args(id string, more map[string]any) *skel.CmdArgs {
	n.t.Helper()
	conf := map[string]any{"name": "testnet"}
	if err := json.Unmarshal([]byte(n.network), &conf); err != nil {
		n.t.Fatal(err)
	}
	if section, ok := conf["ipam"].(map[string]any); ok {
		section["dataDir"] = n.dataDir
	}
	for key, value := range more {
		conf[key] = value
	}
	stdin, err := json.Marshal(conf)
	if err != nil {
		n.t.Fatal(err)
	}
	return &skel.CmdArgs{ContainerID: id, IfName: "eth0", Netns: "/run/netns/" + id, StdinData: stdin}
}

// add returns the addresses that a pod got, as one text.
func (n *node) add(id string, more map[string]any) (string, error) {
	n.t.Helper()
	result, err := n.Add(n.t.Context(), n.args(id, more))
	if err != nil {
		return "", err
	}
	var texts []string
	for _, c := range result.IPs {
		texts = append(texts, c.Address.String())
	}
	return strings.Join(texts, " "), nil
}

func (n *node) expect(id, want string) {
	n.t.Helper()
	if got, err := n.add(id, nil); got != want || err != nil {
		n.t.Fatalf("%s got %q and error %v, want %q", id, got, err, want)
	}
}

func (n *node) del(id string) {
	n.t.Helper()
	if err := n.Del(n.t.Context(), n.args(id, nil)); err != nil {
		n.t.Fatal(err)
	}
}

// expectError wants a *types.Error.
func expectError(t *testing.T, err error, code uint, msg string) {
	t.Helper()
	var coded *types.Error
	if !errors.As(err, &coded) || coded.Code != code || coded.Msg != msg {
		t.Errorf("got error %#v\nwant %d %q", err, code, msg)
	}
}

func TestResult(t *testing.T) {
	const resolvConf = "# made by hand\nnameserver 10.96.0.10\nnameserver fd00::a\ndomain cluster.local\nsearch svc.cluster.local cluster.local\noptions ndots:5 edns0\nsortlist 10.0.0.0\nnameserver\n"
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, []byte(resolvConf), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, network string }{
		{"one-address-1.1.0", `{"cniVersion": "1.1.0", "ipam": {"subnet": "10.244.1.0/24"}}`},
		{"everything-1.1.0", `{"cniVersion": "1.1.0", "ipam": {
			"ranges": [[{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.20", "gateway": "10.244.1.254"}], [{"subnet": "fd00:1::/64"}]],
			"routes": [{"dst": "0.0.0.0/0"}, {"dst": "fd00::/8", "gw": "fd00:1::1", "mtu": 1400, "advmss": 1340, "priority": 7, "table": 0, "scope": 253}],
			"resolvConf": "` + path + `"}}`},
		{"dual-stack-0.3.1", `{"cniVersion": "0.3.1", "ipam": {
			"ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:1::/64"}]], "routes": [{"dst": "0.0.0.0/0"}]}}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, tt.network)
			result, err := n.Add(t.Context(), n.args("pod", nil))
			if err != nil {
				t.Fatal(err)
			}
			converted, err := result.GetAsVersion(tt.name[strings.LastIndex(tt.name, "-")+1:])
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if err := converted.PrintTo(&got); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", tt.name+".json")
			golden.Compare(t, file, got.String())
		})
	}
}

func TestLifeOfAPod(t *testing.T) {
	n := newNode(t, `{"cniVersion": "1.1.0", "ipam": {"ranges": [[{"subnet": "10.244.1.0/29"}], [{"subnet": "fd00:1::/64"}]]}}`)
	n.expect("a", "10.244.1.2/29 fd00:1::2/64")
	n.expect("b", "10.244.1.3/29 fd00:1::3/64")
	if err := n.Check(t.Context(), n.args("a", nil)); err != nil {
		t.Error(err)
	}
	n.del("a")
	n.del("a")
	expectError(t, n.Check(t.Context(), n.args("a", nil)), ErrNotAllocated, "container a interface eth0 holds no address")
	n.expect("c", "10.244.1.4/29 fd00:1::4/64")
}

func TestAddErrors(t *testing.T) {
	n := newNode(t, `{"ipam": {"subnet": "10.244.1.0/30"}}`)
	n.expect("a", "10.244.1.2/30")
	for _, tt := range []struct {
		name, id string
		more     map[string]any
		code     uint
		want     string
	}{
		{"no address is left", "b", nil, types.ErrTryAgainLater, "no addresses left in 10.244.1.0/30"},
		{"the one wanted is held", "b", wants("10.244.1.2"), types.ErrTryAgainLater, "address 10.244.1.2 is held by container a interface eth0"},
		{"the one wanted is the gateway", "b", wants("10.244.1.1"), types.ErrInvalidNetworkConfig, "address 10.244.1.1 cannot be given: it is the gateway of 10.244.1.0/30"},
		{"a second time", "a", nil, ErrAlreadyAllocated, "container a interface eth0 holds addresses already: [10.244.1.2]"},
		{"no such resolvConf", "b", map[string]any{"ipam": map[string]any{"subnet": "10.244.2.0/24", "dataDir": n.dataDir, "resolvConf": "/nowhere"}},
			types.ErrInvalidNetworkConfig, "ipam.resolvConf: open /nowhere: no such file or directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := n.add(tt.id, tt.more)
			expectError(t, err, tt.code, tt.want)
		})
	}
}

func wants(ips ...string) map[string]any {
	return map[string]any{"runtimeConfig": map[string]any{"ips": ips}}
}

func TestBootIDThatCannotBeRead(t *testing.T) {
	n := newNode(t, `{"ipam": {"subnet": "10.244.1.0/24"}}`)
	n.expect("a", "10.244.1.2/24")
	n.BootID = func() (string, error) { return "", fs.ErrPermission }
	for name, verb := range map[string]func() error{
		"ADD":   func() error { _, err := n.add("b", nil); return err },
		"DEL":   func() error { return n.Del(t.Context(), n.args("a", nil)) },
		"CHECK": func() error { return n.Check(t.Context(), n.args("a", nil)) },
	} {
		t.Run(name, func(t *testing.T) {
			expectError(t, verb(), types.ErrIOFailure, "read boot id: permission denied")
		})
	}
}

func TestThisMachineHasABootID(t *testing.T) {
	if id, err := New().BootID(); err != nil || len(id) != len("e44f868c-2402-4003-a785-68900be6e200") {
		t.Errorf("got boot id %q and error %v", id, err)
	}
}

func TestRebootFreesAddresses(t *testing.T) {
	n := newNode(t, `{"ipam": {"subnet": "10.244.1.0/30"}}`)
	n.expect("a", "10.244.1.2/30")
	n.boot = "second"
	expectError(t, n.Check(t.Context(), n.args("a", nil)), ErrNotAllocated, "container a interface eth0 holds no address")
	n.expect("b", "10.244.1.2/30")
	n.del("a") // the runtime may still do that
	if err := n.Check(t.Context(), n.args("b", nil)); err != nil {
		t.Error(err)
	}
}

func TestDelNeedsLittle(t *testing.T) {
	n := newNode(t, `{"ipam": {"subnet": "10.244.1.0/24"}}`)
	n.del("nobody")
	if _, err := os.Stat(n.dataDir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("DEL made %s: %v", n.dataDir, err)
	}
	n.expect("a", "10.244.1.2/24")
	broken := map[string]any{
		"ipam":       map[string]any{"dataDir": n.dataDir, "subnet": "nonsense", "ranges": 7, "routes": "none"},
		"prevResult": "nonsense",
	}
	args := n.args("a", broken)
	args.Netns, args.Args = "", "broken"
	if err := n.Del(t.Context(), args); err != nil {
		t.Errorf("with a broken configuration: %v", err)
	}
	expectError(t, n.Check(t.Context(), n.args("a", nil)), ErrNotAllocated, "container a interface eth0 holds no address")
}

func TestCheckComparesWithPrevResult(t *testing.T) {
	n := newNode(t, `{"cniVersion": "1.0.0", "ipam": {"ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:1::/64"}]]}}`)
	n.expect("a", "10.244.1.2/24 fd00:1::2/64")
	for _, tt := range []struct {
		name string
		prev any
		want string // "" is success
	}{
		{"none", nil, ""},
		{"the same", prevResult("10.244.1.2/24", "fd00:1::2/64"), ""},
		{"more, of another plugin", prevResult("192.168.0.7/16", "fd00:1::2/64", "10.244.1.2/24"), ""},
		{"one missing", prevResult("10.244.1.2/24"), "container a interface eth0 holds fd00:1::2, which prevResult does not list"},
		{"another address", prevResult("10.244.1.9/24", "fd00:1::2/64"), "container a interface eth0 holds 10.244.1.2, which prevResult does not list"},
		{"without addresses", prevResult(), "container a interface eth0 holds 10.244.1.2, which prevResult does not list"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := n.Check(t.Context(), n.args("a", map[string]any{"prevResult": tt.prev}))
			if tt.want == "" && err == nil {
				return
			}
			expectError(t, err, ErrNotAllocated, tt.want)
		})
	}
}

func prevResult(addresses ...string) any {
	ips := []any{}
	for _, address := range addresses {
		ips = append(ips, map[string]any{"address": address})
	}
	return map[string]any{"cniVersion": "1.0.0", "ips": ips}
}

func TestPodOfKubernetesIsKept(t *testing.T) {
	n := newNode(t, `{"ipam": {"subnet": "10.244.1.0/24"}}`)
	args := n.args("a", nil)
	args.Args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0;K8S_POD_UID=7"
	if _, err := n.Add(t.Context(), args); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(n.dataDir, "testnet.db"))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"addrs":["10.244.1.2"],"netns":"/run/netns/a","pod":"shop/cart-0","boot":"first","since":"` +
		n.Now().Format(time.RFC3339) + `"}`
	if !bytes.Contains(data, []byte(want)) {
		t.Errorf("the store has no row %s", want)
	}
}

func TestNodeWithAllItsPods(t *testing.T) {
	n := newNode(t, `{"ipam": {"subnet": "10.244.1.0/24"}}`)
	for i := range 253 {
		n.expect(fmt.Sprint("pod", i), fmt.Sprintf("10.244.1.%d/24", i+2))
	}
	_, err := n.add("one-too-many", nil)
	expectError(t, err, types.ErrTryAgainLater, "no addresses left in 10.244.1.0/24")
}
