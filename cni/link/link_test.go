package link_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cni/link"
	"github.com/fairlead/fairlead/e2e/netns"
)

// patience is how long a test waits for what happens in a moment before it
// gives up.
const patience = 10 * time.Second

// open opens a new network namespace.
func open(t *testing.T) (*link.NS, *netns.NS) {
	t.Helper()
	made := netns.NewT(t)
	ns, err := link.Open(made.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ns.Close)
	return ns, made
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// addBridge makes a bridge br0 and returns it.
func addBridge(t *testing.T, ns *link.NS) link.Device {
	t.Helper()
	check(t, ns.AddBridge(link.Bridge{Name: "br0", MAC: link.NewMAC()}))
	return must[link.Device](t)(ns.Device("br0"))
}

// connect makes a port of br0, and eth0 in pod.
func connect(t *testing.T, host, pod *link.NS, br link.Device) {
	t.Helper()
	check(t, host.AddVeth(link.Veth{
		Name: "port0", MAC: link.NewMAC(), Master: br, Peer: "eth0", PeerNS: pod, PeerMAC: link.NewMAC(),
	}))
}

func TestOpen(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	check(t, os.WriteFile(file, nil, 0o600))
	tests := map[string]string{
		"no such path":            filepath.Join(t.TempDir(), "absent"),
		"a file":                  file,
		"a process that is gone":  "/proc/4194305/ns/net", // above the largest pid
		"a namespace of mounts":   "/proc/self/ns/mnt",
		"an empty path of no use": "",
	}
	for name, path := range tests {
		t.Run(name, func(t *testing.T) {
			ns, err := link.Open(path)
			if !errors.Is(err, link.ErrNoNamespace) {
				t.Errorf("got %v, %v; want %v", ns, err, link.ErrNoNamespace)
			}
		})
	}
}

func TestSame(t *testing.T) {
	a, made := open(t)
	b, _ := open(t)
	again := must[*link.NS](t)(link.Open(made.Path()))
	defer again.Close()
	if a.Same(b) || !a.Same(again) {
		t.Errorf("other namespace: %t, same namespace: %t", a.Same(b), a.Same(again))
	}
	var host *link.NS
	check(t, made.Do(func() (err error) { host, err = link.Host(); return err }))
	defer host.Close()
	if !a.Same(host) {
		t.Error("Host is not the namespace of the calling thread")
	}
}

func TestLock(t *testing.T) {
	// free reports whether another process could have the lock at once.
	free := func(ns *netns.NS, kind link.Lock) bool {
		file := must[*os.File](t)(os.Open(lockOf(t, ns)))
		defer func() { _ = file.Close() }()
		err := unix.Flock(int(file.Fd()), int(kind)|unix.LOCK_NB)
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			t.Fatal(err)
		}
		return err == nil
	}
	type freedom struct{ Shared, Exclusive bool }
	look := func(ns *netns.NS) freedom { return freedom{free(ns, link.Shared), free(ns, link.Exclusive)} }

	other, elsewhere := open(t)
	check(t, other.Lock(link.Shared, patience))
	again, made := open(t)
	ns := must[*link.NS](t)(link.Open(made.Path()))
	check(t, ns.Lock(link.Shared, patience))
	steps := []struct {
		name string
		do   func() error
		want freedom
	}{
		{"shared", func() error { return nil }, freedom{true, false}},
		{"exclusive", func() error { return ns.Lock(link.Exclusive, patience) }, freedom{false, false}},
		{"shared again", func() error { return ns.Lock(link.Shared, patience) }, freedom{true, false}},
		{"closed", func() error { ns.Close(); return nil }, freedom{true, true}},
		{"of another process", func() error { return again.Lock(link.Exclusive, patience) }, freedom{false, false}},
	}
	for _, step := range steps {
		check(t, step.do())
		if diff := cmp.Diff(step.want, look(made)); diff != "" {
			t.Errorf("%s: what another can have (-want +got):\n%s", step.name, diff)
		}
		if diff := cmp.Diff(freedom{true, false}, look(elsewhere)); diff != "" {
			t.Errorf("%s: what another can have of another namespace (-want +got):\n%s", step.name, diff)
		}
	}
}

// lockOf is the file of a namespace's lock, which only root may open.
func lockOf(t *testing.T, ns *netns.NS) string {
	t.Helper()
	var stat unix.Stat_t
	check(t, unix.Stat(ns.Path(), &stat))
	path := fmt.Sprintf("/run/fairlead/netns-%d-%d.lock", stat.Dev, stat.Ino)
	if mode := must[os.FileInfo](t)(os.Stat(path)).Mode(); mode != 0o600 {
		t.Errorf("mode of %s: %v", path, mode)
	}
	return path
}

