package echo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/e2e/netns"
)

var (
	networks  = []string{"tcp", "udp", "sctp"}
	addresses = []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}
)

// host is a namespace that has the addresses.
func host(t *testing.T) *netns.NS {
	t.Helper()
	ns := netns.NewT(t)
	ns.RunT(t, "ip", "link", "set", "lo", "up")
	return ns
}

// server is a running Server.
type server struct {
	at   map[string]netip.AddrPort // network → where it is asked
	stop func() error
}

// serve runs a server of every network at addr until the test ends.
func serve(t *testing.T, ns *netns.NS, addr netip.Addr) server {
	t.Helper()
	var at []Endpoint
	for _, network := range networks {
		at = append(at, Endpoint{network, netip.AddrPortFrom(addr, 0)})
	}
	var s *Server
	err := ns.Do(func() (err error) {
		s, err = Listen("pod-1", at...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	out := server{at: map[string]netip.AddrPort{}}
	for _, e := range s.Endpoints() {
		out.at[e.Network] = e.Addr
	}
	out.stop = func() error {
		cancel()
		err := <-served
		served <- err // for the next call
		return err
	}
	t.Cleanup(func() {
		if err := out.stop(); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return out
}

// eachEndpoint runs a test for each network and family, with a server.
func eachEndpoint(t *testing.T, test func(t *testing.T, ns *netns.NS, at Endpoint)) {
	ns := host(t)
	for _, addr := range addresses {
		server := serve(t, ns, addr)
		for _, network := range networks {
			t.Run(network+" "+addr.String(), func(t *testing.T) {
				test(t, ns, Endpoint{network, server.at[network]})
			})
		}
	}
}

func ask(ctx context.Context, ns *netns.NS, laddr netip.AddrPort, at Endpoint) (Reply, error) {
	var reply Reply
	err := ns.Do(func() (err error) {
		reply, err = Ask(ctx, at.Network, laddr, at.Addr)
		return err
	})
	return reply, err
}

func openT(t *testing.T, ns *netns.NS, at Endpoint) *Session {
	t.Helper()
	var s *Session
	err := ns.Do(func() (err error) {
		s, err = Open(t.Context(), at.Network, netip.AddrPort{}, at.Addr)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

var compareAddrPorts = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })

func TestAsk(t *testing.T) {
	eachEndpoint(t, func(t *testing.T, ns *netns.NS, at Endpoint) {
		laddr := netip.AddrPortFrom(at.Addr.Addr(), 20000)
		got, err := ask(t.Context(), ns, laddr, at)
		if err != nil {
			t.Fatal(err)
		}
		if got.ID == "" {
			t.Error("the reply has no id")
		}
		want := Reply{ID: got.ID, Name: "pod-1", Client: laddr, Server: at.Addr}
		if diff := cmp.Diff(want, got, compareAddrPorts); diff != "" {
			t.Errorf("reply (-want +got):\n%s", diff)
		}
	})
}

// Each ask is a flow of its own, each ask of a session the same flow.
func TestSourcePorts(t *testing.T) {
	eachEndpoint(t, func(t *testing.T, ns *netns.NS, at Endpoint) {
		const n = 100
		session := openT(t, ns, at)
		apart, together := map[netip.AddrPort]bool{}, map[netip.AddrPort]bool{}
		for range n {
			reply, err := ask(t.Context(), ns, netip.AddrPort{}, at)
			if err != nil {
				t.Fatal(err)
			}
			apart[reply.Client] = true
			if reply, err = session.Ask(t.Context()); err != nil {
				t.Fatal(err)
			}
			together[reply.Client] = true
		}
		if len(apart) != n || len(together) != 1 {
			t.Errorf("%d asks came from %d ports, %d asks of one session from %d", n, len(apart), n, len(together))
		}
	})
}

func TestAskRefused(t *testing.T) {
	eachEndpoint(t, func(t *testing.T, ns *netns.NS, at Endpoint) {
		at.Addr = netip.AddrPortFrom(at.Addr.Addr(), 9)
		if _, err := ask(t.Context(), ns, netip.AddrPort{}, at); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("got error %v, want connection refused", err)
		}
	})
}

// Nobody answers: neither before the connection nor on it.
func TestAskEndsWithContext(t *testing.T) {
	eachEndpoint(t, func(t *testing.T, ns *netns.NS, at Endpoint) {
		session := openT(t, ns, at)
		tool, rule := "iptables", "INPUT -p "+at.Network+" -j DROP"
		if at.Addr.Addr().Is6() {
			tool = "ip6tables"
		}
		ns.RunT(t, tool, strings.Fields("-A "+rule)...)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := ask(ctx, ns, netip.AddrPort{}, at); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ask returned %v", err)
		}
		if _, err := session.Ask(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ask on a session returned %v", err)
		}
		ns.RunT(t, tool, strings.Fields("-D "+rule)...)
	})
}

// A lost request is sent again, and the reply that is late is nobody's.
func TestUDPLoss(t *testing.T) {
	ns := host(t)
	var peer *net.UDPConn
	err := ns.Do(func() (err error) {
		peer, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addresses[0], 0)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = peer.Close() })
	session := openT(t, ns, Endpoint{"udp", addrPort(peer.LocalAddr())})

	// The peer loses the first request and answers the second one twice: with an
	// id of the past and with its own.
	received := make(chan string, 2)
	go func() {
		buffer := make([]byte, maxLine)
		for i := range 2 {
			n, from, err := peer.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return
			}
			received <- string(buffer[:n])
			if i == 1 {
				_, _ = peer.WriteToUDPAddrPort([]byte(`{"id":"past","name":"late"}`+"\n"), from)
				_, _ = peer.WriteToUDPAddrPort(buffer[:n], from)
			}
		}
	}()
	reply, err := session.Ask(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	first, second := <-received, <-received
	if first != second {
		t.Errorf("the request was %q, then %q", first, second)
	}
	if want := fmt.Sprintf("{\"id\":%q}\n", reply.ID); reply.Name != "" || first != want {
		t.Errorf("request %q was answered by %+v", first, reply)
	}
}

// A server that is told to stop ends its connections and returns no error.
func TestServerStops(t *testing.T) {
	ns := host(t)
	server := serve(t, ns, addresses[0])
	for _, network := range []string{"tcp", "sctp"} {
		session := openT(t, ns, Endpoint{network, server.at[network]})
		if _, err := session.Ask(t.Context()); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if _, err := session.Ask(t.Context()); err == nil {
				t.Errorf("%s: a stopped server answers", network)
			}
		}()
	}
	if err := server.stop(); err != nil {
		t.Errorf("serve returned %v", err)
	}
}

// Whoever does not speak as a client is cut off; the others are served.
func TestNonsense(t *testing.T) {
	ns := host(t)
	server := serve(t, ns, addresses[0])
	for _, nonsense := range []string{"GET / HTTP/1.1\r\n", strings.Repeat("x", 2*maxLine)} {
		for _, network := range networks {
			at := Endpoint{network, server.at[network]}
			session := openT(t, ns, at)
			if _, err := io.WriteString(session.conn, nonsense); err != nil {
				t.Fatal(err)
			}
			if network != "udp" {
				if got, _ := bufio.NewReader(session.conn).ReadString('\n'); got != "" {
					t.Errorf("%s: nonsense was answered with %q", network, got)
				}
			}
			if _, err := ask(t.Context(), ns, netip.AddrPort{}, at); err != nil {
				t.Errorf("%s: after nonsense: %v", network, err)
			}
		}
	}
}

func TestListenFails(t *testing.T) {
	ns := host(t)
	server := serve(t, ns, addresses[0])
	free := Endpoint{"tcp", netip.AddrPortFrom(addresses[0], 80)}
	for _, row := range []struct {
		name string
		at   Endpoint
		want string
	}{
		{"unknown network", Endpoint{"icmp", free.Addr}, `network must be "tcp", "udp" or "sctp"`},
		{"no address", Endpoint{"udp", netip.AddrPort{}}, "the address must be one of this host"},
		{"every address", Endpoint{"udp", netip.MustParseAddrPort("[::]:80")}, "the address must be one of this host"},
		{"taken tcp", Endpoint{"tcp", server.at["tcp"]}, "address already in use"},
		{"taken udp", Endpoint{"udp", server.at["udp"]}, "address already in use"},
		{"taken sctp", Endpoint{"sctp", server.at["sctp"]}, "address already in use"},
	} {
		t.Run(row.name, func(t *testing.T) {
			err := ns.Do(func() error {
				_, err := Listen("pod-2", free, row.at)
				return err
			})
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("got error %v, want %s", err, row.want)
			}
			// What was opened before the failure is closed.
			if _, err := ask(t.Context(), ns, netip.AddrPort{}, free); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("the endpoint before it: %v", err)
			}
		})
	}
}
