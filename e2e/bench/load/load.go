// Package load makes the traffic of fairlead-lab bench: a server that costs
// little and a client that measures, both of them processes of their own inside
// network namespaces.
//
// What is measured is the way between the two, so both stand aside: one thread
// each, sockets by system calls, one byte asked and one answered. Whatever they
// cost is in every candidate's figures alike, and makes candidates seem more
// alike than they are.
//
// A conversation begins with a letter that says what is asked:
//
//	p  ping: the same letter comes back, once for each sent
//	w  who: a line comes back, the server's name and the client's address as it sees it
//	s  sink: what follows is read and thrown away
//
// Over SCTP, which is done in user space on most machines, the server is that of
// package echo.
package load

import (
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	askPing = 'p'
	askWho  = 'w'
	askSink = 's'
)

// Answer is what a server saw of a connection.
type Answer struct {
	Server string         `json:"server"` // its name
	Client netip.AddrPort `json:"client"` // after any translation
}

func (a Answer) line() []byte { return []byte(a.Server + " " + a.Client.String() + "\n") }

func parseAnswer(line []byte) (Answer, error) {
	name, client, _ := strings.Cut(strings.TrimSuffix(string(line), "\n"), " ")
	addr, err := netip.ParseAddrPort(client)
	if err != nil {
		return Answer{}, fmt.Errorf("read answer %q: %w", line, err)
	}
	return Answer{name, addr}, nil
}

// sockaddr is what system calls want in place of an AddrPort.
func sockaddr(at netip.AddrPort) (family int, sa unix.Sockaddr) {
	if at.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}
