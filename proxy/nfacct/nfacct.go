// Package nfacct speaks to the kernel's accounting objects: named counters of a
// network namespace (nfnetlink_acct) to which rules of iptables add (xt_nfacct), and
// which stay when the rules go. It knows nothing of what is counted.
//
// Its functions are about the network namespace of the calling thread.
package nfacct

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// MaxName is how long a counter's name may be, in bytes (NFACCT_NAME_MAX less the
// terminating zero).
const MaxName = 31

// ErrInUse says that a rule adds to a counter, which can therefore not be deleted.
var ErrInUse = errors.New("a rule adds to it")

// Messages and attributes of linux/netfilter/nfnetlink_acct.h.
const (
	msgNew = unix.NFNL_SUBSYS_ACCT<<8 | iota
	msgGet
	_
	msgDel
)

const (
	attrName = iota + 1
	attrPackets
)

// Add makes counters that begin at zero. Those that are there go on.
func Add(names ...string) error {
	return each(names, "add", msgNew, netlink.Create|netlink.Excl, unix.EEXIST)
}

// Delete removes counters, if they are there. The error wraps ErrInUse if one cannot
// be; the others are removed all the same.
func Delete(names ...string) error {
	return each(names, "delete", msgDel, 0, unix.ENOENT)
}

// List returns how many packets each counter has counted.
func List() (packets map[string]uint64, err error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("list counters: %w", err)
	}
	defer func() { _ = conn.Close() }()
	messages, err := conn.Execute(message(msgGet, netlink.Dump, nil))
	if err != nil {
		return nil, fmt.Errorf("list counters: %w", err)
	}
	packets = make(map[string]uint64, len(messages))
	for _, m := range messages {
		name, n, err := decode(m.Data)
		if err != nil {
			return nil, fmt.Errorf("list counters: %w", err)
		}
		packets[name] = n
	}
	return packets, nil
}

// each sends one message for each name. An answer of done says that there is nothing
// to do.
func each(names []string, verb string, kind netlink.HeaderType, flags netlink.HeaderFlags, done error) error {
	if len(names) == 0 {
		return nil
	}
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("%s counters: %w", verb, err)
	}
	defer func() { _ = conn.Close() }()
	var errs []error
	for _, name := range names {
		_, err := conn.Execute(message(kind, flags|netlink.Acknowledge, &name))
		if errors.Is(err, unix.EBUSY) {
			err = ErrInUse
		}
		if err != nil && !errors.Is(err, done) {
			errs = append(errs, fmt.Errorf("%s counter %q: %w", verb, name, err))
		}
	}
	return errors.Join(errs...)
}

// genHeader is the length of struct nfgenmsg, which every message of netfilter starts
// with; all zero here.
const genHeader = 4

func message(kind netlink.HeaderType, flags netlink.HeaderFlags, name *string) netlink.Message {
	m := netlink.Message{Header: netlink.Header{Type: kind, Flags: netlink.Request | flags}, Data: make([]byte, genHeader)}
	if name != nil {
		attributes := netlink.NewAttributeEncoder()
		attributes.String(attrName, *name)
		encoded, _ := attributes.Encode() // fails where a string is longer than a message
		m.Data = append(m.Data, encoded...)
	}
	return m
}

func decode(data []byte) (name string, packets uint64, err error) {
	if len(data) < genHeader {
		return "", 0, fmt.Errorf("a message of %d bytes", len(data))
	}
	attributes, err := netlink.NewAttributeDecoder(data[genHeader:])
	if err != nil {
		return "", 0, err
	}
	attributes.ByteOrder = binary.BigEndian
	for attributes.Next() {
		switch attributes.Type() {
		case attrName:
			name = attributes.String()
		case attrPackets:
			packets = attributes.Uint64()
		}
	}
	return name, packets, attributes.Err()
}
