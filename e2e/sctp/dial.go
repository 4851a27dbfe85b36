package sctp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"

	"github.com/pion/sctp"
)

// dialUser opens an association in user space over a raw socket of its own.
func dialUser(ctx context.Context, laddr, raddr netip.AddrPort) (net.Conn, error) {
	raw, err := dialRaw(ctx, laddr.Addr(), raddr.Addr())
	if err != nil {
		return nil, err
	}
	p, err := dialPath(raw, laddr.Port(), raddr)
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { p.abort(ctx.Err()) })
	c, err := handshake(p)
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		p.abort(err)
		return nil, dialError(p.reason())
	}
	return c, nil
}

func handshake(p *path) (*conn, error) {
	association, err := sctp.ClientWithOptions(config(p), noInterleaving)
	if err != nil {
		return nil, err
	}
	return newConn(association, p)
}

// dialPath joins a connected raw socket and a claimed port to a path. Both are
// given back when the path closes.
func dialPath(raw *net.IPConn, port uint16, remote netip.AddrPort) (*path, error) {
	local, _ := netip.AddrFromSlice(raw.LocalAddr().(*net.IPAddr).IP)
	claim, err := onPort(netip.AddrPortFrom(local.Unmap(), port), claimPort)
	if err != nil {
		return nil, err
	}
	if err := onlyPorts(raw, remote.Port(), claim.addr.Port()); err != nil {
		claim.release()
		return nil, err
	}
	p := newPath(claim.addr, remote)
	broken := func() {
		if refused(raw, p.local.Port(), p.remote.Port()) {
			p.fail(syscall.ECONNREFUSED)
		}
	}
	p.release = func() {
		_ = raw.Close()
		claim.release()
	}
	p.transmit = func(out packet) error {
		_, err := raw.Write(out)
		if err != nil {
			broken() // the report may come by a write as well as by a read
		}
		return err
	}
	go receive(raw, func(_ netip.Addr, in packet) {
		// The filter may have been attached after the first packet came.
		if in.source() == remote.Port() && in.destination() == p.local.Port() {
			p.deliver(in)
		}
	}, broken)
	return p, nil
}

// dialError calls the ABORT that answers an INIT by its usual name.
func dialError(err error) error {
	if errors.Is(err, syscall.ECONNRESET) {
		return syscall.ECONNREFUSED
	}
	return err
}
