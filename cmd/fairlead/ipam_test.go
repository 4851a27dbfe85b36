package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/fairlead/fairlead/e2e/golden"
	"github.com/fairlead/fairlead/ipam"
	"github.com/fairlead/fairlead/ipam/disk"
)

// ipamNode is a machine whose clock moves a second with every pod that comes or goes.
type ipamNode struct {
	t       *testing.T
	dataDir string
	boot    string
	now     time.Time
	stdin   io.Reader
	hide    []string // old and new text, for the documents
}

func newIPAMNode(t *testing.T) *ipamNode {
	return &ipamNode{t: t, dataDir: t.TempDir(), boot: "first", now: time.Unix(1_700_000_000, 0), stdin: strings.NewReader("")}
}

func oneRange(subnet string) ipam.Set {
	p := netip.MustParsePrefix(subnet)
	return ipam.Set{{Subnet: p, First: p.Addr().Next(), Last: ipam.LastHost(p), Gateway: p.Addr().Next()}}
}

// testNetworks are the networks of the tests and their range sets.
var testNetworks = map[string][]ipam.Set{
	"pods":    {oneRange("10.244.1.0/24"), oneRange("fd00:1::/64")},
	"storage": {oneRange("10.9.0.0/30")},
}

func (n *ipamNode) change(network string, f func(ipam.Tx) error) {
	n.t.Helper()
	n.now = n.now.Add(time.Second)
	store, err := disk.New(n.dataDir, network)
	if err != nil {
		n.t.Fatal(err)
	}
	err = store.Update(n.t.Context(), func(tx ipam.Tx) error { return errors.Join(ipam.Reclaim(tx, n.boot), f(tx)) })
	if err != nil {
		n.t.Fatal(err)
	}
}

// add gives a container's interface its addresses; netns is where it runs.
func (n *ipamNode) add(network, id, ifName, pod, netns string) {
	n.t.Helper()
	n.change(network, func(tx ipam.Tx) error {
		_, err := ipam.Allocate(tx, testNetworks[network], ipam.Request{
			Owner: ipam.Owner{ContainerID: id, IfName: ifName}, Netns: netns, Pod: pod,
			Cooldown: 30 * time.Second, Boot: n.boot, Now: n.now,
		})
		return err
	})
}

func (n *ipamNode) del(network, id, ifName string) {
	n.t.Helper()
	n.change(network, func(tx ipam.Tx) error {
		return ipam.Release(tx, ipam.Owner{ContainerID: id, IfName: ifName}, n.now)
	})
}

// run executes 'fairlead ipam' with the node's data directory, which is DATADIR in
// what it returns.
func (n *ipamNode) run(line string) (code int, stdout, stderr string) {
	n.t.Helper()
	var out, errs bytes.Buffer
	e := env{
		stdin: n.stdin, stdout: &out, stderr: &errs,
		bootID: func() (string, error) { return n.boot, nil },
		now:    func() time.Time { return n.now },
	}
	args := append([]string{"ipam"}, strings.Fields(line)...)
	code = run(n.t.Context(), append(args, "--data-dir", n.dataDir), e)
	hide := strings.NewReplacer(append([]string{n.dataDir, "DATADIR"}, n.hide...)...)
	return code, hide.Replace(out.String()), hide.Replace(errs.String())
}

// golden runs a command and compares all that it says with a file.
func (n *ipamNode) golden(name, line string) {
	n.t.Helper()
	code, out, errs := n.run(line)
	got := strings.NewReplacer(n.hide...).Replace(fmt.Sprintf("$ fairlead ipam %s\n%s", line, out))
	if errs != "" {
		got += "stderr: " + errs
	}
	got += fmt.Sprintf("exit code %d\n", code)
	path := filepath.Join("testdata", "ipam", name+".golden")
	golden.Compare(n.t, path, got)
}

const cartID = "c0ffee00112233445566778899aabbccddeeff00112233445566778899aabbcc"

// newBusyNode has two networks, one of which has nothing left.
func newBusyNode(t *testing.T) *ipamNode {
	n := newIPAMNode(t)
	n.add("pods", "gone", "eth0", "shop/job-1", "/run/netns/gone")
	n.add("pods", cartID, "eth0", "shop/cart-0", "/run/netns/cart")
	n.add("pods", cartID, "net1", "shop/cart-0", "/run/netns/cart")
	n.add("storage", "c0ffee99", "eth0", "", "")
	n.del("pods", "gone", "eth0")
	return n
}

