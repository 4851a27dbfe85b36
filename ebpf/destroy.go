package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ErrCannotEnd is that the kernel was built without CONFIG_INET_DIAG_DESTROY.
var ErrCannotEnd = errors.New("the kernel cannot end sockets of others")

// EndSockets ends sockets, given by their cookies: reads fail with ECONNABORTED, and
// writes to UDP ones with EDESTADDRREQ, as those who own them may connect again. They
// are looked for in the network namespaces whose descriptors netns has. The error may
// wrap ErrCannotEnd.
func EndSockets(sockets map[uint64]Peer, netns iter.Seq[int]) error {
	ending := map[uint64]map[uint64]Peer{} // network namespace → socket → its peer
	for cookie, peer := range sockets {
		if ending[peer.Netns] == nil {
			ending[peer.Netns] = map[uint64]Peer{}
		}
		ending[peer.Netns][cookie] = peer
	}
	if len(ending) == 0 {
		return nil // mostly; to look for namespaces takes its time
	}
	var errs error
	for fd := range netns {
		errs = errors.Join(errs, endIn(fd, ending))
		if len(ending) == 0 {
			break
		}
	}
	return errs
}

// CanEndSockets tries it with a socket of its own. The error may wrap ErrCannotEnd.
func CanEndSockets() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Bind(fd, &unix.SockaddrInet4{}); err != nil {
		return err
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return err
	}
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return fmt.Errorf("ask for sockets: %w", err)
	}
	defer func() { _ = conn.Close() }()
	return endAll(conn, unix.AF_INET, unix.IPPROTO_UDP, map[uint64]Peer{cookie: {}})
}

// endIn ends those of the sockets that are in a network namespace, and takes it
// off the list.
func endIn(netns int, ending map[uint64]map[uint64]Peer) error {
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, &netlink.Config{NetNS: netns})
	if err != nil {
		return fmt.Errorf("ask for sockets: %w", err)
	}
	defer func() { _ = conn.Close() }()
	cookie, err := cookieOf(conn)
	if err != nil {
		return err
	}
	sockets := ending[cookie]
	delete(ending, cookie)
	asked := map[uint8]bool{}
	for _, peer := range sockets {
		protocol := uint8(peer.Protocol)
		if asked[protocol] {
			continue
		}
		asked[protocol] = true
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			if err := endAll(conn, family, protocol, sockets); err != nil {
				return err
			}
		}
	}
	return nil
}

func cookieOf(conn *netlink.Conn) (uint64, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cookie uint64
	var optErr error
	err = raw.Control(func(fd uintptr) {
		cookie, optErr = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	})
	return cookie, errors.Join(err, optErr)
}

// What sock_diag(7) and linux/inet_diag.h call these.
const (
	sockDiagByFamily = 20
	sockDestroy      = 21
	allStates        = ^uint32(0)
)

// diagID is struct inet_diag_sockid. The cookie is two words there.
type diagID struct {
	Ports     [2]uint16
	Addrs     [2]Addr
	Interface uint32
	Cookie    [2]uint32
}

// diagRequest is struct inet_diag_req_v2.
type diagRequest struct {
	Family, Protocol, Ext, Pad uint8
	States                     uint32
	ID                         diagID
}

// idAt is where struct inet_diag_msg has its diagID.
const idAt = 4

// endAll looks through the sockets of a family and protocol.
func endAll(conn *netlink.Conn, family, protocol uint8, sockets map[uint64]Peer) error {
	all := diagRequest{Family: family, Protocol: protocol, States: allStates}
	found, err := conn.Execute(message(sockDiagByFamily, netlink.Request|netlink.Dump, all))
	if err != nil {
		return fmt.Errorf("list sockets: %w", err)
	}
	for _, m := range found {
		one := diagRequest{Family: family, Protocol: protocol, States: allStates}
		if _, err := binary.Decode(m.Data[min(idAt, len(m.Data)):], binary.NativeEndian, &one.ID); err != nil {
			return fmt.Errorf("decode a socket of %d bytes: %w", len(m.Data), err)
		}
		cookie := uint64(one.ID.Cookie[0]) | uint64(one.ID.Cookie[1])<<32
		if _, ok := sockets[cookie]; !ok {
			continue
		}
		_, err := conn.Execute(message(sockDestroy, netlink.Request|netlink.Acknowledge, one))
		if errors.Is(err, unix.EOPNOTSUPP) {
			return ErrCannotEnd
		}
		if err != nil && !errors.Is(err, unix.ENOENT) { // it has ended
			return fmt.Errorf("end socket: %w", err)
		}
	}
	return nil
}

func message(kind netlink.HeaderType, flags netlink.HeaderFlags, r diagRequest) netlink.Message {
	data, _ := binary.Append(nil, binary.NativeEndian, r) // has no fields that it cannot
	return netlink.Message{Header: netlink.Header{Type: kind, Flags: flags}, Data: data}
}
