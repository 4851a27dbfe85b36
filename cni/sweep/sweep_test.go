package sweep_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cni"
	"github.com/fairlead/fairlead/cni/hostlocal"
	"github.com/fairlead/fairlead/cni/sweep"
	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/ipam"
	"github.com/fairlead/fairlead/ipam/disk"
)

// node is a host with a network on it.
type node struct {
	t    *testing.T
	ns   *netns.NS
	dir  string // has the store
	conf map[string]any
}

func newNode(t *testing.T) *node {
	n := &node{t: t, ns: netns.NewT(t), dir: t.TempDir()}
	n.conf = map[string]any{
		"cniVersion": "1.1.0", "name": "pods", "type": "fairlead-cni", "ipMasq": true, "macspoofchk": true,
		"ipam": map[string]any{"type": "fairlead-ipam", "dataDir": n.dir, "ranges": [][]any{{map[string]any{"subnet": "10.9.0.0/16"}}}},
	}
	return n
}

// pod is a pod as its runtime knows it: its namespace is bound to a path.
type pod struct {
	id     string
	ns     *netns.NS
	netns  string
	result []byte
}

// add makes a pod.
func (n *node) add(id string) (*pod, error) {
	ns, err := netns.New()
	if err != nil {
		return nil, err
	}
	p := &pod{id: id, ns: ns, netns: filepath.Join(n.dir, id)}
	if err := os.WriteFile(p.netns, nil, 0o600); err != nil {
		return nil, err
	}
	if err := unix.Mount(ns.Path(), p.netns, "", unix.MS_BIND, ""); err != nil {
		return nil, err
	}
	n.t.Cleanup(p.close)
	p.result, err = n.call((*cni.Plugin).Add, p, n.conf)
	return p, err
}

func (n *node) addT(id string) *pod {
	n.t.Helper()
	p, err := n.add(id)
	if err != nil {
		n.t.Fatal(err)
	}
	return p
}

// unbind takes the namespace from its path.
func (p *pod) unbind() error { return unix.Unmount(p.netns, unix.MNT_DETACH) }

// lose has the runtime take the namespace away. It lives on while it is held open.
func (p *pod) lose() error { return errors.Join(p.unbind(), os.Remove(p.netns)) }

// close is for the end of a test, wherever it ends.
func (p *pod) close() {
	_ = p.lose()
	_ = p.ns.Close()
}

// check looks whether the pod has all that ADD gave it.
func (n *node) check(p *pod) error {
	conf := maps.Clone(n.conf)
	conf["prevResult"] = json.RawMessage(p.result)
	_, err := n.call((*cni.Plugin).Check, p, conf)
	return err
}

func (n *node) call(verb func(*cni.Plugin, context.Context, *skel.CmdArgs) error, p *pod, conf map[string]any) ([]byte, error) {
	stdin, err := json.Marshal(conf)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = n.ns.Do(func() error {
		return verb(&cni.Plugin{Stdout: &out}, n.t.Context(), &skel.CmdArgs{ContainerID: p.id, Netns: p.netns, IfName: "eth0", StdinData: stdin})
	})
	return out.Bytes(), err
}

// sweep sweeps and returns the containers whose addresses it gave back.
func (n *node) sweep() ([]string, error) {
	config, err := json.Marshal(n.conf)
	if err != nil {
		return nil, err
	}
	var gone []string
	err = n.ns.Do(func() error {
		leases, err := sweep.Network(n.t.Context(), config)
		for _, l := range leases {
			gone = append(gone, l.ContainerID)
		}
		return err
	})
	slices.Sort(gone)
	return gone, err
}

func (n *node) wantSwept(want ...string) {
	n.t.Helper()
	gone, err := n.sweep()
	if err != nil {
		n.t.Error(err)
	}
	if diff := cmp.Diff(want, gone); diff != "" {
		n.t.Errorf("swept (-want +got):\n%s", diff)
	}
}

