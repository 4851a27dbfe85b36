package filter

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/cni/link"
	"github.com/fairlead/fairlead/cni/mode"
	"github.com/fairlead/fairlead/e2e/netns"
)

// with runs do with the packet filter of a node.
func with(t *testing.T, node *netns.NS, do func(*Filter) error) {
	t.Helper()
	if err := in(node, do); err != nil {
		t.Fatal(err)
	}
}

func in(node *netns.NS, do func(*Filter) error) error {
	return node.Do(func() error {
		host, err := link.Host()
		if err != nil {
			return err
		}
		defer host.Close()
		return With(host, do)
	})
}

// newPod is a pod with a port on the node.
func newPod(t *testing.T, node *netns.NS, id, addr string) Pod {
	t.Helper()
	p := Pod{
		Owner: mode.Owner{Network: "net", ContainerID: id, IfName: "eth0"},
		Port:  "veth" + id, MAC: []byte{2, 0, 0, 0, 0, 1}, Addrs: []netip.Addr{netip.MustParseAddr(addr)},
		CheckSource: true, Masquerade: true, Spared: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")},
	}
	node.RunT(t, "ip", "link", "add", p.Port, "type", "veth", "peer", "name", "peer"+id)
	return p
}

func ruleset(t *testing.T, node *netns.NS) string {
	t.Helper()
	return node.RunT(t, "nft", "--handle", "list", "ruleset")
}

// TestRepairChangesNothing where nothing is missing: what it would make anew has
// new handles.
func TestRepairChangesNothing(t *testing.T) {
	for _, backend := range []string{NFTables, IPTables} {
		t.Run(backend, func(t *testing.T) {
			node := netns.NewT(t)
			p := newPod(t, node, "a", "10.9.0.2")
			p.Backend = backend
			with(t, node, func(f *Filter) error { return f.Add(p) })
			before := ruleset(t, node) + node.RunT(t, "iptables", "-t", "nat", "-S")
			with(t, node, (*Filter).Repair)
			if diff := cmp.Diff(before, ruleset(t, node)+node.RunT(t, "iptables", "-t", "nat", "-S")); diff != "" {
				t.Errorf("rules (-before +after):\n%s", diff)
			}
		})
	}
}

// TestRepairGivesAddressesToTheLast has records of two pods that had an address
// one after the other, because the DEL of the first one was lost.
func TestRepairGivesAddressesToTheLast(t *testing.T) {
	lists := map[string][]string{
		NFTables: {"nft", "list", "map", "inet", "fairlead-cni", "masquerade4"},
		IPTables: {"iptables", "-t", "nat", "-S", "FLCNI-MASQ"},
	}
	for backend, list := range lists {
		t.Run(backend, func(t *testing.T) {
			node := netns.NewT(t)
			for i, id := range []string{"first", "last"} {
				p := newPod(t, node, id, "10.9.0.2")
				p.Backend = backend
				with(t, node, func(f *Filter) error {
					if err := f.Add(p); err != nil {
						return err
					}
					written := time.Now().Add(time.Duration(i-2) * time.Hour)
					return os.Chtimes(f.records.path(p.Owner), written, written)
				})
			}
			for _, commands := range [][]string{{"true"}, {"nft flush ruleset", "iptables -t nat -F"}} {
				for _, command := range commands {
					node.RunT(t, "sh", "-c", command)
				}
				with(t, node, (*Filter).Repair)
				if state := node.RunT(t, list[0], list[1:]...); !strings.Contains(state, "net/last/eth0") || strings.Contains(state, "net/first/eth0") {
					t.Errorf("after %q:\n%s", commands, state)
				}
			}
		})
	}
}

// TestRecords looks at which records there are after each of some things that
// happen to pods.
func TestRecords(t *testing.T) {
	node := netns.NewT(t)
	var dir string
	with(t, node, func(f *Filter) error { dir = f.records.dir; return nil })
	a, b, plain := newPod(t, node, "a", "10.9.0.2"), newPod(t, node, "b", "10.9.0.3"), newPod(t, node, "plain", "10.9.0.4")
	plain.CheckSource, plain.Masquerade = false, false
	steps := []struct {
		what string
		do   func(*Filter) error
		want string
	}{
		{"ADD of a", func(f *Filter) error { return f.Add(a) }, "[net:a:eth0]"},
		{"ADD of b", func(f *Filter) error { return f.Add(b) }, "[net:a:eth0 net:b:eth0]"},
		{"ADD of a pod that is not filtered", func(f *Filter) error { return f.Add(plain) }, "[net:a:eth0 net:b:eth0]"},
		{"an ADD that dies", func(f *Filter) error { return os.WriteFile(filepath.Join(dir, "net:c:eth0"), nil, 0o600) }, "[net:a:eth0 net:b:eth0 net:c:eth0]"},
		{"DEL of a, twice", func(f *Filter) error {
			if err := f.Remove(a.Owner, false); err != nil {
				return err
			}
			return f.Remove(a.Owner, false)
		}, "[net:b:eth0 net:c:eth0]"},
		{"GC of another network", func(f *Filter) error { return f.Collect("other", nil, false) }, "[net:b:eth0 net:c:eth0]"},
		{"GC that keeps b", func(f *Filter) error { return f.Collect("net", []mode.Owner{b.Owner}, false) }, "[net:b:eth0]"},
		{"GC", func(f *Filter) error { return f.Collect("net", nil, false) }, "none"},
		{"GC again", func(f *Filter) error { return f.Collect("net", nil, false) }, "none"},
	}
	for _, s := range steps {
		with(t, node, s.do)
		with(t, node, (*Filter).Repair)
		entries, err := os.ReadDir(dir)
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		got := fmt.Sprint(names)
		if os.IsNotExist(err) {
			got = "none"
		}
		if got != s.want {
			t.Errorf("after %s: %s, want %s", s.what, got, s.want)
		}
	}
}

// TestRemoveDuringRepair has pods come and go while others repair all the time:
// nothing may be left of those that went.
func TestRemoveDuringRepair(t *testing.T) {
	const pods = 30
	node := netns.NewT(t)
	staying := newPod(t, node, "stays", "10.9.0.2")
	with(t, node, func(f *Filter) error { return f.Add(staying) })
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				if err := in(node, (*Filter).Repair); err != nil {
					t.Error(err)
					return
				}
			}
		}
	}()
	for i := range pods {
		p := newPod(t, node, fmt.Sprint(i), "10.9.0.3")
		with(t, node, func(f *Filter) error { return f.Add(p) })
		node.RunT(t, "nft", "flush", "ruleset")
		with(t, node, func(f *Filter) error { return f.Remove(p.Owner, false) }) // and the port is still there
	}
	close(stop)
	<-stopped
	with(t, node, (*Filter).Repair)
	state := ruleset(t, node)
	if strings.Contains(state, "10.9.0.3") || !strings.Contains(state, "10.9.0.2") {
		t.Errorf("after the end of all pods but one:\n%s", state)
	}
}
