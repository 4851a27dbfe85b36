package ipam

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// stock is what one range has left to give.
//
//	First          Frontier                         Last
//	  ├───────────────┼───────────────────────────────┤
//	   given once,      never given, but for what was
//	   or kept out      requested by name
//
// It is found again by First, Last and KeptOut: a range whose configuration
// changes gets a new stock, and what is held keeps being held.
type stock struct {
	First    netip.Addr   `json:"first"`
	Last     netip.Addr   `json:"last"`
	KeptOut  []netip.Addr `json:"keptOut"`  // of First…Last, sorted
	Frontier netip.Addr   `json:"frontier"` // zero when it has passed Last
	// Newest is the position of the address freed last: the moment in
	// nanoseconds since 1970, or one more than the position before it where the
	// clock did not move on. So positions count up, whatever the clock does, and
	// compare between stocks as long as it behaves.
	Newest int64 `json:"newest"`
	// Cooldown is what the configuration said last.
	Cooldown time.Duration `json:"cooldown"`

	id      uint32
	changed bool
}

func (s *stock) contains(addr netip.Addr) bool {
	return s.First.Compare(addr) <= 0 && addr.Compare(s.Last) <= 0
}

// canGive says that addr is one of those that the stock gives, now or when it is
// free.
func (s *stock) canGive(addr netip.Addr) bool {
	return s.contains(addr) && !slices.Contains(s.KeptOut, addr)
}

func (s *stock) isOf(r Range, keptOut []netip.Addr) bool {
	return s.First == r.First && s.Last == r.Last && slices.Equal(s.KeptOut, keptOut)
}

// advance moves the frontier to the next address that can be given and returns
// it, or the zero Addr when there is none. Each address is passed once in the
// life of a stock, so the walk costs one step per allocation on average.
func (s *stock) advance(tx Tx) (netip.Addr, error) {
	for s.Frontier.IsValid() {
		gone, err := s.isGone(tx, s.Frontier)
		if err != nil || !gone {
			return s.Frontier, err
		}
		s.Frontier = s.Frontier.Next() // zero after the last address of a family
		if s.Frontier.Compare(s.Last) > 0 {
			s.Frontier = netip.Addr{}
		}
		s.changed = true
	}
	return netip.Addr{}, nil
}

// isGone says that addr is not in the state never given.
func (s *stock) isGone(tx Tx, addr netip.Addr) (bool, error) {
	if slices.Contains(s.KeptOut, addr) {
		return true, nil
	}
	if held, err := has(tx, addrKey(addr)); err != nil || held {
		return held, err
	}
	return has(tx, s.positionKey(addr))
}

// oldest returns the address that was freed longest ago, the zero value when the
// queue is empty.
func (s *stock) oldest(tx Tx) (queued, error) {
	prefix := idKey(queuePrefix, s.id)
	k, v, err := tx.Seek(prefix)
	if err != nil || !bytes.HasPrefix(k, prefix) {
		return queued{}, err
	}
	return parseQueued(k[len(prefix):], v)
}

// push puts an address that was freed at that moment at the end of the queue.
func (s *stock) push(tx Tx, addr netip.Addr, moment int64) error {
	s.Newest = max(moment, s.Newest+1)
	s.changed = true
	if err := tx.Put(s.queueKey(s.Newest), appendAddr(nil, addr)); err != nil {
		return err
	}
	return tx.Put(s.positionKey(addr), binary.BigEndian.AppendUint64(nil, uint64(s.Newest)))
}

// position is the place of an address in the queue, 0 when it is not there.
func (s *stock) position(tx Tx, addr netip.Addr) (int64, error) {
	text, err := get(tx, s.positionKey(addr))
	if err != nil || text == nil {
		return 0, err
	}
	return parsePosition(text)
}

// remove takes an address out of the queue if it is there.
func (s *stock) remove(tx Tx, addr netip.Addr) error {
	position, err := s.position(tx, addr)
	if err != nil || position == 0 {
		return err
	}
	if err := tx.Delete(s.queueKey(position)); err != nil {
		return err
	}
	return tx.Delete(s.positionKey(addr))
}

// forget removes the stock from the store.
func (s *stock) forget(tx Tx) error {
	for _, prefix := range []byte{queuePrefix, positionPrefix, stockPrefix} {
		if err := deleteAll(tx, idKey(prefix, s.id)); err != nil {
			return err
		}
	}
	return nil
}

// isUsed says that some owner holds an address of First…Last.
func (s *stock) isUsed(tx Tx) (bool, error) {
	k, _, err := tx.Seek(addrKey(s.First))
	if err != nil || len(k) == 0 || k[0] != addrPrefix {
		return false, err
	}
	addr, err := parseAddr(k[1:])
	return s.contains(addr), err
}

func (s *stock) queueKey(position int64) []byte {
	return binary.BigEndian.AppendUint64(idKey(queuePrefix, s.id), uint64(position))
}

func (s *stock) positionKey(addr netip.Addr) []byte {
	return appendAddr(idKey(positionPrefix, s.id), addr)
}

func parseQueued(position, addr []byte) (q queued, err error) {
	if q.addr, err = parseAddr(addr); err != nil {
		return q, err
	}
	q.position, err = parsePosition(position)
	return q, err
}

func parsePosition(text []byte) (int64, error) {
	if len(text) != 8 {
		return 0, fmt.Errorf("decode queue position % x: not eight bytes", text)
	}
	return int64(binary.BigEndian.Uint64(text)), nil
}

func (s *stock) put(tx Tx) error {
	text, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode range %s-%s: %w", s.First, s.Last, err)
	}
	return tx.Put(idKey(stockPrefix, s.id), text)
}

func parseStock(key, text []byte) (*stock, error) {
	if len(key) != 5 {
		return nil, fmt.Errorf("decode range key % x: not five bytes", key)
	}
	s := &stock{id: binary.BigEndian.Uint32(key[1:])}
	if err := json.Unmarshal(text, s); err != nil {
		return nil, fmt.Errorf("decode range %d: %w", s.id, err)
	}
	return s, nil
}
