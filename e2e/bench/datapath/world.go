package datapath

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/fairlead/fairlead/e2e/bench/apiserver"
	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/netns"
)

// Addresses of a world: IPv4, IPv6.
var (
	clientAddr  = pair("10.244.1.9", "fd00:10:244:1::9")
	backendAddr = map[string][2]netip.Addr{
		"a": pair("10.244.1.2", "fd00:10:244:1::2"),
		"b": pair("10.244.1.3", "fd00:10:244:1::3"),
		"c": pair("10.244.1.4", "fd00:10:244:1::4"),
	}
	nodeAddr    = pair("192.168.50.1", "fd00:50::1")
	gatewayAddr = pair("192.168.50.254", "fd00:50::fe")
	outsideAddr = pair("203.0.113.9", "2001:db8::9")
	linkAddr    = pair("169.254.1.1", "fe80::1") // of the node, on each pod's link
)

func pair(ipv4, ipv6 string) [2]netip.Addr {
	return [2]netip.Addr{netip.MustParseAddr(ipv4), netip.MustParseAddr(ipv6)}
}

const (
	nodeName    = "node"
	metricsAddr = "127.0.0.1:10249"
)

// world is a node of its own for one candidate, with those who send through it:
//
//	client ──── node ──── pods a, b, c, three addresses of one namespace
//	              │
//	           outside, behind the node's default route
//
// each a network namespace. The node routes; nothing else is between them. The
// API server that its proxy watches is this process, on the node's loopback.
type world struct {
	candidate string
	programs  programs
	dir       string // the world's files
	cgroup    string // of the pods; "": there is no cgroup v2
	// proxyCgroup is that of the proxy, by which its processor time is counted.
	proxyCgroup string
	bpf         string // folder for the proxy's pinned BPF objects

	client, node, pods, outside *netns.NS

	api        *apiserver.Server
	kubeconfig string
	proxy      *lab.Program // nil: it does not run
	switchedTo string       // the endpoint of the Service switch
	services   int          // that the API server has beside the measured ones
	otherMode  string       // the candidate that the proxy can go over to, "" for none

	// Who sends. unhooked is in the client's namespace and in no cgroup of the
	// pods: a program on sockets does not see it, as it sees no virtual machine.
	agents                             []*agent
	server, pod, unhooked, fromOutside *agent
}

// newWorld makes a world without a proxy.
func newWorld(ctx context.Context, c claim, p programs, candidate string) (*world, error) {
	name := strings.ReplaceAll(candidate, " ", "-")
	w := &world{candidate: candidate, programs: p, dir: filepath.Join(c.dir, name), bpf: filepath.Join(c.bpf, name)}
	if c.cgroup != "" {
		w.cgroup, w.proxyCgroup = filepath.Join(c.cgroup, name), filepath.Join(c.cgroup, name+"-proxy")
	}
	if err := w.build(ctx); err != nil {
		w.close()
		return nil, fmt.Errorf("build the world of %s: %w", candidate, err)
	}
	return w, nil
}

func (w *world) build(ctx context.Context) error {
	if err := os.MkdirAll(w.dir, 0o755); err != nil {
		return err
	}
	if w.cgroup != "" {
		for _, dir := range []string{w.cgroup, w.proxyCgroup} {
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
		}
	}
	for _, ns := range []**netns.NS{&w.node, &w.client, &w.pods, &w.outside} {
		var err error
		if *ns, err = netns.New(); err != nil {
			return err
		}
	}
	if err := w.connect(ctx); err != nil {
		return err
	}
	if err := w.serveAPI(); err != nil {
		return err
	}
	return w.startAgents(ctx)
}

// connect makes links, addresses and routes.
func (w *world) connect(ctx context.Context) error {
	const router = `
		ip link set lo up
		sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
		sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0`
	if err := shell(ctx, w.node, router); err != nil {
		return err
	}
	var backends [][2]netip.Addr
	for _, a := range backendAddr {
		backends = append(backends, a)
	}
	if err := w.attach(ctx, "client", w.client, [][2]netip.Addr{clientAddr}); err != nil {
		return err
	}
	if err := w.attach(ctx, "pods", w.pods, backends); err != nil {
		return err
	}
	return w.attachOutside(ctx)
}