// TestLockIsNotWaitedForForEver has others keep the lock, and then give it back.
func TestLockIsNotWaitedForForEver(t *testing.T) {
	ns, made := open(t)
	holder := must[*link.NS](t)(link.Open(made.Path()))
	check(t, holder.Lock(link.Shared, patience))
	if err := ns.Lock(link.Exclusive, time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want one that wraps %v", err, context.DeadlineExceeded)
	}
	holder.Close()
	check(t, ns.Lock(link.Exclusive, patience))
}

// TestLockIsOutOfReach has somebody lock what every user may open.
func TestLockIsOutOfReach(t *testing.T) {
	ns, made := open(t)
	everybodys := must[*os.File](t)(os.Open(made.Path()))
	defer func() { _ = everybodys.Close() }()
	check(t, unix.Flock(int(everybodys.Fd()), unix.LOCK_EX))
	check(t, ns.Lock(link.Exclusive, patience))
}

// awaitListener returns when something in the namespace listens to news of
// interfaces (netlink group 1).
func awaitListener(t *testing.T, ns *netns.NS) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		for line := range strings.Lines(ns.RunT(t, "cat", "/proc/thread-self/net/netlink")) {
			// sk Eth Pid Groups …
			if f := strings.Fields(line); f[1] == "0" && f[3] == "00000001" {
				return
			}
		}
	}
	t.Fatal("nothing listens to news of interfaces")
}

func TestAddVeth(t *testing.T) {
	host, _ := open(t)
	pod, _ := open(t)
	br := addBridge(t, host)
	pair := link.Veth{
		Name: "port0", MAC: link.NewMAC(), Master: br, MTU: 1400,
		Peer: "eth0", PeerNS: pod, PeerMAC: link.NewMAC(),
	}
	check(t, host.AddVeth(pair))

	port := must[link.Device](t)(host.Device("port0"))
	peer := must[link.Device](t)(pod.Device("eth0"))
	want := []link.Device{
		{Index: port.Index, Name: "port0", Kind: "veth", MAC: pair.MAC, MTU: 1400, Up: true, Master: br.Index, Peer: peer.Index},
		{Index: peer.Index, Name: "eth0", Kind: "veth", MAC: pair.PeerMAC, MTU: 1400, Peer: port.Index},
	}
	if diff := cmp.Diff(want, []link.Device{port, peer}); diff != "" {
		t.Errorf("both ends (-want +got):\n%s", diff)
	}
}

func TestAddVethLeavesNothingBehind(t *testing.T) {
	take := func(t *testing.T, ns *netns.NS, name string) { ns.RunT(t, "ip", "link", "add", name, "type", "bridge") }
	tests := map[string]struct {
		prepare func(t *testing.T, host, pod *netns.NS)
		master  func(br link.Device) link.Device
		want    error
	}{
		"the name is taken": {
			prepare: func(t *testing.T, host, _ *netns.NS) { take(t, host, "port0") },
			want:    unix.EEXIST,
		},
		"the peer's name is taken": {
			prepare: func(t *testing.T, _, pod *netns.NS) { take(t, pod, "eth0") },
			want:    unix.EEXIST,
		},
		"the bridge is gone": {
			master: func(br link.Device) link.Device { br.Index += 1000; return br },
			want:   unix.EINVAL,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			host, hostNS := open(t)
			pod, podNS := open(t)
			br := addBridge(t, host)
			if tt.prepare != nil {
				tt.prepare(t, hostNS, podNS)
			}
			if tt.master != nil {
				br = tt.master(br)
			}
			list := func() string { return hostNS.RunT(t, "ip", "link") + podNS.RunT(t, "ip", "link") }
			before := list()
			err := host.AddVeth(link.Veth{
				Name: "port0", MAC: link.NewMAC(), Master: br, Peer: "eth0", PeerNS: pod, PeerMAC: link.NewMAC(),
			})
			if !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
			if diff := cmp.Diff(before, list()); diff != "" {
				t.Errorf("interfaces (-before +after):\n%s", diff)
			}
		})
	}
}

func TestBridgeKeepsItsMAC(t *testing.T) {
	host, hostNS := open(t)
	pod, _ := open(t)
	br := addBridge(t, host)
	// A port with the lowest address there is: the bridge would take it.
	connect(t, host, pod, br)
	hostNS.RunT(t, "ip", "link", "set", "port0", "address", "02:00:00:00:00:01")
	if got := must[link.Device](t)(host.Device("br0")).MAC.String(); got != br.MAC.String() {
		t.Errorf("hardware address %s, made with %s", got, br.MAC)
	}
}

