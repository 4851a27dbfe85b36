package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/fairlead/fairlead/cni/host/namespaces"
	"github.com/fairlead/fairlead/e2e/cgroup"
	"github.com/fairlead/fairlead/e2e/echo"
	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/netns"
)

// fairlead is a command that asks a node's programs, as an operator does there.
func fairlead(ctx context.Context, t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	return exec.CommandContext(ctx, filepath.Join(programs.Dir(t), "fairlead"), args...)
}

// sockets are the flags by which commands find the programs of a node of the lab.
func sockets(n *lab.Node) []string {
	dir := filepath.Dir(n.Manifests())
	return []string{"--socket", filepath.Join(dir, "proxy.sock"), "--node-socket", filepath.Join(dir, "node.sock")}
}

// ask runs a command on a node to its end.
func ask(t *testing.T, n *lab.Node, args ...string) outcome {
	t.Helper()
	flags := sockets(n)
	if args[0] == "services" { // of which 'fairlead node' knows nothing
		flags = flags[:2]
	}
	return finish(t, inNode(t, n, fairlead(t.Context(), t, slices.Concat(args, flags)...)))
}

// tracedWay is what 'fairlead trace -o json' says of a way.
type tracedWay struct {
	Device string
	Tunnel *struct{ Remote netip.Addr }
	NAT    struct {
		Masqueraded bool
		To          netip.Addr
		Why         string
		Perhaps     []string
	}
}

// traced is what 'fairlead trace -o json' says.
type traced struct {
	Class     string
	Path      string
	Unsure    string
	IfHere    *struct{ Class, Path string }
	Endpoints []tracedEndpoint
	Ways      map[netip.Addr]tracedWay
}

type tracedEndpoint struct {
	Addr       netip.AddrPort
	Masquerade bool
}

// trace asks a node what becomes of a flow.
func trace(t *testing.T, n *lab.Node, from netip.Addr, to echo.Endpoint) (answer traced) {
	t.Helper()
	o := ask(t, n, "trace", "-o", "json", "--from", from.String(), "--to", to.Addr.String()+"/"+to.Network)
	if err := json.Unmarshal([]byte(o.stdout), &answer); err != nil || o.code != 0 {
		t.Fatalf("trace: %v, %+v", err, o)
	}
	return answer
}

// What trace says of the way between two pods, and out of the cluster, is what packets
// do: through a tunnel where the other node is behind a router, and with a source that
// the other side sees.
func TestTraceBetweenPods(t *testing.T) {
	l, pods := routed(t)
	outside := []echo.Endpoint{{Network: "udp", Addr: netip.AddrPortFrom(lab.Gateway(), 9997)}, {Network: "udp", Addr: netip.AddrPortFrom(gateway6(l), 9997)}}
	echo.ServeT(t, l.Outside(), "outside", outside...)
	for i, from := range pods {
		for j, to := range pods {
			for _, at := range to.Endpoints() {
				if i != j && at.Network == "udp" {
					w := checkWay(t, l.Nodes[i], from, at, false)
					if behind := (i == 2) != (j == 2); (w.Tunnel != nil) != behind {
						t.Errorf("from pod %d to %s: tunnel %+v", i+1, at.Addr, w.Tunnel)
					}
				}
			}
		}
		for _, at := range outside {
			checkWay(t, l.Nodes[i], from, at, true)
		}
	}
	node, from, to := l.Nodes[0], pods[0].IPv4().String(), pods[2].IPv4().String()
	for _, o := range []outcome{
		ask(t, node, "trace", "--from", from, "--to", to),
		finish(t, inNode(t, node, fairlead(t.Context(), t, "trace", "--from", from, "--to", to, "--socket", "/nonexistent", sockets(node)[2], sockets(node)[3]))),
	} {
		for _, want := range []string{
			fmt.Sprintf("way  by fairlead-vx4, via %s, in VXLAN 7250 to %[1]s by eth0\n", l.Nodes[2].Addrs[0]),
			fmt.Sprintf("route  10.244.3.0/24 via %s dev fairlead-vx4 (fairlead node)\n", l.Nodes[2].Addrs[0]),
			"NAT  no: what goes to 10.244.3.0/24 goes without (nftables table ip fairlead-node)\n",
		} {
			if o.code != 0 || !strings.Contains(squeezed(o.stdout), want) {
				t.Errorf("trace: code %d, no %q in\n%s%s", o.code, want, o.stdout, o.stderr)
			}
		}
	}
}

