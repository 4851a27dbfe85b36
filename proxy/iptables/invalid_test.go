package iptables

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/proxy/service"
)

// A segment outside of the window, as a network that loses and delays makes them,
// is not translated back. A client that saw it would not know it and reset the
// connection; so it must not be forwarded (kubernetes/kubernetes#74839).
func TestInvalidPacketsDoNotReset(t *testing.T) {
	everyVariant(t, func(t *testing.T, n *node) {
		client, server := n.attach("client", "10.0.1"), n.attach("server", "10.0.2")
		n.RunT(t, "sysctl", "-qw", "net.ipv4.ip_forward=1")
		n.counters = 1
		n.backend = n.start()
		table := toServer()
		n.mustSync(table, service.Change{Node: true})
		listener := listen(t, server, "10.0.2.2:8080")

		// Without the rule, this is what happens.
		rules := n.RunT(t, "iptables-"+n.variant, "-S", chainForward)
		_, drop, found := strings.Cut(rules, "-A "+chainForward+" -m conntrack --ctstate INVALID")
		if !found {
			t.Fatalf("rules:\n%s", rules)
		}
		drop, _, _ = strings.Cut(drop, "\n")
		n.RunT(t, "iptables-"+n.variant, append([]string{"-D", chainForward, "-m", "conntrack", "--ctstate", "INVALID"}, strings.Fields(drop)...)...)
		if err := strayed(t, client, server, listener); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("this test proves nothing: %v", err)
		}
		n.backend = n.start()
		n.mustSync(table, service.Change{})
		if err := strayed(t, client, server, listener); err != nil {
			t.Errorf("with a stray segment: %v", err)
		}
		if dropped := n.packets().InvalidDropped; dropped != 1 {
			t.Errorf("counted as dropped: %d", dropped)
		}
	})
}

// attach gives the node a neighbour at NET.2, itself at NET.1.
func (n *node) attach(name, network string) *netns.NS {
	n.t.Helper()
	other := netns.NewT(n.t)
	handle, err := netlink.NewHandleAt(n.Handle())
	if err != nil {
		n.t.Fatal(err)
	}
	defer handle.Close()
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: name})
	veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(other.Handle())
	if err := handle.LinkAdd(veth); err != nil {
		n.t.Fatal(err)
	}
	n.RunT(n.t, "sh", "-ec", "ip addr add "+network+".1/24 dev "+name+"; ip link set "+name+" up")
	other.RunT(n.t, "sh", "-ec", "ip addr add "+network+".2/24 dev eth0; ip link set eth0 up; ip route add default via "+network+".1")
	return other
}

// toServer is the Table of one Service at 10.96.0.1.
func toServer() *service.Table {
	r := service.NewResolver(service.Config{NodeName: "n1"})
	r.Apply(serverAs("web", "10.96.0.1"))
	return r.Table()
}

func listen(t *testing.T, in *netns.NS, addr string) net.Listener {
	t.Helper()
	var l net.Listener
	if err := in.Do(func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// strayed connects, lets the server send a segment outside of the window, and says
// how the server then fares with the connection.
func strayed(t *testing.T, client, server *netns.NS, listener net.Listener) error {
	t.Helper()
	var conn net.Conn
	if err := client.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp", "10.96.0.1:80", 5*time.Second)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = accepted.Close() }()
	stray(t, server, accepted.(*net.TCPConn))
	// The stray segment, and an answer to it, are on their way before what follows.
	if _, err := accepted.Write([]byte("ping")); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, make([]byte, 4)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("pong")); err != nil {
		return err
	}
	_ = accepted.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, err = io.ReadFull(accepted, make([]byte, 4))
	return err
}

// stray sends a segment of a connection whose sequence number is far ahead.
func stray(t *testing.T, server *netns.NS, conn *net.TCPConn) {
	t.Helper()
	sent, received := sequenceNumbers(t, conn)
	from, to := netip.MustParseAddrPort(conn.LocalAddr().String()), netip.MustParseAddrPort(conn.RemoteAddr().String())
	segment := make([]byte, 20)
	binary.BigEndian.PutUint16(segment[0:], from.Port())
	binary.BigEndian.PutUint16(segment[2:], to.Port())
	binary.BigEndian.PutUint32(segment[4:], sent+1<<28)
	binary.BigEndian.PutUint32(segment[8:], received)
	segment[12], segment[13] = 5<<4, 1<<4 // five words of header, ACK
	binary.BigEndian.PutUint16(segment[14:], 1000)
	binary.BigEndian.PutUint16(segment[16:], checksum(from.Addr(), to.Addr(), segment))
	err := server.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		return unix.Sendto(fd, segment, 0, &unix.SockaddrInet4{Addr: to.Addr().As4()})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// sequenceNumbers are the next to be sent and to be received, see TCP_QUEUE_SEQ in
// linux/tcp.h.
func sequenceNumbers(t *testing.T, conn *net.TCPConn) (sent, received uint32) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		number := func(queue int) uint32 {
			err := unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, queue)
			n, err2 := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
			failed = errors.Join(failed, err, err2)
			return uint32(n)
		}
		const on, offWithoutProbe, recvQueue, sendQueue = 1, -1, 1, 2
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR, on)
		sent, received = number(sendQueue), number(recvQueue)
		failed = errors.Join(failed, unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR, offWithoutProbe))
	})
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
	return sent, received
}

// checksum is TCP's over IPv4 (RFC 9293, 3.1).
func checksum(from, to netip.Addr, segment []byte) uint16 {
	pseudo := append(from.AsSlice(), to.AsSlice()...)
	pseudo = append(pseudo, 0, unix.IPPROTO_TCP, 0, byte(len(segment)))
	var sum uint32
	for _, part := range [][]byte{pseudo, segment} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
