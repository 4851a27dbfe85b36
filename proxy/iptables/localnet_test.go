package iptables

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/proxy/service"
)

// With route_localnet somebody on the node's network reaches what listens on its
// 127.0.0.1 (CVE-2020-8558); not so with node ports on localhost, which bring the
// guard.
func TestLocalnetIsGuarded(t *testing.T) {
	everyVariant(t, func(t *testing.T, n *node) {
		neighbour := netns.NewT(t)
		connect(t, n.NS, neighbour)
		var listener net.Listener
		if err := n.Do(func() (err error) {
			listener, err = net.Listen("tcp", "127.0.0.1:9000")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = listener.Close() }()
		reach := func() error {
			return neighbour.Do(func() error {
				conn, err := net.DialTimeout("tcp", "127.0.0.1:9000", time.Second)
				if err == nil {
					_ = conn.Close()
				}
				return err
			})
		}

		n.RunT(t, "sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1")
		if err := reach(); err != nil {
			t.Fatalf("this test proves nothing: %v", err)
		}
		n.mustSync(&service.Table{LocalhostNodePorts: true}, service.Change{Node: true})
		var timeout net.Error
		if err := reach(); !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("a neighbour reaches 127.0.0.1: %v", err)
		}
	})
}

// connect links two namespaces: 192.0.2.1 is the node, 192.0.2.2 the neighbour,
// which has no 127.0.0.1 of its own.
func connect(t *testing.T, node, neighbour *netns.NS) {
	t.Helper()
	handle, err := netlink.NewHandleAt(node.Handle())
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: "eth0"})
	veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(neighbour.Handle())
	if err := handle.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	node.RunT(t, "sh", "-ec", "ip link set lo up; ip addr add 192.0.2.1/24 dev eth0; ip link set eth0 up")
	neighbour.RunT(t, "sh", "-ec", `
		sysctl -qw net.ipv4.conf.all.route_localnet=1
		ip addr add 192.0.2.2/24 dev eth0
		ip link set eth0 up
		ip route add 127.0.0.1 via 192.0.2.1 src 192.0.2.2`)
}

// route_localnet is on while node ports are on localhost, and then as it was.
func TestLocalnetIsPutBack(t *testing.T) {
	everyVariant(t, func(t *testing.T, n *node) {
		routed := func() string {
			return strings.TrimSpace(n.RunT(t, "sysctl", "-n", "net.ipv4.conf.all.route_localnet"))
		}
		for _, before := range []string{"0", "1"} {
			n.RunT(t, "sysctl", "-qw", "net.ipv4.conf.all.route_localnet="+before)
			for name, end := range map[string]func() error{
				"cleanup":       func() error { return n.Do(func() error { return n.backend.Cleanup(t.Context()) }) },
				"not asked for": func() error { return n.sync(&service.Table{}, service.Change{Node: true}) },
			} {
				n.backend = n.start()
				n.mustSync(&service.Table{}, service.Change{Node: true})
				if got := routed(); got != before {
					t.Errorf("%s, was %s: %s although nobody asked for it", name, before, got)
				}
				n.mustSync(&service.Table{LocalhostNodePorts: true}, service.Change{Node: true})
				if got := routed(); got != "1" {
					t.Errorf("%s, was %s: %s while asked for", name, before, got)
				}
				n.backend = n.start() // another process
				if err := end(); err != nil {
					t.Error(err)
				}
				if got := routed(); got != before {
					t.Errorf("%s, was %s: %s afterwards", name, before, got)
				}
			}
		}
	})
}
