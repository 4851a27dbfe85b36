package cni_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
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
