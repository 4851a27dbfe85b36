package hostlocal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"go.etcd.io/bbolt"
)

func (n *node) status(more map[string]any) error {
	n.t.Helper()
	return n.Status(n.t.Context(), n.args("", more))
}

func (n *node) ipam(key string, value any) map[string]any {
	return map[string]any{"ipam": map[string]any{"dataDir": n.dataDir, "subnet": "10.244.1.0/30", key: value}}
}

func TestStatus(t *testing.T) {
	n := newNode(t, `{"ipam": {"subnet": "10.244.1.0/30"}}`)
	if err := n.status(nil); err != nil {
		t.Errorf("before anything: %v", err)
	}
	if _, err := os.Stat(n.dataDir); err == nil {
		t.Errorf("STATUS made %s", n.dataDir)
	}
	n.expect("a", "10.244.1.2/30")
	expectError(t, n.status(nil), types.ErrPluginNotAvailable, "no addresses left in 10.244.1.0/30")
	moved := n.ipam("gateway", "10.244.1.2")
	if err := n.status(moved); err != nil {
		t.Errorf("a pod holds what is now the gateway, and there is an address left: %v", err)
	}
	moved["ipam"].(map[string]any)["rangeStart"] = "10.244.1.2"
	expectError(t, n.status(moved), types.ErrLimitedConnectivity,
		"no addresses left in 10.244.1.2-10.244.1.2; address 10.244.1.2 is the gateway of 10.244.1.0/30, and container a interface eth0 holds it")
	expectError(t, n.status(n.ipam("rangeEnd", "10.244.2.9")), types.ErrInvalidNetworkConfig,
		"ipam.rangeEnd: 10.244.2.9 is not in subnet 10.244.1.0/30")
	n.boot = "second"
	if err := n.status(nil); err != nil {
		t.Errorf("after a reboot: %v", err)
	}
	n.boot = "first"
	n.del("a")
	if err := n.status(nil); err != nil {
		t.Errorf("with an address that is cooling: %v", err)
	}
	n.BootID = func() (string, error) { return "", fs.ErrPermission }
	expectError(t, n.status(nil), types.ErrPluginNotAvailable, "read boot id: permission denied")
}

func TestStoreThatCannotBeRead(t *testing.T) {
	n := newNode(t, `{"ipam": {"subnet": "10.244.1.0/24"}}`)
	n.expect("a", "10.244.1.2/24")
	path := filepath.Join(n.dataDir, "testnet.db")
	if err := os.WriteFile(path, []byte("10.244.1.2"), 0o600); err != nil {
		t.Fatal(err)
	}
	const want = ": it is damaged (invalid database), and it alone says which addresses this node's pods use: " +
		"drain the network's pods from this node, then remove the file"
	all := map[string]any{"cni.dev/valid-attachments": []any{}}
	expectError(t, n.status(nil), types.ErrPluginNotAvailable, "read store "+path+want)
	expectError(t, n.GC(t.Context(), n.args("", all)), types.ErrIOFailure, "read store "+path+want)
	expectError(t, n.Check(t.Context(), n.args("a", nil)), types.ErrIOFailure, "read store "+path+want)
}

func TestGC(t *testing.T) {
	n := newNode(t, `{"ipam": {"ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:1::/64"}]]}}`)
	other := map[string]any{"name": "other"}
	for i := range 5 {
		n.expect(fmt.Sprint("pod", i), fmt.Sprintf("10.244.1.%d/24 fd00:1::%d/64", i+2, i+2))
		if _, err := n.add(fmt.Sprint("pod", i), other); err != nil {
			t.Fatal(err)
		}
	}
	gc := func(valid any) error {
		return n.GC(t.Context(), n.args("", map[string]any{"cni.dev/valid-attachments": valid}))
	}
	for _, tt := range []struct {
		name  string
		valid any
		held  string
	}{
		{"all and one that is not known", attachments("pod0", "pod1", "pod2", "pod3", "pod4", "pod5"), "pod0 pod1 pod2 pod3 pod4"},
		{"two, and another interface of a third", append(attachments("pod1", "pod3"), types.GCAttachment{ContainerID: "pod4", IfName: "net1"}), "pod1 pod3"},
		{"once more", attachments("pod1", "pod3"), "pod1 pod3"},
		{"null, as libcni writes no attachments", nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := gc(tt.valid); err != nil {
				t.Fatal(err)
			}
			if got := n.held(nil); got != tt.held {
				t.Errorf("%q hold addresses, want %q", got, tt.held)
			}
			if got, want := n.held(other), "pod0 pod1 pod2 pod3 pod4"; got != want {
				t.Errorf("of the other network %q hold addresses, want %q", got, want)
			}
		})
	}
}

