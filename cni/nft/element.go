package nft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Elements have messages of their own here and not the library's: it cannot say
// NLM_F_EXCL, without which an element left by another pod would be taken for
// the one that is added, and it does not tell when a list was interrupted.

// set is one of our sets or maps.
type set struct {
	family nftables.TableFamily
	name   string
}

// element is what one pod has in a set.
type element struct {
	set     set
	key     []byte
	chain   string // where a map leads to; "" in a set
	comment string // the owner
	what    string // the key, for people
}

// change adds or deletes an element.
type change struct {
	kind    uint16
	flags   netlink.HeaderFlags
	element element
}

// batch is a transaction: all of it or nothing.
type batch []change

func adding(elements []element) batch {
	b := make(batch, 0, len(elements))
	for _, e := range elements {
		b = append(b, change{unix.NFT_MSG_NEWSETELEM, netlink.Create | netlink.Excl, e})
	}
	return b
}

func deleting(elements []element) batch {
	b := make(batch, 0, len(elements))
	for _, e := range elements {
		b = append(b, change{unix.NFT_MSG_DELSETELEM, 0, e})
	}
	return b
}

// commit runs a transaction. The error wraps unix.ENOENT if a set, chain or
// element is not there, unix.EEXIST if an element to be added is, and
// ErrUnsupported.
func (c *Conn) commit(b batch) error {
	if len(b) == 0 {
		return nil
	}
	messages := make([]netlink.Message, 0, len(b)+2)
	messages = append(messages, border(unix.NFNL_MSG_BATCH_BEGIN))
	for _, change := range b {
		m, err := change.message()
		if err != nil {
			return err
		}
		messages = append(messages, m)
	}
	messages = append(messages, border(unix.NFNL_MSG_BATCH_END))
	if _, err := c.socket.SendMessages(messages); err != nil {
		return fmt.Errorf("send to nftables: %w", err)
	}
	var failed error
	for range b { // each is answered, also after one failed
		if _, err := c.socket.Receive(); err != nil && failed == nil {
			failed = err
		}
	}
	if errors.Is(failed, unix.EOPNOTSUPP) {
		return ErrUnsupported
	}
	if failed != nil {
		return fmt.Errorf("change nftables table %s: %w", tableName, failed)
	}
	return nil
}

// border is the first or last message of a transaction.
func border(kind netlink.HeaderType) netlink.Message {
	header := generic(0)
	binary.BigEndian.PutUint16(header[2:], unix.NFNL_SUBSYS_NFTABLES)
	return netlink.Message{Header: netlink.Header{Type: kind, Flags: netlink.Request}, Data: header}
}

// generic is the header that messages of all subsystems begin with, struct
// nfgenmsg: family, version, number of a resource.
func generic(family nftables.TableFamily) []byte {
	return []byte{byte(family), unix.NFNETLINK_V0, 0, 0}
}

func message(kind uint16, flags netlink.HeaderFlags, family nftables.TableFamily, attrs *netlink.AttributeEncoder) (netlink.Message, error) {
	data, err := attrs.Encode()
	if err != nil {
		return netlink.Message{}, fmt.Errorf("encode nftables message: %w", err)
	}
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), Flags: netlink.Request | flags},
		Data:   append(generic(family), data...),
	}, nil
}

// attrs names a set.
func (s set) attrs() *netlink.AttributeEncoder {
	attrs := netlink.NewAttributeEncoder()
	attrs.ByteOrder = binary.BigEndian
	attrs.String(unix.NFTA_SET_ELEM_LIST_TABLE, tableName)
	attrs.String(unix.NFTA_SET_ELEM_LIST_SET, s.name)
	return attrs
}

func (c change) message() (netlink.Message, error) {
	return c.element.message(c.kind, c.flags|netlink.Acknowledge)
}

func (e element) message(kind uint16, flags netlink.HeaderFlags) (netlink.Message, error) {
	attrs := e.set.attrs()
	attrs.Nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(list *netlink.AttributeEncoder) error {
		list.Nested(unix.NFTA_LIST_ELEM, e.encode)
		return nil
	})
	return message(kind, flags, e.set.family, attrs)
}

func (e element) encode(attrs *netlink.AttributeEncoder) error {
	attrs.Nested(unix.NFTA_SET_ELEM_KEY, func(key *netlink.AttributeEncoder) error {
		key.Bytes(unix.NFTA_DATA_VALUE, e.key)
		return nil
	})
	if e.chain != "" {
		attrs.Nested(unix.NFTA_SET_ELEM_DATA, func(data *netlink.AttributeEncoder) error {
			data.Nested(unix.NFTA_DATA_VERDICT, func(verdict *netlink.AttributeEncoder) error {
				verdict.Int32(unix.NFTA_VERDICT_CODE, unix.NFT_GOTO)
				verdict.String(unix.NFTA_VERDICT_CHAIN, e.chain)
				return nil
			})
			return nil
		})
	}
	attrs.Bytes(unix.NFTA_SET_ELEM_USERDATA, userdata.AppendString(nil, userdata.NFTNL_UDATA_SET_ELEM_COMMENT, e.comment))
	return nil
}