// squeezed has two spaces for any number of them more.
func squeezed(text string) string {
	for strings.Contains(text, "   ") {
		text = strings.ReplaceAll(text, "   ", "  ")
	}
	return text
}

// inNode has a command run on a node.
func inNode(t *testing.T, n *lab.Node, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	cmd.Args = append([]string{"nsenter", "--net=" + n.NS().Path()}, cmd.Args...)
	path, err := exec.LookPath("nsenter")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Path = path
	return cmd
}

// ownAddr is the address from which a pod reaches a destination.
func ownAddr(pod *lab.Pod, to echo.Endpoint) netip.Addr {
	if to.Addr.Addr().Is6() {
		return pod.IPv6()
	}
	return pod.IPv4()
}

// gateway6 is the address of IPv6 that Outside has on the link of the first node.
func gateway6(l *lab.Lab) netip.Addr {
	b := l.Nodes[0].Addrs[1].As16()
	copy(b[8:], []byte{7: 1})
	return netip.AddrFrom16(b)
}

// checkWay compares what is said of the source with what the other side sees.
func checkWay(t *testing.T, node *lab.Node, from *lab.Pod, to echo.Endpoint, leaves bool) tracedWay {
	t.Helper()
	own := ownAddr(from, to)
	w := trace(t, node, own, to).Ways[to.Addr.Addr()]
	reply, err := from.Ask(t.Context(), to)
	if err != nil {
		t.Fatal(err)
	}
	saw, said := reply.Client.Addr(), own
	if w.NAT.Masqueraded {
		said = w.NAT.To
	}
	if said != saw || w.NAT.Masqueraded != leaves || len(w.NAT.Perhaps) > 0 {
		t.Errorf("%s sees %s, and it was said: %+v", to.Addr, saw, w)
	}
	return w
}

// Whom an endpoint sees is what trace says, however the flow is led. What goes to one
// outside the cluster, which knows no way back to a pod, is masqueraded in each mode.
func TestTraceOfSources(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			c := newCluster(t, 1, mode)
			for _, to := range slices.Concat(c.serveOutside(t), c.NodePorts(t, 30080)) {
				t.Run(to.Network+" "+to.Addr.String(), func(t *testing.T) {
					path := map[bool]string{true: "packet", false: "socket"}[to.Network == "sctp"]
					if mode != "ebpf" {
						path = "tracked"
					}
					c.checkSource(t, to, path)
				})
			}
			to := ask(t, c.Nodes[0], "trace", "--from", c.Client.IPv4().String(), "--to", "10.96.0.20:80/sctp")
			if says := "sees an address of this node: it is outside the cluster"; strings.Contains(to.stdout, says) != (mode == "ebpf") {
				t.Errorf("%+v", to)
			}
		})
	}
}

// serveOutside makes a Service whose one endpoint is outside the cluster.
func (c cluster) serveOutside(t *testing.T) []echo.Endpoint {
	t.Helper()
	addrs := []netip.Addr{lab.Gateway(), gateway6(c.Lab)}
	service := lab.NewService("far", "10.96.0.20", "fd00:10:96::20")
	objects := []lab.Object{service}
	for i, o := range lab.Slices(service) {
		slice := o.(*discoveryv1.EndpointSlice)
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{addrs[i].String()}})
		objects = append(objects, slice)
		for _, network := range lab.Networks {
			echo.ServeT(t, c.Outside(), "far", echo.Endpoint{Network: network, Addr: netip.AddrPortFrom(addrs[i], lab.PodPort)})
		}
	}
	if err := c.Apply(objects...); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(t.Context(), service); err != nil {
		t.Fatal(err)
	}
	return lab.VIPs(service)
}

// checkSource compares what is said of a flow's source with what its endpoint sees.
func (c cluster) checkSource(t *testing.T, to echo.Endpoint, path string) {
	t.Helper()
	c.checkSourceOf(t, ownAddr(c.Client, to), c.Client.Ask, to, path)
}