func attachments(ids ...string) []types.GCAttachment {
	var list []types.GCAttachment
	for _, id := range ids {
		list = append(list, types.GCAttachment{ContainerID: id, IfName: "eth0"})
	}
	return list
}

// held is the pods 0 to 4 that CHECK finds.
func (n *node) held(more map[string]any) string {
	var ids []string
	for i := range 5 {
		id := fmt.Sprint("pod", i)
		if n.Check(n.t.Context(), n.args(id, more)) == nil {
			ids = append(ids, id)
		}
	}
	return strings.Join(ids, " ")
}

func TestGCErrors(t *testing.T) {
	n := newNode(t, `{"ipam": {"subnet": "10.244.1.0/24"}}`)
	n.expect("pod0", "10.244.1.2/24")
	for _, tt := range []struct {
		name string
		conf map[string]any
		want string
	}{
		{"no list", nil, "cni.dev/valid-attachments: no value is not allowed: it must be the list of the attachments to keep"},
		{"a word", map[string]any{"cni.dev/valid-attachments": "all"}, "cni.dev/valid-attachments: a JSON string is not allowed: it must be a list"},
		{"without interface", map[string]any{"cni.dev/valid-attachments": []any{map[string]any{"containerID": "pod0"}}},
			"cni.dev/valid-attachments[0]: it must have a containerID and an ifname"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			expectError(t, n.GC(t.Context(), n.args("", tt.conf)), types.ErrInvalidNetworkConfig, tt.want)
			if n.held(nil) != "pod0" {
				t.Error("GC removed something")
			}
		})
	}
}

// TestGCGoesOnAfterARowThatCannotBeRead expects one bad row to be reported and to
// stay, and every other one that is not valid to go.
func TestGCGoesOnAfterARowThatCannotBeRead(t *testing.T) {
	n := newNode(t, `{"ipam": {"subnet": "10.244.1.0/24"}}`)
	for i := range 4 {
		n.expect(fmt.Sprint("pod", i), fmt.Sprintf("10.244.1.%d/24", i+2))
	}
	db, err := bbolt.Open(filepath.Join(n.dataDir, "testnet.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	spoil := func(tx *bbolt.Tx) error { return tx.Bucket([]byte("rows")).Put([]byte("lpod1\x00eth0"), []byte("?")) }
	if err := errors.Join(db.Update(spoil), db.Close()); err != nil {
		t.Fatal(err)
	}
	err = n.GC(t.Context(), n.args("", map[string]any{"cni.dev/valid-attachments": attachments("pod2")}))
	expectError(t, err, types.ErrIOFailure, "decode lease of container pod1 interface eth0: invalid character '?' looking for beginning of value")
	if got := n.held(nil); got != "pod2" {
		t.Errorf("%q hold addresses, want pod2", got)
	}
}

func TestGCWithoutStoreMakesNone(t *testing.T) {
	n := newNode(t, `{"ipam": {}}`)
	if err := n.GC(t.Context(), n.args("", map[string]any{"cni.dev/valid-attachments": []any{}})); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(n.dataDir); err == nil {
		t.Errorf("GC made %s", n.dataDir)
	}
}

func TestStickyPod(t *testing.T) {
	for _, tt := range []struct {
		name   string
		sticky bool
		want   string
	}{
		{"sticky", true, "10.244.1.2/24"},
		{"not sticky", false, "10.244.1.3/24"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, fmt.Sprintf(`{"ipam": {"subnet": "10.244.1.0/24", "sticky": %t}}`, tt.sticky))
			args := n.args("first", nil)
			args.Args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0"
			if _, err := n.Add(t.Context(), args); err != nil {
				t.Fatal(err)
			}
			n.del("first")
			args.ContainerID = "second"
			result, err := n.Add(t.Context(), args)
			if err != nil {
				t.Fatal(err)
			}
			if got := result.IPs[0].Address.String(); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}
