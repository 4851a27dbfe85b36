package conntrack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	mdlayher "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cni/host/sysctl"
	"github.com/fairlead/fairlead/proxy/service"
)

// newsBuffer is room for flows that begin while nobody reads: some ten thousand.
const newsBuffer = 4 << 20

// Watch calls see for each flow that begins in the network namespace of the calling
// thread, when its first packet has found its way, until ctx ends, which is no error.
// lost is called when flows have begun of which the kernel could not tell, as too many
// did. see must not wait.
func Watch(ctx context.Context, see func(Flow), lost func()) error {
	if on, err := sysctl.Read("net/netfilter/nf_conntrack_events"); err != nil || on == "0" {
		return errors.New("the kernel does not tell of flows: net.netfilter.nf_conntrack_events is 0, or there is no connection tracking")
	}
	conn, err := mdlayher.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("listen to connection tracking: %w", err)
	}
	defer func() { _ = conn.Close() }()
	if err := errors.Join(conn.SetReadBuffer(newsBuffer), conn.JoinGroup(unix.NFNLGRP_CONNTRACK_NEW)); err != nil {
		return fmt.Errorf("listen to connection tracking: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })() // ends Receive
	for {
		messages, err := conn.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			lost()
			continue
		case err != nil:
			return fmt.Errorf("listen to connection tracking: %w", err)
		}
		for _, m := range messages {
			if flow, ok := parseFlow(m.Data); ok {
				see(flow)
			}
		}
	}
}

// sizeofNfgenmsg is that of struct nfgenmsg, linux/netfilter/nfnetlink.h.
const sizeofNfgenmsg = 4

// parseFlow reads what the kernel says of a flow, if it is one that can be a Service's.
func parseFlow(data []byte) (f Flow, ok bool) {
	if len(data) < sizeofNfgenmsg {
		return Flow{}, false
	}
	d, err := mdlayher.NewAttributeDecoder(data[sizeofNfgenmsg:])
	if err != nil {
		return Flow{}, false
	}
	d.ByteOrder = binary.BigEndian
	err = each(func(kind uint16) {
		switch kind {
		case ctaTupleOrig:
			f.Protocol, f.Src, f.Dst = readTuple(d)
		case ctaTupleReply: // it comes from where the flow goes
			_, f.ToDst, f.ToSrc = readTuple(d)
		}
	})(d)
	known := f.Protocol == service.TCP || f.Protocol == service.UDP || f.Protocol == service.SCTP
	return f, err == nil && known && f.Dst.Addr().IsValid() && f.ToDst.Addr().IsValid()
}

// each calls read for each attribute, with its type.
func each(read func(kind uint16)) func(*mdlayher.AttributeDecoder) error {
	return func(d *mdlayher.AttributeDecoder) error {
		for d.Next() {
			read(d.Type())
		}
		return d.Err()
	}
}

// readTuple reads what tuple writes.
func readTuple(d *mdlayher.AttributeDecoder) (protocol service.Protocol, src, dst netip.AddrPort) {
	var addrs [2]netip.Addr
	var ports [2]uint16
	readAddrs := func(d *mdlayher.AttributeDecoder) error {
		return each(func(kind uint16) {
			addr, _ := netip.AddrFromSlice(d.Bytes())
			addrs[(kind-ctaV4Src)%2] = addr // sources and destinations by turns
		})(d)
	}
	readPorts := func(d *mdlayher.AttributeDecoder) error {
		return each(func(kind uint16) {
			switch kind {
			case ctaProtoNum:
				protocol = service.Protocol(d.Uint8())
			case ctaSrcPort, ctaDstPort:
				ports[kind-ctaSrcPort] = d.Uint16()
			}
		})(d)
	}
	d.Nested(func(d *mdlayher.AttributeDecoder) error {
		return each(func(kind uint16) {
			switch kind {
			case ctaTupleIP:
				d.Nested(readAddrs)
			case ctaTupleProto:
				d.Nested(readPorts)
			}
		})(d)
	})
	return protocol, netip.AddrPortFrom(addrs[0], ports[0]), netip.AddrPortFrom(addrs[1], ports[1])
}