// checkSourceOf is checkSource for a sender of that address.
func (c cluster) checkSourceOf(t *testing.T, own netip.Addr, ask func(context.Context, echo.Endpoint) (echo.Reply, error), to echo.Endpoint, path string) {
	t.Helper()
	node := c.Nodes[0]
	said := trace(t, node, own, to)
	reply, err := ask(t.Context(), to)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(said.Endpoints, func(e tracedEndpoint) bool { return e.Addr == reply.Server })
	_, hidden := namespaces.All() // as by a root that lacks a capability which process 1 has
	if i < 0 || said.Path != path || said.Unsure != "" && (hidden == nil || path != "packet") {
		t.Fatalf("%s answers, by %s it was said: %+v", reply.Server, path, said)
	}
	want := []netip.Addr{own}
	if nat := said.Ways[reply.Server.Addr()].NAT; nat.Masqueraded {
		want = []netip.Addr{nat.To}
	}
	if said.Endpoints[i].Masquerade {
		want = append(slices.Clone(node.Addrs), node.PodCIDRs[0].Addr().Next(), node.PodCIDRs[1].Addr().Next())
	}
	if saw := reply.Client.Addr(); !slices.Contains(want, saw) {
		t.Errorf("it sees %s, and it was said: %+v", saw, said)
	}
}

// A sender whose address is in no range of pods, such as a container of Docker, and one
// behind a router, are led by their sockets if these are on the node, and are pods then;
// else by their packets, from outside. Trace knows which, and asks back where it cannot.
func TestTraceOfSenders(t *testing.T) {
	c := newCluster(t, 1, "ebpf")
	node := c.Nodes[0]
	container, behind, machine := netns.NewT(t), netns.NewT(t), netns.NewT(t)
	for i, ns := range []*netns.NS{container, machine} {
		node.NS().RunT(t, "sh", "-ec", fmt.Sprintf(`
			ip link add port%[1]d type veth peer eth0 netns %[2]s
			ip link set port%[1]d up
			ip addr add 172.30.%[1]d.1/24 dev port%[1]d`, i, ns.Path()))
		ns.RunT(t, "sh", "-ec", fmt.Sprintf("ip addr add 172.30.%[1]d.2/24 dev eth0; ip link set eth0 up; ip route add default via 172.30.%[1]d.1", i))
	}
	container.RunT(t, "sh", "-ec", `
		ip link add port type veth peer eth0 netns `+behind.Path()+`
		ip link set port up
		ip addr add 172.31.0.1/24 dev port
		sysctl -qw net.ipv4.ip_forward=1`)
	behind.RunT(t, "sh", "-ec", "ip addr add 172.31.0.2/24 dev eth0; ip link set eth0 up; ip route add default via 172.31.0.1")
	node.NS().RunT(t, "ip", "route", "add", "172.31.0.0/24", "via", "172.30.0.2")
	group, err := cgroup.Named(filepath.Base(node.Cgroup()))
	if err != nil {
		t.Fatal(err)
	}
	for _, ns := range []*netns.NS{container, behind} { // the machine is another one, with a cgroup of its own
		ns.Join(group)
	}
	machine.Join(cgroup.NewT(t))
	for _, ns := range []*netns.NS{container, behind, machine} {
		stay(t, ns)
	}
	for _, sender := range []struct {
		name, addr, path string
		ns               *netns.NS
	}{
		{"container", "172.30.0.2", "socket", container},
		{"behind a container", "172.31.0.2", "socket", behind},
		{"machine", "172.30.1.2", "packet", machine},
	} {
		for _, to := range c.VIPs {
			if to.Addr.Addr().Is6() {
				continue
			}
			t.Run(sender.name+" "+to.Network, func(t *testing.T) {
				path := sender.path
				if to.Network == "sctp" {
					path = "packet"
				}
				ask := func(ctx context.Context, to echo.Endpoint) (reply echo.Reply, err error) {
					err = sender.ns.Do(func() error {
						reply, err = echo.Ask(ctx, to.Network, netip.AddrPort{}, to.Addr)
						return err
					})
					return reply, err
				}
				c.checkSourceOf(t, netip.MustParseAddr(sender.addr), ask, to, path)
			})
		}
	}
	nobody := node.PodCIDRs[0].Addr().As4()
	nobody[3] = 250
	said := trace(t, node, netip.AddrFrom4(nobody), c.VIPs[0])
	if said.Unsure == "" || said.Path != "packet" || said.IfHere == nil || said.IfHere.Path != "socket" || said.IfHere.Class != "pod" {
		t.Errorf("of an address that nobody has: %+v", said)
	}
}