// holders are the containers that hold an address.
func (n *node) holders() []string {
	n.t.Helper()
	store, err := disk.New(n.dir, "pods")
	if err != nil {
		n.t.Fatal(err)
	}
	boot, err := disk.BootID()
	if err != nil {
		n.t.Fatal(err)
	}
	var ids []string
	err = store.View(n.t.Context(), func(tx ipam.Tx) error {
		leases, err := ipam.Leases(tx, boot)
		for _, l := range leases {
			ids = append(ids, l.ContainerID)
		}
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return ids
}

// state is what the node's links and packet filter have of pods.
func (n *node) state() string {
	return n.ns.RunT(n.t, "ip", "-o", "link", "show", "type", "veth") + n.ns.RunT(n.t, "nft", "list", "ruleset")
}

// end has a pod end without a DEL, and waits until its port has gone with it.
func (n *node) end(p *pod) {
	n.t.Helper()
	port := p.port(n.t)
	if err := errors.Join(p.lose(), p.ns.Close()); err != nil {
		n.t.Fatal(err)
	}
	for strings.Contains(n.ns.RunT(n.t, "ip", "-o", "link"), port) {
		time.Sleep(time.Millisecond)
	}
}

func (p *pod) port(t *testing.T) string {
	t.Helper()
	var result struct {
		Interfaces []struct{ Name string }
	}
	if err := json.Unmarshal(p.result, &result); err != nil {
		t.Fatal(err)
	}
	return result.Interfaces[1].Name
}

// Of pods that went without a DEL nothing is left; those that live have all that
// they had.
func TestSweep(t *testing.T) {
	n := newNode(t)
	lives, ended := n.addT("lives"), n.addT("ended")
	n.end(ended)
	n.wantSwept("ended")
	if err := n.check(lives); err != nil {
		t.Error(err)
	}
	if state := n.state(); strings.Contains(state, "pods/ended/eth0") || !strings.Contains(state, "pods/lives/eth0") {
		t.Errorf("the packet filter has:\n%s", state)
	}
	n.wantSwept()
	if diff := cmp.Diff([]string{"lives"}, n.holders()); diff != "" {
		t.Errorf("addresses are held by (-want +got):\n%s", diff)
	}
}

// A pod whose namespace the runtime took away has ended, also if some process keeps
// the namespace: then its port goes too. But if the namespaces of all pods that
// are connected are not to be seen, nothing goes: it is the sweeper who is blind.
func TestSweepKeptNamespace(t *testing.T) {
	n := newNode(t)
	p := n.addT("kept")
	if err := p.lose(); err != nil {
		t.Fatal(err)
	}
	gone, err := n.sweep()
	if want := "are not to be seen here: nothing is removed"; err == nil || !strings.Contains(err.Error(), want) || len(gone) > 0 {
		t.Errorf("gone %q, error %v, want %q", gone, err, want)
	}
	if state := n.state(); !strings.Contains(state, p.port(t)) {
		t.Errorf("the port is gone:\n%s", state)
	}
	n.addT("lives")
	n.wantSwept("kept")
	if state := n.state(); strings.Contains(state, p.port(t)) || strings.Contains(state, "pods/kept/eth0") {
		t.Errorf("left:\n%s", state)
	}
}

// What is at a pod's path is there but no namespace: as in a container to which
// what is mounted later is not passed on. The port tells that the pod lives.
func TestSweepUnseenNamespace(t *testing.T) {
	n := newNode(t)
	n.addT("lives")
	if err := n.addT("unseen").unbind(); err != nil {
		t.Fatal(err)
	}
	n.wantSwept()
}

// Pods that the reference plugins made keep their addresses, however long ago that was
// and whatever other pods there are.
func TestSweepImported(t *testing.T) {
	n := newNode(t)
	store, err := disk.New(n.dir, "pods")
	if err != nil {
		t.Fatal(err)
	}
	boot, err := disk.BootID()
	if err != nil {
		t.Fatal(err)
	}
	err = store.Update(t.Context(), func(tx ipam.Tx) error {
		if err := ipam.Reclaim(tx, boot); err != nil {
			return err
		}
		_, err := ipam.Import(tx, boot, []ipam.Lease{{
			Owner: ipam.Owner{ContainerID: "imported", IfName: "eth0"}, Addrs: []netip.Addr{netip.MustParseAddr("10.9.0.200")},
			Since: time.Now().Add(-time.Hour),
		}})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	n.addT("lives")
	n.wantSwept()
	if diff := cmp.Diff([]string{"imported", "lives"}, n.holders()); diff != "" {
		t.Errorf("addresses are held by (-want +got):\n%s", diff)
	}
}

// After the store was lost nobody is cut off: it is told, and what is known to be
// garbage goes all the same.
func TestSweepLostStore(t *testing.T) {
	n := newNode(t)
	unheld := n.addT("unheld")
	if err := os.Remove(filepath.Join(n.dir, "pods.db")); err != nil {
		t.Fatal(err)
	}
	n.wantSwept() // there is no store
	ended := n.addT("ended")
	n.end(ended)
	gone, err := n.sweep()
	if want := fmt.Sprintf("network pods: 1 ports (%s, …) are of pods that hold no address", unheld.port(t)); err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("error %v, want %s", err, want)
	}
	if diff := cmp.Diff([]string{"ended"}, gone); diff != "" {
		t.Errorf("swept (-want +got):\n%s", diff)
	}
	if state := n.state(); !strings.Contains(state, "pods/unheld/eth0") || strings.Contains(state, "pods/ended/eth0") {
		t.Errorf("the packet filter has:\n%s", state)
	}
}

// What was held before the node booted is free again.
func TestSweepEarlierBoot(t *testing.T) {
	n := newNode(t)
	stdin, err := json.Marshal(n.conf)
	if err != nil {
		t.Fatal(err)
	}
	before := hostlocal.Plugin{BootID: func() (string, error) { return "earlier", nil }, Now: time.Now}
	if _, err := before.Add(t.Context(), &skel.CmdArgs{ContainerID: "earlier", IfName: "eth0", Netns: "/run/netns/earlier", StdinData: stdin}); err != nil {
		t.Fatal(err)
	}
	n.wantSwept()
	n.addT("lives")
	if diff := cmp.Diff([]string{"lives"}, n.holders()); diff != "" {
		t.Errorf("addresses are held by (-want +got):\n%s", diff)
	}
}

// Sweeping all the time takes nothing from a pod whose ADD succeeds meanwhile, and
// leaves nothing of those that end without a DEL.
func TestSweepBesideAdd(t *testing.T) {
	n := newNode(t)
	n.addT("always")
	stop := make(chan struct{})
	var sweeper, workers errgroup.Group
	swept := 0
	sweeper.Go(func() error {
		for {
			gone, err := n.sweep()
			if swept += len(gone); err != nil {
				return err
			}
			select {
			case <-stop:
				return nil
			default:
			}
		}
	})
	const each = 12
	for w := range 4 {
		workers.Go(func() error { return n.comeAndGo(fmt.Sprintf("w%d", w), each) })
	}
	if err := workers.Wait(); err != nil {
		t.Error(err)
	}
	close(stop)
	if err := sweeper.Wait(); err != nil {
		t.Error(err)
	}
	gone, err := n.sweep()
	if err != nil {
		t.Error(err)
	}
	if swept += len(gone); swept != 4*each/3 {
		t.Errorf("%d pods were swept, want %d", swept, 4*each/3)
	}
	want := []string{"always"}
	for w := range 4 {
		for i := 2; i < each; i += 3 {
			want = append(want, fmt.Sprintf("w%d-%d", w, i))
		}
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, n.holders()); diff != "" {
		t.Errorf("addresses are held by (-want +got):\n%s", diff)
	}
}

// comeAndGo makes pods: of three, one is deleted, one goes without a word, one stays.
func (n *node) comeAndGo(name string, count int) error {
	for i := range count {
		p, err := n.add(fmt.Sprintf("%s-%d", name, i))
		if err != nil {
			return fmt.Errorf("ADD %d of %s: %w", i, name, err)
		}
		if err := n.check(p); err != nil {
			return fmt.Errorf("after ADD %d of %s: %w", i, name, err)
		}
		switch i % 3 {
		case 0:
			_, err = n.call((*cni.Plugin).Del, p, n.conf)
			err = errors.Join(err, p.lose(), p.ns.Close())
		case 1:
			err = errors.Join(p.lose(), p.ns.Close())
		}
		if err != nil {
			return err
		}
	}
	return nil
}