// get returns the element of this key, whoever owns it, nil if there is none. The
// error may wrap ErrUnsupported.
func (c *Conn) get(e element) (*element, error) {
	request, err := e.message(unix.NFT_MSG_GETSETELEM, 0)
	if err != nil {
		return nil, err
	}
	answers, err := c.socket.Execute(request)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, ErrUnsupported
	}
	if errors.Is(err, unix.ENOENT) { // the element, its set or the table
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var found []element
	for _, m := range answers {
		if found, err = e.set.decode(found, m.Data); err != nil {
			return nil, err
		}
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("%d elements are there for one key", len(found))
	}
	return &found[0], nil
}

// attempts is how often something is done again that others got in the way of.
const attempts = 10

// list returns the elements of a set, none if there is no such set. While others
// change the set, the kernel may list an element twice. The error may wrap
// ErrUnsupported.
func (c *Conn) list(s set) ([]element, error) {
	for range attempts { // a list that others changed while it was read is read again
		elements, complete, err := c.listOnce(s)
		if err != nil {
			return nil, fmt.Errorf("list nftables set %s: %w", s.name, err)
		}
		if complete {
			return elements, nil
		}
	}
	return nil, fmt.Errorf("list nftables set %s: it changes all the time", s.name)
}

func (c *Conn) listOnce(s set) (elements []element, complete bool, err error) {
	request, err := message(unix.NFT_MSG_GETSETELEM, netlink.Dump, s.family, s.attrs())
	if err != nil {
		return nil, false, err
	}
	answers, err := c.socket.Execute(request)
	if errors.Is(err, unix.ENOENT) {
		return nil, true, nil
	}
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, false, ErrUnsupported
	}
	if err != nil {
		return nil, false, err
	}
	for _, m := range answers {
		if m.Header.Flags&unix.NLM_F_DUMP_INTR != 0 {
			return nil, false, nil
		}
		if elements, err = s.decode(elements, m.Data); err != nil {
			return nil, false, err
		}
	}
	return elements, true, nil
}

// decode appends the elements in a message.
func (s set) decode(elements []element, data []byte) ([]element, error) {
	header := len(generic(s.family))
	if len(data) < header {
		return nil, fmt.Errorf("a message of %d bytes is too short", len(data))
	}
	attrs, err := netlink.NewAttributeDecoder(data[header:])
	if err != nil {
		return nil, err
	}
	for attrs.Next() {
		if attrs.Type() != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			continue
		}
		attrs.Nested(func(list *netlink.AttributeDecoder) error {
			for list.Next() {
				e := element{set: s}
				list.Nested(e.decode)
				elements = append(elements, e)
			}
			return nil
		})
	}
	return elements, attrs.Err()
}

// decode reads key, owner and where a map leads to.
func (e *element) decode(attrs *netlink.AttributeDecoder) error {
	for attrs.Next() {
		switch attrs.Type() {
		case unix.NFTA_SET_ELEM_KEY:
			attrs.Nested(func(key *netlink.AttributeDecoder) error {
				for key.Next() {
					e.key = key.Bytes()
				}
				return nil
			})
		case unix.NFTA_SET_ELEM_DATA:
			attrs.Nested(e.decodeData)
		case unix.NFTA_SET_ELEM_USERDATA:
			e.comment, _ = userdata.GetString(attrs.Bytes(), userdata.NFTNL_UDATA_SET_ELEM_COMMENT)
		}
	}
	return nil
}

func (e *element) decodeData(data *netlink.AttributeDecoder) error {
	for data.Next() {
		if data.Type() != unix.NFTA_DATA_VERDICT {
			continue
		}
		data.Nested(func(verdict *netlink.AttributeDecoder) error {
			for verdict.Next() {
				if verdict.Type() == unix.NFTA_VERDICT_CHAIN {
					e.chain = verdict.String()
				}
			}
			return nil
		})
	}
	return nil
}

func setsOf(elements []element) []set {
	var sets []set
	for _, e := range elements {
		if !slices.Contains(sets, e.set) {
			sets = append(sets, e.set)
		}
	}
	return sets
}

// in reports whether an element of the same key is among others.
func (e element) in(others []element) bool {
	return slices.ContainsFunc(others, func(o element) bool { return o.set == e.set && bytes.Equal(o.key, e.key) })
}
