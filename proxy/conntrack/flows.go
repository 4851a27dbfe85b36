package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	mdlayher "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/proxy/service"
)

// Flow is a flow that is translated on the node: its ends as the client's packets
// say them, and as they say them when they go on.
type Flow struct {
	Protocol     service.Protocol
	Src, Dst     netip.AddrPort
	ToSrc, ToDst netip.AddrPort
	Lasts        time.Duration // without a packet
	// Tag and ReplyTag are the verification tags of an SCTP association's packets, in
	// either direction; 0 if not known.
	Tag, ReplyTag uint32
}

// Translated lists the flows of some protocols whose destination netfilter translates,
// in the network namespace of the calling thread: none, where it does not track any.
func Translated(protocols ...service.Protocol) ([]Flow, error) {
	var flows []Flow
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		found, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
			return nil, nil // the kernel has no connection tracking
		}
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, fmt.Errorf("list flows: %w", err)
		}
		for _, f := range found {
			flow := Flow{
				Protocol: service.Protocol(f.Forward.Protocol),
				Src:      addrPort(f.Forward.SrcIP, f.Forward.SrcPort), Dst: addrPort(f.Forward.DstIP, f.Forward.DstPort),
				ToSrc: addrPort(f.Reverse.DstIP, f.Reverse.DstPort), ToDst: addrPort(f.Reverse.SrcIP, f.Reverse.SrcPort),
			}
			if slices.Contains(protocols, flow.Protocol) && flow.Dst != flow.ToDst {
				flows = append(flows, flow)
			}
		}
	}
	return flows, nil
}

// Insert has netfilter translate flows that others have begun, in the network
// namespace of the calling thread. One that it knows already stays as it is.
func Insert(flows []Flow) error {
	if len(flows) == 0 {
		return nil
	}
	conn, err := mdlayher.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("speak to connection tracking: %w", err)
	}
	defer func() { _ = conn.Close() }()
	for _, f := range flows {
		m, err := f.message()
		if err == nil {
			_, err = conn.Execute(m)
		}
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
			return nil // the kernel has no connection tracking
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("insert flow %s to %s: %w", f.Src, f.Dst, err)
		}
	}
	return nil
}

// Of linux/netfilter/nfnetlink_conntrack.h and nf_conntrack_tcp.h,
// nf_conntrack_sctp.h.
const (
	newFlow = unix.NFNL_SUBSYS_CTNETLINK << 8

	ctaTupleOrig, ctaTupleReply, ctaStatus, ctaProtoInfo = 1, 2, 3, 4
	ctaNatSrc, ctaTimeout, ctaNatDst                     = 6, 7, 13

	ctaTupleIP, ctaTupleProto                    = 1, 2
	ctaV4Src, ctaV4Dst, ctaV6Src, ctaV6Dst       = 1, 2, 3, 4
	ctaProtoNum, ctaSrcPort, ctaDstPort          = 1, 2, 3
	ctaNatV4Min, ctaNatProto, ctaNatV6Min        = 1, 3, 4
	ctaNatPortMin, ctaNatPortMax                 = 1, 2
	ctaTCP, ctaTCPState                          = 1, 1
	ctaTCPFlagsOrig, ctaTCPFlagsReply            = 4, 5
	ctaSCTP, ctaSCTPState                        = 3, 1
	ctaSCTPTagOrig, ctaSCTPTagReply              = 2, 3
	sctpEstablished                              = 4
	seenReply, assured, confirmed                = 1 << 1, 1 << 2, 1 << 3
	tcpEstablished, tcpLiberal                   = 3, 0x08
	nfnetlinkVersion                       uint8 = 0
)

// message is what 'conntrack --create' sends. Of a TCP flow the kernel cannot know
// the window, and is told not to judge by it. Of an SCTP association whose tags it does
// not know it takes no packets until it has seen a HEARTBEAT of both sides.
func (f Flow) message() (mdlayher.Message, error) {
	e := mdlayher.NewAttributeEncoder()
	e.ByteOrder = binary.BigEndian
	e.Nested(ctaTupleOrig, tuple(f.Protocol, f.Src, f.Dst))
	e.Nested(ctaTupleReply, tuple(f.Protocol, f.Dst, f.Src)) // as if untranslated: the kernel translates it
	e.Uint32(ctaStatus, seenReply|assured|confirmed)
	e.Uint32(ctaTimeout, uint32(f.Lasts/time.Second))
	e.Nested(ctaNatDst, nat(f.ToDst))
	if f.ToSrc != f.Src {
		e.Nested(ctaNatSrc, nat(f.ToSrc))
	}
	if f.Protocol == service.TCP {
		e.Nested(ctaProtoInfo, func(e *mdlayher.AttributeEncoder) error {
			e.Nested(ctaTCP, func(e *mdlayher.AttributeEncoder) error {
				e.Uint8(ctaTCPState, tcpEstablished)
				e.Bytes(ctaTCPFlagsOrig, []byte{tcpLiberal, tcpLiberal}) // and mask
				e.Bytes(ctaTCPFlagsReply, []byte{tcpLiberal, tcpLiberal})
				return nil
			})
			return nil
		})
	}
	if f.Protocol == service.SCTP && f.Tag != 0 && f.ReplyTag != 0 {
		e.Nested(ctaProtoInfo, func(e *mdlayher.AttributeEncoder) error {
			e.Nested(ctaSCTP, func(e *mdlayher.AttributeEncoder) error {
				e.Uint8(ctaSCTPState, sctpEstablished)
				e.Uint32(ctaSCTPTagOrig, f.Tag)
				e.Uint32(ctaSCTPTagReply, f.ReplyTag)
				return nil
			})
			return nil
		})
	}
	attributes, err := e.Encode()
	family := uint8(unix.AF_INET)
	if f.Dst.Addr().Is6() {
		family = unix.AF_INET6
	}
	return mdlayher.Message{
		Header: mdlayher.Header{Type: newFlow, Flags: mdlayher.Request | mdlayher.Acknowledge | mdlayher.Create | mdlayher.Excl},
		Data:   append([]byte{family, nfnetlinkVersion, 0, 0}, attributes...),
	}, err
}

func tuple(protocol service.Protocol, src, dst netip.AddrPort) func(*mdlayher.AttributeEncoder) error {
	return func(e *mdlayher.AttributeEncoder) error {
		from, to := uint16(ctaV4Src), uint16(ctaV4Dst)
		if src.Addr().Is6() {
			from, to = ctaV6Src, ctaV6Dst
		}
		e.Nested(ctaTupleIP, func(e *mdlayher.AttributeEncoder) error {
			e.Bytes(from, src.Addr().AsSlice())
			e.Bytes(to, dst.Addr().AsSlice())
			return nil
		})
		e.Nested(ctaTupleProto, func(e *mdlayher.AttributeEncoder) error {
			e.Uint8(ctaProtoNum, uint8(protocol))
			e.Uint16(ctaSrcPort, src.Port())
			e.Uint16(ctaDstPort, dst.Port())
			return nil
		})
		return nil
	}
}

func nat(to netip.AddrPort) func(*mdlayher.AttributeEncoder) error {
	return func(e *mdlayher.AttributeEncoder) error {
		addr := uint16(ctaNatV4Min) // the end of the range is the same without a word
		if to.Addr().Is6() {
			addr = ctaNatV6Min
		}
		e.Bytes(addr, to.Addr().AsSlice())
		e.Nested(ctaNatProto, func(e *mdlayher.AttributeEncoder) error {
			e.Uint16(ctaNatPortMin, to.Port())
			e.Uint16(ctaNatPortMax, to.Port())
			return nil
		})
		return nil
	}
}
