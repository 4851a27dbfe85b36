package cni_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/netns"
)

// TestCheckedFrames has a pod whose source is checked send frames to everybody
// on the bridge, and looks which of them a neighbour gets.
func TestCheckedFrames(t *testing.T) {
	const own, foreign = "10.9.0.2", "10.9.0.77"
	tests := map[string]struct {
		packet packet
		passes bool
	}{
		"from its own address":               {fromIPv4(own), true},
		"from another address":               {fromIPv4(foreign), false},
		"one tag, from its own address":      {tagged(unix.ETH_P_8021Q, fromIPv4(own)), true},
		"one tag, from another address":      {tagged(unix.ETH_P_8021Q, fromIPv4(foreign)), false},
		"two tags":                           {tagged(unix.ETH_P_8021Q, tagged(unix.ETH_P_8021Q, fromIPv4(foreign))), false},
		"two tags, the second of a provider": {tagged(unix.ETH_P_8021Q, tagged(unix.ETH_P_8021AD, fromIPv4(foreign))), false},
		"two tags, the first of a provider":  {tagged(unix.ETH_P_8021AD, tagged(unix.ETH_P_8021Q, fromIPv4(foreign))), false},

		"from another IPv6 address":                {message("fd09::77", 128, "::"), false},
		"from an address of the link":              {message("fe80::bad", 128, "::"), true},
		"advertises its own address":               {message("fd09::2", advertisement, "fd09::2"), true},
		"advertises an address of the link":        {message("fe80::bad", advertisement, "fe80::bad"), true},
		"advertises another address":               {message("fd09::2", advertisement, "fd09::77"), false},
		"advertises another address from the link": {message("fe80::bad", advertisement, "fd09::77"), false},
		"advertises another address from nowhere":  {message("::", advertisement, "fd09::77"), false},
		"advertises behind an option":              {withOption(message("fe80::bad", advertisement, "fd09::77")), false},
		"asks for another address":                 {message("fe80::bad", 135, "fd09::77"), true},
		"makes itself a router":                    {message("fe80::bad", 134, "::"), false},
		"makes itself a router behind an option":   {withOption(message("fe80::bad", 134, "::")), false},
	}
	node, pod, neighbour := newNode(t), newPod(t, "pod"), newPod(t, "neighbour")
	conf := newNetwork(t, "10.9.0.0/24", "fd09::/64").with("macspoofchk", true)
	node.addT(t, pod, conf)
	node.addT(t, neighbour, conf)
	from, to := openFrames(t, pod.ns), openFrames(t, neighbour.ns)
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			from.send(t, tt.packet, "["+name+"]")
			from.send(t, fromIPv4(own), "[the last]")
			if passed := to.get(t, "["+name+"]", "[the last]"); passed != tt.passes {
				t.Errorf("the neighbour got it: %v, want %v", passed, tt.passes)
			}
		})
	}
}

// packet is a frame from the EtherType on, with a label in it to know it by.
type packet func(label string) []byte

// experimental is the number of a protocol that nobody has (RFC 3692).
const experimental = 253

// fromIPv4 is a packet with no more in its header than it needs (RFC 791).
func fromIPv4(source string) packet {
	return func(label string) []byte {
		header := make([]byte, 20)
		header[0], header[8], header[9] = 4<<4|5, 64, experimental
		binary.BigEndian.PutUint16(header[2:], uint16(len(header)+len(label)))
		copy(header[12:], netip.MustParseAddr(source).AsSlice())
		copy(header[16:], netip.MustParseAddr("255.255.255.255").AsSlice())
		binary.BigEndian.PutUint16(header[10:], checksum(header))
		return append(append(binary.BigEndian.AppendUint16(nil, unix.ETH_P_IP), header...), label...)
	}
}

// advertisement is the type of a neighbour advertisement (RFC 4861).
const advertisement = 136

// message is one of ICMPv6, to all nodes of the link, with a target where those
// of NDP have theirs. Its checksum is wrong, and for the receiver to look at.
func message(source string, kind byte, target string) packet {
	return func(label string) []byte {
		header := make([]byte, 40)
		header[0], header[6], header[7] = 6<<4, unix.IPPROTO_ICMPV6, 255
		copy(header[8:], netip.MustParseAddr(source).AsSlice())
		copy(header[24:], netip.MustParseAddr("ff02::1").AsSlice())
		body := append([]byte{kind, 0, 0, 0, 0, 0, 0, 0}, netip.MustParseAddr(target).AsSlice()...)
		body = append(body, label...)
		binary.BigEndian.PutUint16(header[4:], uint16(len(body)))
		return append(append(binary.BigEndian.AppendUint16(nil, unix.ETH_P_IPV6), header...), body...)
	}
}

// withOption is an IPv6 packet with an extension header in it, of nothing but
// padding (RFC 8200, section 4.6).
func withOption(inner packet) packet {
	return func(label string) []byte {
		const begin, next, end = 2, 2 + 6, 2 + 40 // of the header, behind the EtherType
		p := inner(label)
		options := []byte{p[next], 0, 1, 4, 0, 0, 0, 0}
		p[next] = unix.IPPROTO_DSTOPTS
		length := binary.BigEndian.Uint16(p[begin+4:])
		binary.BigEndian.PutUint16(p[begin+4:], length+uint16(len(options)))
		return slices.Insert(p, end, options...)
	}
}

// checksum is that of RFC 1071.
func checksum(data []byte) uint16 {
	var sum uint32
	for ; len(data) >= 2; data = data[2:] {
		sum += uint32(binary.BigEndian.Uint16(data))
	}
	sum = sum>>16 + sum&0xffff
	return ^uint16(sum>>16 + sum)
}

// tagged is a packet in VLAN 5.
func tagged(kind uint16, inner packet) packet {
	return func(label string) []byte {
		return append(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, kind), 5), inner(label)...)
	}
}

// frames is a packet socket on a pod's eth0.
type frames struct {
	fd  int
	mac net.HardwareAddr
}

func openFrames(t *testing.T, ns *netns.NS) frames {
	t.Helper()
	var f frames
	err := ns.Do(func() error {
		device, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		f.mac = device.HardwareAddr
		if f.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		everything := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		return unix.Bind(f.fd, &unix.SockaddrLinklayer{Protocol: everything, Ifindex: device.Index})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(f.fd) })
	limit := unix.NsecToTimeval(patience.Nanoseconds())
	if err := unix.SetsockoptTimeval(f.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		t.Fatal(err)
	}
	return f
}

// send sends a packet to everybody.
func (f frames) send(t *testing.T, p packet, label string) {
	t.Helper()
	frame := append(bytes.Repeat([]byte{0xff}, 6), f.mac...)
	if _, err := unix.Write(f.fd, append(frame, p(label)...)); err != nil {
		t.Fatal(err)
	}
}

// get reads until the last packet comes and reports whether the other came
// before.
func (f frames) get(t *testing.T, label, last string) (got bool) {
	t.Helper()
	buffer := make([]byte, 2048)
	for {
		n, err := unix.Read(f.fd, buffer)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(buffer[:n], []byte(last)) {
			return got
		}
		got = got || bytes.Contains(buffer[:n], []byte(label))
	}
}
