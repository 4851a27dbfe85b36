package ipam

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// cooled is the highest position of the addresses that are not cooling any more.
func (s *stock) cooled(now time.Time) int64 { return max(0, now.Add(-s.Cooldown).UnixNano()) }

func (s *stock) setCooldown(d time.Duration) {
	s.changed = s.changed || s.Cooldown != d
	s.Cooldown = d
}

// queued is an address in a queue.
type queued struct {
	addr     netip.Addr
	position int64
}

// cooling returns the addresses that are cooling, longest freed first. The queue
// is in the order of time, so it costs as much as there are.
func (s *stock) cooling(tx Tx, now time.Time) ([]queued, error) {
	var found []queued
	prefix := idKey(queuePrefix, s.id)
	err := eachFrom(tx, s.queueKey(s.cooled(now)+1), prefix, func(k, v []byte) error {
		q, err := parseQueued(k[len(prefix):], v)
		found = append(found, q)
		return err
	})
	return found, err
}

// inherit puts into the queue of a new stock what is cooling in others, for a
// changed configuration does not cool an address.
func (s *stock) inherit(tx Tx, others []*stock, now time.Time) error {
	var found []queued
	for _, other := range others {
		cooling, err := other.cooling(tx, now)
		if err != nil {
			return err
		}
		found = append(found, cooling...)
	}
	slices.SortFunc(found, func(a, b queued) int { return cmp.Compare(a.position, b.position) })
	for _, q := range found {
		if !s.canGive(q.addr) {
			continue
		}
		if err := s.remove(tx, q.addr); err != nil { // two others had it
			return err
		}
		if err := s.push(tx, q.addr, q.position); err != nil {
			return err
		}
	}
	return nil
}
