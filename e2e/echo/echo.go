// Package echo is the application that the tests and the lab run in pods: a
// server that tells each client who answered and what it saw, and the client
// that asks. Over TCP, UDP and SCTP alike one line of JSON each way:
//
//	→ {"id":"6f2c…"}
//	← {"id":"6f2c…","name":"web-1","client":"10.1.0.7:40112","server":"10.1.1.3:8080"}
//
// Sockets are made on the thread of the caller, which may be inside a network
// namespace (see e2e/netns). Nothing is shared between asks, so that each is a
// new flow for whatever balances it.
package echo

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
)

// Reply is what the server saw of one request.
type Reply struct {
	ID     string         `json:"id"`     // of the request
	Name   string         `json:"name"`   // of the server
	Client netip.AddrPort `json:"client"` // source of the request, after any translation
	Server netip.AddrPort `json:"server"` // destination, after any translation
}

type request struct {
	ID string `json:"id"`
}

// maxLine bounds a line of either side.
const maxLine = 4096

// writeLine sends v in one piece, which over UDP is one datagram.
func writeLine(conn net.Conn, v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = conn.Write(append(line, '\n'))
	return err
}

// readLine fills v from the next line.
func readLine(lines *bufio.Reader, v any) error {
	line, err := lines.ReadSlice('\n')
	if err != nil {
		return err
	}
	if err := json.Unmarshal(line, v); err != nil {
		return fmt.Errorf("decode line %s: %w", strconv.Quote(string(line)), err)
	}
	return nil
}

// addrPort is the address of any of the three protocols. (package net gives an
// IPv4 address the IPv6 form here and there.)
func addrPort(addr net.Addr) netip.AddrPort {
	withPort, ok := addr.(interface{ AddrPort() netip.AddrPort })
	if !ok {
		return netip.AddrPort{}
	}
	ap := withPort.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

var errNetwork = errors.New(`network must be "tcp", "udp" or "sctp"`)
