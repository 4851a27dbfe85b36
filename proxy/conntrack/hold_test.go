package conntrack

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/fairlead/fairlead/e2e/netns"
)

// translating is a node that leads 10.96.0.10:80 to itself by rules of others, and a client
// that sends there.
func translating(t *testing.T) (ns, client *netns.NS) {
	t.Helper()
	ns, client = netns.NewT(t), netns.NewT(t)
	ns.RunT(t, "sh", "-ec", `
		ip link set lo up
		ip link add eth0 type veth peer eth0 netns `+client.Path()+`
		ip addr add 10.0.0.1/24 dev eth0
		ip link set eth0 up`)
	client.RunT(t, "sh", "-ec", `
		ip addr add 10.0.0.2/24 dev eth0
		ip link set eth0 up
		ip route add 10.96.0.10 via 10.0.0.1`)
	ns.RunT(t, "nft", `
		add table ip theirs
		add chain ip theirs pre { type nat hook prerouting priority dstnat; }
		add rule ip theirs pre ip daddr 10.96.0.10 tcp dport 80 dnat to 10.0.0.1:80`)
	return ns, client
}

// A connection that is translated goes on when all rules go, as long as it is held,
// and not without: else this would be for nothing.
func TestHold(t *testing.T) {
	for _, held := range []bool{true, false} {
		ns, client := translating(t)
		far, near := connect(t, ns, client)
		if held {
			for range 2 {
				must(t, ns.Do(Hold))
			}
		}
		ns.RunT(t, "nft", "delete", "table", "ip", "theirs")
		wait := 10 * time.Second
		if !held {
			wait = 500 * time.Millisecond
		}
		_, err := far.Write([]byte("x"))
		must(t, err)
		must(t, near.SetReadDeadline(time.Now().Add(wait)))
		if _, err := near.Read(make([]byte, 1)); (err == nil) != held {
			t.Errorf("held %t: what is sent on the open connection comes with error %v", held, err)
		}
		for range 2 {
			must(t, ns.Do(Release))
		}
		if left := ns.RunT(t, "nft", "list", "tables"); strings.Contains(left, holdName) {
			t.Errorf("left: %s", left)
		}
	}
}

// connect connects a client to 10.96.0.10:80, and returns both ends.
func connect(t *testing.T, ns, client *netns.NS) (far, near net.Conn) {
	t.Helper()
	var l net.Listener
	must(t, ns.Do(func() (err error) {
		l, err = net.Listen("tcp", "10.0.0.1:80")
		return err
	}))
	t.Cleanup(func() { _ = l.Close() })
	must(t, client.Do(func() (err error) {
		far, err = net.DialTimeout("tcp", "10.96.0.10:80", 10*time.Second)
		return err
	}))
	t.Cleanup(func() { _ = far.Close() })
	near, err := l.Accept()
	must(t, err)
	t.Cleanup(func() { _ = near.Close() })
	return far, near
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
