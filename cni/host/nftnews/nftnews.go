// Package nftnews tells what others do to tables of nftables. It listens to the
// kernel (NFNLGRP_NFTABLES) and polls nothing.
package nftnews

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Event is a change of something in a table.
type Event struct {
	Kind   uint16 // unix.NFT_MSG_…
	Family uint8  // of the table, unix.NFPROTO_…
	Table  string
	Chain  string // that a rule is in; "" of anything else
	By     uint32 // port (netlink(7), nl_pid) of the socket that made it
	// Lost: there was no room for some events; anything may be among them.
	Lost bool
}

// Listen tells, until ctx ends, that events came that matter. Events that come
// while that is not yet taken in are told together. It listens in the network
// namespace of the calling thread; matters is called by another one.
func Listen(ctx context.Context, matters func(Event) bool) (<-chan struct{}, error) {
	news, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	if err != nil {
		return nil, fmt.Errorf("listen to news of nftables: %w", err)
	}
	context.AfterFunc(ctx, func() { _ = news.Close() })
	told := make(chan struct{}, 1)
	go listen(news, matters, told)
	return told, nil
}

// listen receives until news is closed.
func listen(news *netlink.Conn, matters func(Event) bool, told chan<- struct{}) {
	for {
		messages, err := news.Receive()
		lost := errors.Is(err, unix.ENOBUFS)
		switch {
		case lost:
			if !matters(Event{Lost: true}) {
				continue
			}
		case err != nil:
			return
		case !slices.ContainsFunc(messages, func(m netlink.Message) bool {
			e, ok := parse(m)
			return ok && matters(e)
		}):
			continue
		}
		select {
		case told <- struct{}{}:
		default: // it is told already
		}
	}
}

// parse: messages of all kinds but that of a new generation begin with the table's
// name, and of rules the chain's name is next.
func parse(m netlink.Message) (Event, bool) {
	const header = 4 // struct nfgenmsg
	e := Event{Kind: uint16(m.Header.Type) & 0xff, By: m.Header.PID}
	if len(m.Data) < header || e.Kind == unix.NFT_MSG_NEWGEN {
		return e, false
	}
	e.Family = m.Data[0]
	attrs, err := netlink.NewAttributeDecoder(m.Data[header:])
	if err != nil {
		return e, false
	}
	ofRule := e.Kind == unix.NFT_MSG_NEWRULE || e.Kind == unix.NFT_MSG_DELRULE
	for attrs.Next() {
		switch {
		case attrs.Type() == unix.NFTA_TABLE_NAME:
			e.Table = attrs.String()
		case ofRule && attrs.Type() == unix.NFTA_RULE_CHAIN:
			e.Chain = attrs.String()
		}
		if e.Table != "" && (e.Chain != "" || !ofRule) {
			return e, true
		}
	}
	return e, false
}
