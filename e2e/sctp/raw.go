package sctp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// receiveBuffer of a raw socket holds the packets of many associations at once,
// so that a burst is not lost and sent again a second later.
const receiveBuffer = 4 << 20

// dialRaw makes a raw socket that is connected to remote: the route chooses the
// source address, and the kernel reports ICMP errors.
func dialRaw(ctx context.Context, local, remote netip.Addr) (*net.IPConn, error) {
	if local.IsValid() && local.IsUnspecified() {
		local = netip.Addr{}
	}
	raw, err := new(net.Dialer).DialIP(ctx, network(remote), local, remote)
	if err != nil {
		return nil, err
	}
	return configure(raw, func(fd int) error {
		// With the error queue an ICMP error comes with the packet that it is
		// about, and so with the ports.
		if remote.Is4() {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1)
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
	})
}

// listenRaw makes a raw socket that gets all SCTP packets for local.
func listenRaw(local netip.Addr) (*net.IPConn, error) {
	raw, err := net.ListenIP(network(local), ipAddr(local))
	if err != nil {
		return nil, err
	}
	return configure(raw, func(int) error { return nil })
}

func network(addr netip.Addr) string {
	if addr.Is4() {
		return "ip4:132"
	}
	return "ip6:132"
}

func ipAddr(addr netip.Addr) *net.IPAddr {
	return &net.IPAddr{IP: addr.AsSlice(), Zone: addr.Zone()}
}

func configure(raw *net.IPConn, options func(fd int) error) (*net.IPConn, error) {
	err := control(raw, func(fd int) error {
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer),
			options(fd),
		)
	})
	if err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("configure raw socket: %w", err)
	}
	return raw, nil
}

// onlyPorts lets the kernel throw away, before it wakes anybody, what is not
// between these two ports. (Every raw socket gets a copy of every packet.)
func onlyPorts(raw *net.IPConn, source, destination uint16) error {
	const drop, keep = 0, 0xffffffff
	start := unix.SockFilter{Code: unix.BPF_LDX | unix.BPF_IMM} // IPv6: x = 0
	if raw.LocalAddr().(*net.IPAddr).IP.To4() != nil {
		// A raw IPv4 socket gets the IP header too: x = 4 * (byte 0 & 15).
		start.Code = unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH
	}
	program := []unix.SockFilter{
		start,
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_IND, K: 0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(source), Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_IND, K: 2},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(destination), Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: keep},
		{Code: unix.BPF_RET | unix.BPF_K, K: drop},
	}
	err := control(raw, func(fd int) error {
		return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	})
	if err != nil {
		return fmt.Errorf("attach filter to raw socket: %w", err)
	}
	return nil
}

// receive hands over every valid packet until the socket is closed. The packet
// is the callee's to keep. broken is told of every other error, which on a raw
// socket is a report about a packet that was sent.
func receive(raw *net.IPConn, deliver func(from netip.Addr, p packet), broken func()) {
	buffer := make([]byte, 1<<16)
	for {
		n, from, err := raw.ReadFromIP(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			broken()
			continue
		}
		p := packet(buffer[:n])
		addr, ok := netip.AddrFromSlice(from.IP)
		if !ok || !p.valid() {
			continue
		}
		deliver(addr.Unmap().WithZone(from.Zone), append(packet(nil), p...))
	}
}

// refused empties the error queue of a connected raw socket and says whether it
// told that nobody takes the INIT which was sent from one port to the other.
// Errors that may pass, such as a host that does not answer, are left to the
// retransmission; so are those about a later packet: an association that is up
// is not ended by ICMP, which anybody can forge.
func refused(raw *net.IPConn, source, destination uint16) bool {
	var found bool
	_ = control(raw, func(fd int) error {
		quoted, oob := make(packet, 512), make([]byte, 512)
		for {
			n, oobn, _, _, err := unix.Recvmsg(fd, quoted, oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
			if err != nil {
				return err // the queue is empty
			}
			// ICMP quotes at least eight bytes: the ports and the tag, which is
			// zero in an INIT only.
			about := n >= 8 && quoted.source() == source && quoted.destination() == destination && quoted.tag() == 0
			found = found || about && refusal(oob[:oobn])
		}
	})
	return found
}

// refusal says whether a control message of the error queue means that there is
// nobody: port unreachable, or a host that knows no SCTP at all, which is
// "protocol unreachable" in IPv4 and "unknown next header" in IPv6.
func refusal(oob []byte) bool {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return false
	}
	for _, m := range messages {
		level, kind := int(m.Header.Level), int(m.Header.Type)
		isError := level == unix.IPPROTO_IP && kind == unix.IP_RECVERR ||
			level == unix.IPPROTO_IPV6 && kind == unix.IPV6_RECVERR
		if !isError || len(m.Data) < 4 {
			continue
		}
		switch syscall.Errno(binary.NativeEndian.Uint32(m.Data)) { // sock_extended_err.ee_errno
		case unix.ECONNREFUSED, unix.ENOPROTOOPT, unix.EPROTO:
			return true
		}
	}
	return false
}

// control runs f on the descriptor of a socket.
func control(socket syscall.Conn, f func(fd int) error) error {
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	closed := raw.Control(func(fd uintptr) { err = f(int(fd)) })
	return errors.Join(closed, err)
}
