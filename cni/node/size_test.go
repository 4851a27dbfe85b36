package node

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Packets of all sizes get through, those that are too large in fragments or, if
// they must not be cut, after a word to the sender.
func TestSizes(t *testing.T) {
	w := newWorld(t)
	w.connect(testOptions)
	a, b, c := w.nodes["a"], w.nodes["b"], w.nodes["c"]
	const mtu = 1430 // also where the link takes more: the other node's pods do not
	if plan := a.sync(t, w.others(a), testOptions); plan.MTU != mtu {
		t.Errorf("MTU %d, want %d: that of eth0 less VXLAN over IPv6", plan.MTU, mtu)
	}
	tests := []struct {
		name string
		to   *testNode
	}{{"direct", b}, {"VXLAN", c}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for family := range families {
				to := reflect(t, tt.to, family)
				whole := mtu - 28 // IPv4, UDP
				if family == 1 {
					whole = mtu - 48
				}
				from := dial(t, a, to)
				from.exchange(t, whole)
				from.exchange(t, 4000)
				from.refuse(t, mtu, whole+1)
			}
		})
	}
}

// reflect has the pod of a node send every datagram back.
func reflect(t *testing.T, n *testNode, family int) netip.AddrPort {
	t.Helper()
	at := netip.AddrPortFrom(n.podAddr(family, 2), 9999)
	var conn *net.UDPConn
	err := n.pod.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		buf := make([]byte, 1<<16)
		for {
			size, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = conn.WriteToUDPAddrPort(buf[:size], from)
		}
	}()
	return at
}

// sender is a socket of a pod.
type sender struct {
	*net.UDPConn
	is6 bool
}

func dial(t *testing.T, n *testNode, to netip.AddrPort) sender {
	t.Helper()
	var conn *net.UDPConn
	err := n.pod.Do(func() (err error) {
		conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return sender{conn, to.Addr().Is6()}
}

// discover says whether the socket's packets may be cut.
func (s sender) discover(t *testing.T, how int) {
	t.Helper()
	s.control(t, func(fd int) error {
		if s.is6 {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, how)
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, how)
	})
}

func (s sender) control(t *testing.T, f func(fd int) error) {
	t.Helper()
	raw, err := s.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil || inner != nil {
		t.Fatal(err, inner)
	}
}

// exchange sends a datagram, in fragments if need be, until it comes back: the
// first packet that is too large for the way is lost and makes the way known.
func (s sender) exchange(t *testing.T, size int) {
	t.Helper()
	s.discover(t, unix.IP_PMTUDISC_WANT)
	buf := make([]byte, 1<<16)
	for range 5 {
		if _, err := s.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		if err := s.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Read(buf); err == nil && got == size {
			return
		}
	}
	t.Errorf("%s: a datagram of %d bytes does not come back", s.RemoteAddr(), size)
}

// refuse sends a datagram that must not be cut and is too large for the way: the
// sender is told, and knows the MTU of the way.
func (s sender) refuse(t *testing.T, mtu, size int) {
	t.Helper()
	s.discover(t, unix.IP_PMTUDISC_DO)
	for range 5 {
		_, err := s.Write(make([]byte, size))
		if errors.Is(err, syscall.EMSGSIZE) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		if n, err := s.Read(make([]byte, 1<<16)); err == nil {
			t.Errorf("%s: a datagram of %d bytes came back uncut", s.RemoteAddr(), n)
			return
		}
	}
	s.control(t, func(fd int) error {
		level, option := unix.IPPROTO_IP, unix.IP_MTU
		if s.is6 {
			level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU
		}
		got, err := unix.GetsockoptInt(fd, level, option)
		if got != mtu {
			t.Errorf("%s: path MTU %d, want %d", s.RemoteAddr(), got, mtu)
		}
		return err
	})
}