func TestIPAMDocuments(t *testing.T) {
	for _, tt := range []struct{ name, line string }{
		{"show", "show"},
		{"show-json", "show -o json"},
		{"show-network", "show --network storage"},
		{"list", "list"},
		{"list-json", "list -o json"},
		{"list-no-such-network", "list --network nosuch"},
		{"release-address", "release 10.244.1.3 --yes"},
		{"release-container", "release c0ffee0 --yes"},
		{"release-interface", "release " + cartID + " --ifname net1 -y"},
		{"release-json", "release fd00:1::4 --yes -o json"},
		{"release-mapped", "release ::ffff:10.244.1.3 --yes"},
		{"release-ambiguous", "release c0ffee --yes"},
		{"release-unknown-address", "release 10.244.1.77 --yes"},
		{"release-unknown-container", "release deadbeef --yes"},
		{"release-other-network", "release 10.9.0.2 --yes --network pods"},
	} {
		t.Run(tt.name, func(t *testing.T) { newBusyNode(t).golden(tt.name, tt.line) })
	}
}

func TestIPAMOfANodeWithoutPods(t *testing.T) {
	for name, line := range map[string]string{
		"show-empty": "show", "show-empty-json": "show -o json",
		"list-empty": "list", "list-empty-json": "list -o json",
		"check-empty": "check --netns-dir /nowhere", "check-empty-json": "check --netns-dir /nowhere -o json",
	} {
		n := newIPAMNode(t)
		n.dataDir = filepath.Join(n.dataDir, "nowhere")
		n.golden(name, line)
		if _, err := os.Stat(n.dataDir); err == nil {
			t.Errorf("%s made %s", line, n.dataDir)
		}
	}
}

func TestIPAMUsageErrors(t *testing.T) {
	for _, tt := range []struct{ line, want string }{
		{"show extra", "argument \"extra\": 'fairlead ipam show' takes none"},
		{"show -o xml", `--output "xml": allowed are table and json`},
		{"list --network ../x", `--network: network name "../x" is not allowed: it must be letters, digits and _.-, of which the first is a letter or digit`},
		{"release", "'fairlead ipam release' takes one address or container ID"},
		{"release 10.9.0.2", "release: standard input is no terminal to ask on: confirm by --yes"},
		{"import-host-local", "--network: missing: the name of the network to take over"},
		{"export-host-local", "--network: missing: the name of the network to give back"},
	} {
		t.Run(tt.line, func(t *testing.T) {
			n := newBusyNode(t)
			code, out, errs := n.run(tt.line)
			if want := "fairlead: " + tt.want + "\n"; code != exitUsage || errs != want || out != "" {
				t.Errorf("code %d, stdout %q, stderr:\n%swant:\n%s", code, out, errs, want)
			}
		})
	}
}

// TestStoresThatAreRefused gives every command a store that is damaged or of a
// newer release: it says so in a sentence, shows what else there is, fails, and
// does not touch the file.
func TestStoresThatAreRefused(t *testing.T) {
	for _, spoilt := range []struct {
		name  string
		spoil func(path string) error
		want  string
	}{
		{"damaged", func(path string) error { return os.Truncate(path, 100) }, "it is damaged"},
		{"newer", func(path string) error {
			db, err := bbolt.Open(path, 0o600, nil)
			if err != nil {
				return err
			}
			newer := func(tx *bbolt.Tx) error { return tx.Bucket([]byte("about")).Put([]byte("schema"), []byte("2")) }
			return errors.Join(db.Update(newer), db.Close())
		}, `it has schema "2" and this program knows schema 1 only`},
	} {
		for _, line := range []string{
			"show", "list", "check --netns-dir /nowhere", "release 10.244.1.3 --yes",
			"import-host-local --network pods", "import-host-local --network pods --dry-run",
			"export-host-local --network pods", "export-host-local --network pods --dry-run",
		} {
			t.Run(spoilt.name+"/"+line, func(t *testing.T) {
				n := newBusyNode(t)
				path := filepath.Join(n.dataDir, "pods.db")
				if err := spoilt.spoil(path); err != nil {
					t.Fatal(err)
				}
				before, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if strings.HasPrefix(line, "import") {
					line += " --from " + hostLocalDir(t, map[string]string{"10.244.1.77": "old\r\neth0"})
				}
				if strings.HasPrefix(line, "export") {
					line += " --to " + hostLocalDir(t, nil)
				}
				code, out, errs := n.run(line)
				if code != exitFailed || !strings.Contains(out+errs, spoilt.want) || strings.Count(errs, "\n") != 1 {
					t.Errorf("code %d, stdout:\n%sstderr:\n%s", code, out, errs)
				}
				if strings.HasPrefix(line, "show") || strings.HasPrefix(line, "list") {
					if !strings.Contains(out, "storage") {
						t.Errorf("the other network is not shown:\n%s", out)
					}
				}
				after, err := os.ReadFile(path)
				if err != nil || !bytes.Equal(before, after) {
					t.Errorf("the file changed, %v", err)
				}
			})
		}
	}
}
