package faults

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/lab/labtest"
	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/e2e/traffic"
)

// oddPackets has a pod and somebody outside send what no program sends to what others
// use: flags that exclude each other, options, fragments, headers that end too early.
func (c cluster) oddPackets(t *testing.T) {
	tr := traffic.Start(t, c.sources...)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for _, from := range c.sources {
		for _, network := range []string{"tcp", "udp"} {
			sendOdd(t, from.NS, random, network, first(from.To, network))
		}
	}
	tr.GoOn(t)
	tr.End(t)
}

func sendOdd(t *testing.T, ns *netns.NS, random *rand.Rand, network string, to netip.AddrPort) {
	t.Helper()
	protocol := map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP}[network]
	fd := rawSocket(t, ns)
	defer func() { _ = unix.Close(fd) }()
	count, sent := size(500, 50_000), 0
	for range count {
		if unix.Sendto(fd, odd(random, protocol, to), 0, &unix.SockaddrInet4{Addr: to.Addr().As4()}) == nil {
			sent++
		}
		time.Sleep(100 * time.Microsecond)
	}
	if sent < count/2 {
		t.Errorf("only %d of %d packets could be sent", sent, count)
	}
}

// odd is a packet to a destination with one thing or the other wrong. Its source is the
// sender's.
func odd(random *rand.Rand, protocol byte, to netip.AddrPort) []byte {
	transport := make([]byte, 8+random.IntN(60))
	for i := range transport {
		transport[i] = byte(random.Uint32())
	}
	binary.BigEndian.PutUint16(transport, uint16(1+random.IntN(1023))) // no port that others use
	binary.BigEndian.PutUint16(transport[2:], to.Port())
	p := datagram(protocol, [4]byte{}, to.Addr().As4(), append(transport, make([]byte, 12)...))
	switch random.IntN(4) {
	case 0: // a fragment, the first or another
		binary.BigEndian.PutUint16(p[6:], uint16(random.Uint32()&0x3fff))
	case 1: // options, none of which is known
		options := make([]byte, 4*random.IntN(11))
		for i := range options {
			options[i] = 1 // end them all the same
		}
		p = append(append(p[:20:20], options...), p[20:]...)
		p[0] = 0x40 | byte(5+len(options)/4)
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	case 2: // it ends in its header
		p = p[:20+random.IntN(len(transport))]
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	}
	return p
}

// hostilePod is what a pod must not reach on a node, and cannot keep others from.
func (c cluster) hostilePod(t *testing.T) {
	pod := labtest.AddPod(t, c.Lab, c.Nodes[0], "hostile")
	addr := c.Nodes[0].Addrs[0].String()
	t.Run("metrics", func(t *testing.T) {
		for _, port := range []string{"10249", "10254"} {
			if err := reach(pod.NS(), addr+":"+port); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("port %s: %v, want connection refused", port, err)
			}
		}
	})
	t.Run("health kept busy", func(t *testing.T) {
		for range 300 {
			var conn net.Conn
			err := pod.NS().Do(func() (err error) {
				conn, err = net.DialTimeout("tcp", addr+":10256", 10*time.Second)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			_, _ = conn.Write([]byte("GET /healthz HTTP/1.1\r\nX-Slow: ")) // and no end
			defer func() { _ = conn.Close() }()
		}
		if text, err := get(t.Context(), c.Nodes[0], "http://127.0.0.1:10256/healthz"); err != nil || !strings.Contains(text, `"healthy":true`) {
			t.Errorf("%s, %v", text, err)
		}
	})
	t.Run("localhost", func(t *testing.T) { c.localhost(t, pod) })
}

// localhost of another host is what CVE-2020-8558 was about. What listens there, of a
// node's, is reached by nobody else, whether the node's kernel routes such addresses,
// as it must for node ports on localhost, or not.
func (c cluster) localhost(t *testing.T, pod *lab.Pod) {
	pod.NS().RunT(t, "sh", "-ec", `
		sysctl -qw net.ipv4.conf.all.route_localnet=1 net.ipv4.conf.eth0.route_localnet=1
		ip address del 127.0.0.1/8 dev lo
		ip route add 127.0.0.1 via `+c.gateway(pod))
	if err := reach(pod.NS(), proxyMetrics); err == nil {
		t.Error("a pod reaches its node's 127.0.0.1")
	}
	if c.mode != "ebpf" {
		return
	}
	// There nobody routes these addresses. If somebody else does, this is how it looks.
	c.Nodes[0].NS().RunT(t, "sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1")
	if err := reach(pod.NS(), proxyMetrics); err != nil {
		t.Errorf("this test proves nothing: %v", err)
	}
	c.Nodes[0].NS().RunT(t, "sysctl", "-qw", "net.ipv4.conf.all.route_localnet=0")
}

func (c cluster) gateway(pod *lab.Pod) string { return pod.Node.PodCIDRs[0].Addr().Next().String() }

func reach(from *netns.NS, addr string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return from.Do(func() error {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err == nil {
			_ = conn.Close()
		}
		return err
	})
}
