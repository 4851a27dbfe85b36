package e2e

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/netns"
)

// flow is where a packet comes from (its port left out) and goes to.
type flow struct {
	network string
	src     netip.Addr
	dst     netip.AddrPort
}

// capture listens to all packets that come into the namespace from now on. What
// it returns gives those that came until it is called.
func capture(t *testing.T, ns *netns.NS) func() []flow {
	t.Helper()
	var fd int
	err := ns.Do(func() (err error) {
		// SOCK_DGRAM: what is read begins with the IP header.
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return func() []flow {
		var flows []flow
		packet := make([]byte, 65536)
		for {
			n, _, err := unix.Recvfrom(fd, packet, 0)
			if errors.Is(err, unix.EAGAIN) {
				return flows
			}
			if err != nil {
				t.Fatal(err)
			}
			if f, ok := parse(packet[:n]); ok {
				flows = append(flows, f)
			}
		}
	}
}

func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

var networks = map[byte]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_SCTP: "sctp"}

// parse reads an IP packet. All three protocols have their ports in the same
// place, and nothing here sends IPv6 extension headers.
func parse(p []byte) (flow, bool) {
	var protocol byte
	var src, dst, transport []byte
	switch {
	case len(p) >= 40 && p[0]>>4 == 6: // RFC 8200, section 3
		protocol, src, dst, transport = p[6], p[8:24], p[24:40], p[40:]
	case len(p) >= 20 && p[0]>>4 == 4 && len(p) >= int(p[0]&15)*4: // RFC 791, section 3.1
		protocol, src, dst, transport = p[9], p[12:16], p[16:20], p[int(p[0]&15)*4:]
	default:
		return flow{}, false
	}
	network, ok := networks[protocol]
	if !ok || len(transport) < 4 {
		return flow{}, false
	}
	from, _ := netip.AddrFromSlice(src)
	to, _ := netip.AddrFromSlice(dst)
	return flow{network, from, netip.AddrPortFrom(to, binary.BigEndian.Uint16(transport[2:]))}, true
}