// attach gives a namespace of pods a link to the node, which routes to its
// addresses.
func (w *world) attach(ctx context.Context, name string, ns *netns.NS, addrs [][2]netip.Addr) error {
	script := link(name, ns)
	inside := "ip link set lo up; ip link set eth0 up\n"
	for _, a := range addrs {
		inside += fmt.Sprintf("ip addr add %s/32 dev eth0; ip addr add %s/128 dev eth0 nodad\n", a[0], a[1])
		script += fmt.Sprintf("ip route add %s dev %s; ip route add %s dev %s\n", a[0], name, a[1], name)
	}
	inside += fmt.Sprintf(`
		ip route add %s dev eth0
		ip route add default via %s
		ip route add default via %s dev eth0`, linkAddr[0], linkAddr[0], linkAddr[1])
	before, after, _ := strings.Cut(script, "\n")
	if err := shell(ctx, w.node, before); err != nil {
		return err
	}
	if err := shell(ctx, ns, inside); err != nil {
		return err
	}
	up := fmt.Sprintf("ip link set %[1]s up; ip addr add %[2]s/32 dev %[1]s; ip addr add %[3]s/64 dev %[1]s nodad\n", name, linkAddr[0], linkAddr[1])
	return shell(ctx, w.node, up+after)
}

// attachOutside makes the node's uplink and who is behind it.
func (w *world) attachOutside(ctx context.Context) error {
	if err := shell(ctx, w.node, link("uplink", w.outside)); err != nil {
		return err
	}
	inside := fmt.Sprintf(`
		ip link set lo up; ip link set eth0 up
		ip addr add %s/24 dev eth0; ip addr add %s/64 dev eth0 nodad
		ip addr add %s/32 dev lo; ip addr add %s/128 dev lo nodad
		ip route add default via %s src %s
		ip route add default via %s src %s`,
		gatewayAddr[0], gatewayAddr[1], outsideAddr[0], outsideAddr[1],
		nodeAddr[0], outsideAddr[0], nodeAddr[1], outsideAddr[1])
	if err := shell(ctx, w.outside, inside); err != nil {
		return err
	}
	return shell(ctx, w.node, fmt.Sprintf(`
		ip link set uplink up
		ip addr add %s/24 dev uplink; ip addr add %s/64 dev uplink nodad
		ip route add default via %s src %s
		ip route add default via %s`,
		nodeAddr[0], nodeAddr[1], gatewayAddr[0], nodeAddr[0], gatewayAddr[1]))
}

// link is the command that makes a pair of interfaces: name on the node, eth0 in
// the namespace.
func link(name string, ns *netns.NS) string {
	return fmt.Sprintf("ip link add %s mtu 1500 type veth peer name eth0 mtu 1500 netns %s\n", name, ns.Path())
}

func shell(ctx context.Context, ns *netns.NS, script string) error {
	_, err := ns.Output(ctx, "sh", "-ec", script)
	return err
}

// serveAPI starts the API server and writes the kubeconfig for it.
func (w *world) serveAPI() error {
	var l net.Listener
	err := w.node.Do(func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:8001")
		return err
	})
	if err != nil {
		return err
	}
	if w.api, err = apiserver.New(l); err != nil {
		return errors.Join(err, l.Close())
	}
	config := api.NewConfig()
	config.Clusters["bench"] = &api.Cluster{Server: w.api.URL()}
	config.Contexts["bench"] = &api.Context{Cluster: "bench"}
	config.CurrentContext = "bench"
	w.kubeconfig = filepath.Join(w.dir, "kubeconfig")
	return clientcmd.WriteToFile(*config, w.kubeconfig)
}

// close ends everything in the world. Its files are the claim's.
func (w *world) close() {
	w.stopProxy()
	for _, a := range w.agents {
		a.close()
	}
	if w.api != nil {
		_ = w.api.Close()
	}
	for _, ns := range []*netns.NS{w.client, w.node, w.pods, w.outside} {
		if ns != nil {
			_ = ns.Close()
		}
	}
}

var errEnded = errors.New("it ended")