// stay has a process in a namespace, and in its cgroup, until the test ends, or is ended.
func stay(t *testing.T, ns *netns.NS) {
	t.Helper()
	cmd := exec.Command("cat")
	input, err := cmd.StdinPipe()
	if err == nil {
		err = ns.Do(cmd.Start)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = input.Close()
		_ = cmd.Wait()
	})
}

// In every mode an operator sees flows as they begin, with their endpoint.
func TestTraceLive(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			c := newCluster(t, 1, mode)
			ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
			defer stop()
			to := c.VIPs[0]
			cmd := inNode(t, c.Nodes[0], fairlead(ctx, t, "trace", "--live", "-o", "json", "--to", to.Addr.String()+"/"+to.Network, "--socket", sockets(c.Nodes[0])[1]))
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := make(chan string)
			go func() {
				for scan := bufio.NewScanner(out); scan.Scan(); {
					select {
					case lines <- scan.Text():
					case <-ctx.Done():
						return
					}
				}
			}()
			var event struct{ Service, Backend, To string }
			for event.Service == "" {
				if _, err := c.Client.Ask(ctx, to); err != nil {
					t.Fatal(err)
				}
				select {
				case line := <-lines:
					if err := json.Unmarshal([]byte(line), &event); err != nil {
						t.Fatalf("%v: %s", err, line)
					}
				case <-time.After(50 * time.Millisecond): // it was not listening yet
				}
			}
			stop()
			_ = cmd.Wait() // it was ended
			if !strings.HasPrefix(event.Service, "default/web") || event.To != to.Addr.String() || !strings.HasPrefix(event.Backend, "10.244.1.") {
				t.Errorf("seen: %+v", event)
			}
		})
	}
}

// In every mode the commands that read the kernel back find all well, and what it has
// not any more of a Service: they mark it and fail.
func TestToolsSeeDamage(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			c := newCluster(t, 1, mode)
			services, tracing := []string{"services"}, []string{"trace", "--from", c.Client.IPv4().String(), "--to", "10.96.0.10:80/tcp"}
			kind, _, _ := strings.Cut(mode, "-")
			c.awaitAnswer(t, fmt.Sprintf("data path  %s, by --mode %[1]s: %s", kind, strings.TrimPrefix(mode, "ebpf")), 0, []string{"status"}, func() {})
			c.awaitAnswer(t, "has all this as it should", 0, tracing, func() {})
			c.awaitAnswer(t, "default/web  tcp  10.96.0.10:80/tcp", 0, services, func() {})
			damage := func() { c.damage(t, mode) }
			c.awaitAnswer(t, "default/web !  tcp  10.96.0.10:80/tcp", 1, services, damage)
			c.awaitAnswer(t, "missing", 1, services, damage)
			c.awaitAnswer(t, "missing", 1, tracing, damage)
		})
	}
}

// awaitAnswer has something done and a command asked, until it answers as is wanted:
// what is damaged in mode iptables is mended in the same second.
func (c cluster) awaitAnswer(t *testing.T, want string, code int, args []string, do func()) {
	t.Helper()
	stderr := ""
	if code != 0 {
		stderr = "fairlead: the kernel has not all as it should\n"
	}
	for end := time.Now().Add(time.Minute); ; {
		do()
		o := ask(t, c.Nodes[0], args...)
		if o.code == code && o.stderr == stderr && strings.Contains(squeezed(o.stdout), want) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %+v, want %d and %q", args[0], o, code, want)
		}
	}
}

// damage removes from the kernel what leads to Services.
func (c cluster) damage(t *testing.T, mode string) {
	t.Helper()
	n := c.Nodes[0]
	if iptables, ok := strings.CutPrefix(mode, "iptables-"); ok {
		n.NS().RunT(t, "iptables-"+iptables, "-w", "-t", "nat", "-F", "FAIRLEAD-SERVICES")
		return
	}
	frontends, err := ebpf.LoadPinnedMap(filepath.Join(n.BPFRoot(), "maps", "frontends"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = frontends.Close() }()
	for key, err := frontends.NextKeyBytes(nil); key != nil; key, err = frontends.NextKeyBytes(nil) {
		if err = errors.Join(err, frontends.Delete(key)); err != nil {
			t.Fatal(err)
		}
	}
}