func TestDelete(t *testing.T) {
	host, _ := open(t)
	pod, _ := open(t)
	br := addBridge(t, host)
	connect(t, host, pod, br)
	steps := []struct {
		name, kind string
		want       bool
	}{
		{"port0", "bridge", false}, // of another kind: stays
		{"port0", "veth", true},
		{"port0", "veth", false}, // gone
	}
	for _, step := range steps {
		found := must[bool](t)(host.Delete(step.name, step.kind))
		if found != step.want {
			t.Errorf("delete %s %s: found %t, want %t", step.kind, step.name, found, step.want)
		}
	}
	if _, err := pod.Device("eth0"); !errors.Is(err, link.ErrNoDevice) {
		t.Errorf("the other end: error %v, want %v", err, link.ErrNoDevice)
	}
}

func TestAddresses(t *testing.T) {
	host, made := open(t)
	br := addBridge(t, host)
	v4, v6 := netip.MustParsePrefix("10.7.0.1/24"), netip.MustParsePrefix("fd07::1/64")
	check(t, host.AddAddress(br, v4))
	check(t, host.AddAddress(br, v6))
	if err := host.AddAddress(br, v4); !errors.Is(err, unix.EEXIST) {
		t.Errorf("a second time: error %v, want %v", err, unix.EEXIST)
	}
	if out := made.RunT(t, "ip", "-6", "addr", "show", "dev", "br0", "tentative", "scope", "global"); out != "" {
		t.Errorf("the IPv6 address is not usable yet:\n%s", out)
	}
	check(t, host.DeleteAddress(br, link.Address{Prefix: v4}))
	check(t, host.DeleteAddress(br, link.Address{Prefix: v4}))
	var got []netip.Prefix
	for _, a := range must[[]link.Address](t)(host.Addresses(br)) {
		if a.Addr().IsGlobalUnicast() {
			got = append(got, a.Prefix)
		}
	}
	if diff := cmp.Diff([]netip.Prefix{v6}, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
}

func TestRestoreAddress(t *testing.T) {
	tests := map[string][]string{
		"as a person adds it":     {"10.7.0.1/24"},
		"with a broadcast":        {"10.7.0.1/24", "broadcast", "+"},
		"with a label":            {"10.7.0.1/24", "label", "br0:x"},
		"with a scope":            {"10.7.0.1/24", "scope", "link"},
		"with a peer":             {"10.7.0.1", "peer", "10.7.9.1/32"},
		"IPv6":                    {"fd07::1/64", "nodad"},
		"IPv6 without its subnet": {"fd07::1/64", "nodad", "noprefixroute"},
	}
	for name, args := range tests {
		t.Run(name, func(t *testing.T) {
			host, made := open(t)
			br := addBridge(t, host)
			made.RunT(t, "ip", append([]string{"addr", "add", "dev", "br0"}, args...)...)
			list := func() string {
				return made.RunT(t, "ip", "addr", "show", "dev", "br0", "scope", "global") + made.RunT(t, "ip", "route") +
					made.RunT(t, "ip", "addr", "show", "dev", "br0", "scope", "link", "permanent")
			}
			before := list()
			for _, a := range must[[]link.Address](t)(host.Addresses(br)) {
				check(t, host.DeleteAddress(br, a))
				check(t, host.RestoreAddress(br, a))
			}
			if diff := cmp.Diff(before, list()); diff != "" {
				t.Errorf("addresses (-before +after):\n%s", diff)
			}
		})
	}
}

func TestRoutes(t *testing.T) {
	host, _ := open(t)
	pod, _ := open(t)
	connect(t, host, pod, addBridge(t, host))
	eth0 := must[link.Device](t)(pod.Device("eth0"))
	check(t, pod.AddAddress(eth0, netip.MustParsePrefix("10.7.0.2/24")))
	check(t, pod.AddAddress(eth0, netip.MustParsePrefix("fd07::2/64")))
	check(t, pod.SetUp(eth0))

	via4, via6 := netip.MustParseAddr("10.7.0.1"), netip.MustParseAddr("fd07::1")
	routes := map[string]link.Route{
		"default":              {Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: via4, Table: unix.RT_TABLE_MAIN},
		"on the link":          {Dst: netip.MustParsePrefix("10.9.0.0/24"), Table: unix.RT_TABLE_MAIN, Scope: unix.RT_SCOPE_LINK},
		"with all fields":      {Dst: netip.MustParsePrefix("10.8.0.0/16"), Via: via4, MTU: 1300, AdvMSS: 1200, Priority: 7, Table: 100},
		"IPv6 default":         {Dst: netip.MustParsePrefix("::/0"), Via: via6, Priority: 1024, Table: unix.RT_TABLE_MAIN},
		"IPv6 with all fields": {Dst: netip.MustParsePrefix("fd08::/32"), Via: via6, MTU: 1300, AdvMSS: 1200, Priority: 7, Table: 100},
	}
	for name, route := range routes {
		t.Run(name, func(t *testing.T) {
			check(t, pod.AddRoute(eth0, route))
			got := must[[]link.Route](t)(pod.Routes(eth0))
			for _, r := range got {
				if r == route {
					return
				}
			}
			t.Errorf("route %+v is not among %+v", route, got)
		})
	}
	t.Run("several gateways", func(t *testing.T) {
		dst := netip.MustParsePrefix("fd0a::/32")
		for _, via := range []string{"fd07::1", "fd07::5"} {
			check(t, pod.AddRoute(eth0, link.Route{Dst: dst, Via: netip.MustParseAddr(via)}))
		}
		var gateways []string
		for _, r := range must[[]link.Route](t)(pod.Routes(eth0)) {
			if r.Dst == dst {
				gateways = append(gateways, r.Via.String())
			}
		}
		if diff := cmp.Diff([]string{"fd07::1", "fd07::5"}, gateways); diff != "" {
			t.Errorf("gateways (-want +got):\n%s", diff)
		}
	})
	t.Run("a gateway that is nowhere", func(t *testing.T) {
		err := pod.AddRoute(eth0, link.Route{Dst: netip.MustParsePrefix("10.6.0.0/16"), Via: netip.MustParseAddr("192.0.2.1")})
		const want = "add route 10.6.0.0/16 via 192.0.2.1 dev eth0: network is unreachable"
		if err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
	})
}

func TestSysctls(t *testing.T) {
	const path = "net/ipv4/conf/all/arp_notify"
	a, _ := open(t)
	b, _ := open(t)
	check(t, a.SetSysctls(link.Sysctl{Path: path, Value: "1"}, link.Sysctl{Path: "net/no/such", Value: "1"}))
	got := [2]string{must[string](t)(a.Sysctl(path)), must[string](t)(b.Sysctl(path))}
	if want := [2]string{"1", "0"}; got != want {
		t.Errorf("in the namespace and in another: %q, want %q", got, want)
	}
	if err := a.SetSysctls(link.Sysctl{Path: path, Value: "x"}); err == nil {
		t.Error("a value that is not allowed: no error")
	}
	if _, err := a.Sysctl("net/no/such"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such value: error %v, want %v", err, os.ErrNotExist)
	}
}

func TestWaitRunning(t *testing.T) {
	t.Run("forwards when it returns", func(t *testing.T) {
		host, hostNS := open(t)
		pod, _ := open(t)
		connect(t, host, pod, addBridge(t, host))
		check(t, pod.SetUp(must[link.Device](t)(pod.Device("eth0"))))
		port := must[link.Device](t)(host.WaitRunning("port0", patience))
		if !port.Running {
			t.Errorf("returned %+v", port)
		}
		state := "state forwarding"
		if out := hostNS.RunT(t, "bridge", "link", "show", "dev", "port0"); !strings.Contains(out, state) {
			t.Errorf("%q is not in %q", state, out)
		}
	})
	t.Run("comes up while it waits", func(t *testing.T) {
		host, hostNS := open(t)
		pod, _ := open(t)
		connect(t, host, pod, addBridge(t, host))
		eth0 := must[link.Device](t)(pod.Device("eth0"))
		got := make(chan error, 1)
		go func() {
			_, err := host.WaitRunning("port0", patience)
			got <- err
		}()
		awaitListener(t, hostNS)
		check(t, pod.SetUp(eth0))
		check(t, <-got)
	})
	t.Run("never comes up", func(t *testing.T) {
		host, _ := open(t)
		pod, _ := open(t)
		connect(t, host, pod, addBridge(t, host))
		_, err := host.WaitRunning("port0", 10*time.Millisecond)
		const want = "wait 10ms until port0 runs: its link is down"
		if err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
	})
	t.Run("is not there", func(t *testing.T) {
		host, _ := open(t)
		if _, err := host.WaitRunning("port0", patience); !errors.Is(err, link.ErrNoDevice) {
			t.Errorf("error %v, want %v", err, link.ErrNoDevice)
		}
	})
}
