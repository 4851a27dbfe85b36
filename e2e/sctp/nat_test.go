package sctp

import (
	"errors"
	"net/netip"
	"regexp"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fairlead/fairlead/e2e/netns"
)

// natPlan names the addresses of a client and a server on both sides of a router
// that translates address and port:
//
//	client ── clientGateway router serverGateway ── server
//	vip:9 ──────────────────DNAT───────────▶ server:7777
type natPlan struct {
	name                  string
	iptables, bits        string
	client, clientGateway string
	server, serverGateway string
	vip, backend          string
}

var natPlans = []natPlan{
	{
		name: "IPv4", iptables: "iptables", bits: "/24",
		client: "10.1.0.1", clientGateway: "10.1.0.2",
		server: "10.2.0.1", serverGateway: "10.2.0.2",
		vip: "10.96.0.1:9", backend: "10.2.0.1:7777",
	},
	{
		name: "IPv6", iptables: "ip6tables", bits: "/64",
		client: "fd01::1", clientGateway: "fd01::2",
		server: "fd02::1", serverGateway: "fd02::2",
		vip: "[fd96::1]:9", backend: "[fd02::1]:7777",
	},
}

func (p natPlan) build(t *testing.T) (client, router, server *netns.NS) {
	t.Helper()
	client, router, server = netns.NewT(t), netns.NewT(t), netns.NewT(t)
	router.RunT(t, "ip", "link", "add", "client", "type", "veth", "peer", "name", "eth0", "netns", client.Path())
	router.RunT(t, "ip", "link", "add", "server", "type", "veth", "peer", "name", "eth0", "netns", server.Path())
	up(t,
		nic{client, "eth0", []string{p.client + p.bits}},
		nic{router, "client", []string{p.clientGateway + p.bits}},
		nic{router, "server", []string{p.serverGateway + p.bits}},
		nic{server, "eth0", []string{p.server + p.bits}},
	)
	client.RunT(t, "ip", "route", "add", "default", "via", p.clientGateway)
	server.RunT(t, "ip", "route", "add", "default", "via", p.serverGateway)
	router.RunT(t, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	vip := netip.MustParseAddrPort(p.vip)
	router.RunT(t, p.iptables, "-t", "nat", "-A", "PREROUTING", "-p", "sctp",
		"-d", vip.Addr().String(), "--dport", "9", "-j", "DNAT", "--to-destination", p.backend)
	return client, router, server
}

// Conntrack follows the association from state to state, which it does only for
// packets whose checksums and verification tags are right.
func TestThroughPortTranslation(t *testing.T) {
	for _, plan := range natPlans {
		t.Run(plan.name, func(t *testing.T) {
			t.Parallel()
			client, router, server := plan.build(t)
			vip, backend := netip.MustParseAddrPort(plan.vip), netip.MustParseAddrPort(plan.backend)
			listener := listen(t, server, backend.Addr(), backend.Port())
			c := dialT(t, client, vip)
			s, err := listener.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if got := portOf(c.RemoteAddr()); got != vip {
				t.Errorf("the client speaks with %s, want %s", got, vip)
			}
			if got, want := portOf(s.RemoteAddr()), portOf(c.LocalAddr()); got != want {
				t.Errorf("the server sees client %s, want %s", got, want)
			}
			go func() {
				if _, err := s.Write([]byte("hello")); err != nil {
					t.Error(err)
				}
			}()
			if _, err := c.Read(make([]byte, 5)); err != nil {
				t.Fatal(err)
			}
			awaitTracked(t, router, "ESTABLISHED")

			// Between SHUTDOWN ACK and SHUTDOWN COMPLETE.
			hold := []string{"INPUT", "-p", "sctp", "--chunk-types", "any", "SHUTDOWN_ACK", "-j", "DROP"}
			client.RunT(t, plan.iptables, append([]string{"-A"}, hold...)...)
			var closing errgroup.Group
			closing.Go(c.Close)
			awaitTracked(t, router, "SHUTDOWN_ACK_SENT")
			client.RunT(t, plan.iptables, append([]string{"-D"}, hold...)...)
			if err := errors.Join(closing.Wait(), s.Close()); err != nil {
				t.Fatal(err)
			}
			awaitTracked(t, router, "CLOSED")
		})
	}
}

var stateOf = regexp.MustCompile(`(?m)^sctp\s+132 \d+ (\S+) `)

// awaitTracked waits until conntrack knows one association, in this state.
func awaitTracked(t *testing.T, ns *netns.NS, want string) {
	t.Helper()
	var out string
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		out = ns.RunT(t, "conntrack", "-L", "-f", "ipv4", "-p", "sctp") +
			ns.RunT(t, "conntrack", "-L", "-f", "ipv6", "-p", "sctp")
		states := stateOf.FindAllStringSubmatch(out, -1)
		if len(states) == 1 && states[0][1] == want {
			return
		}
	}
	t.Fatalf("conntrack never came to %s:\n%s", want, out)
}
