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

	"github.com/fairlead/fairlead/e2e/echo"
	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/lab/labtest"
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

// traceWay asks a node for the way of a flow to an endpoint.
func traceWay(t *testing.T, n *lab.Node, from netip.Addr, to echo.Endpoint) tracedWay {
	t.Helper()
	o := ask(t, n, "trace", "-o", "json", "--from", from.String(), "--to", to.Addr.String()+"/"+to.Network)
	var answer struct{ Ways map[netip.Addr]tracedWay }
	if err := json.Unmarshal([]byte(o.stdout), &answer); err != nil || o.code != 0 {
		t.Fatalf("trace: %v, %+v", err, o)
	}
	return answer.Ways[to.Addr.Addr()]
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

// gateway6 is the address of IPv6 that Outside has on the link of the first node.
func gateway6(l *lab.Lab) netip.Addr {
	b := l.Nodes[0].Addrs[1].As16()
	copy(b[8:], []byte{7: 1})
	return netip.AddrFrom16(b)
}

// checkWay compares what is said of the source with what the other side sees.
func checkWay(t *testing.T, node *lab.Node, from *lab.Pod, to echo.Endpoint, leaves bool) tracedWay {
	t.Helper()
	own := from.IPv4()
	if to.Addr.Addr().Is6() {
		own = from.IPv6()
	}
	w := traceWay(t, node, own, to)
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

// In every mode an operator sees flows as they begin, with their endpoint.
func TestTraceLive(t *testing.T) {
	for _, mode := range []string{"iptables", "ebpf"} {
		t.Run(mode, func(t *testing.T) {
			c := labtest.NewCluster(t, lab.Options{Nodes: 1, Mode: mode, BinDir: programs.Dir(t)})
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

// What the kernel has not any more of a Service is said by the commands that read it
// back, which mark it and fail.
func TestToolsSeeDamage(t *testing.T) {
	c := labtest.NewCluster(t, lab.Options{Nodes: 1, Mode: "ebpf", BinDir: programs.Dir(t)})
	n := c.Nodes[0]
	trace := []string{"trace", "--from", c.Client.IPv4().String(), "--to", "10.96.0.10:80/tcp"}
	for _, args := range [][]string{{"services"}, trace} {
		if o := ask(t, n, args...); o.code != 0 || strings.Contains(o.stdout, "missing") {
			t.Errorf("before: %+v", o)
		}
	}
	frontends, err := ebpf.LoadPinnedMap(filepath.Join(filepath.Dir(n.Manifests()), "bpf", "maps", "frontends"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = frontends.Close() }()
	for key, err := frontends.NextKeyBytes(nil); key != nil; key, err = frontends.NextKeyBytes(nil) {
		if err = errors.Join(err, frontends.Delete(key)); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"services"}, "default/web !  tcp  10.96.0.10:80/tcp"},
		{[]string{"services"}, "\n  default/web: 10.96.0.10:80/tcp is missing\n"},
		{trace, "kernel  10.96.0.10:80/tcp is missing\n"},
	} {
		o := ask(t, n, tt.args...)
		if o.code != 1 || o.stderr != "fairlead: the kernel has not all as it should\n" || !strings.Contains(squeezed(o.stdout), squeezed(tt.want)) {
			t.Errorf("%s: %+v, want %q", tt.args[0], o, tt.want)
		}
	}
}
