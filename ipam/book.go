package ipam

import (
	"net/netip"
	"slices"
	"time"
)

// book is every stock of the store, read once a transaction. There is one for
// each range of the configuration, and one for each range of a configuration
// before it that still has addresses held; they may overlap, so whatever happens
// to an address is told to every stock that contains it.
type book struct {
	tx     Tx
	stocks []*stock // sorted by id
}

func openBook(tx Tx) (*book, error) {
	b := &book{tx: tx}
	err := each(tx, []byte{stockPrefix}, func(k, v []byte) error {
		s, err := parseStock(k, v)
		b.stocks = append(b.stocks, s)
		return err
	})
	return b, err
}

// adopt makes the book fit a configuration and returns the stocks of each set.
// A range that is new gets a stock, in which addresses that are cooling in
// another go on cooling; the stock of a range that is gone goes when nobody holds
// an address of it any more and all have cooled down.
func (b *book) adopt(sets []Set, cooldown time.Duration, now time.Time) ([][]*stock, error) {
	known := len(b.stocks)
	adopted := b.match(sets)
	for _, s := range b.stocks[known:] {
		if err := s.inherit(b.tx, b.stocks[:known], now); err != nil {
			return nil, err
		}
	}
	current := map[*stock]bool{}
	for _, s := range slices.Concat(adopted...) {
		s.setCooldown(cooldown)
		current[s] = true
	}
	var kept []*stock
	for _, s := range b.stocks {
		used, err := s.isUsed(b.tx)
		switch {
		case err != nil:
			return nil, err
		case used || current[s] || s.Newest > s.cooled(now):
			kept = append(kept, s)
		default:
			if err := s.forget(b.tx); err != nil {
				return nil, err
			}
		}
	}
	b.stocks = kept
	return adopted, nil
}

// match returns the stocks of each set. It begins those that the book does not
// have and writes nothing.
func (b *book) match(sets []Set) [][]*stock {
	what := reserved(sets)
	matched := make([][]*stock, len(sets))
	for i, set := range sets {
		for _, r := range set {
			matched[i] = append(matched[i], b.stockOf(r, what))
		}
	}
	return matched
}

// stockOf finds the stock of a range or begins it.
func (b *book) stockOf(r Range, what map[netip.Addr]string) *stock {
	var keptOut []netip.Addr
	for addr := range what {
		if r.Contains(addr) {
			keptOut = append(keptOut, addr)
		}
	}
	slices.SortFunc(keptOut, netip.Addr.Compare)
	for _, s := range b.stocks {
		if s.isOf(r, keptOut) {
			return s
		}
	}
	s := &stock{First: r.First, Last: r.Last, KeptOut: keptOut, Frontier: r.First, id: 1, changed: true}
	if n := len(b.stocks); n > 0 {
		s.id = b.stocks[n-1].id + 1
	}
	b.stocks = append(b.stocks, s)
	return s
}

// give holds an address for the owner: the one wanted, or one of the stocks'
// choice where wanted is the zero Addr. It returns the zero Addr when they have
// none left.
func (b *book) give(stocks []*stock, wanted netip.Addr, req Request) (netip.Addr, error) {
	addr := wanted
	if !addr.IsValid() {
		var err error
		if addr, err = b.choose(stocks, req.Now); err != nil || !addr.IsValid() {
			return addr, err
		}
	}
	return addr, b.hold(addr, req.Owner)
}

// rested is how long after it was freed an address is as good as one that nobody
// ever had. Without it the queue of a range that is too large to be used up, as
// those of IPv6 are, would keep every address that a pod ever had.
const rested = 24 * time.Hour

// choose returns an address that one of the stocks can give, or the zero Addr.
func (b *book) choose(stocks []*stock, now time.Time) (netip.Addr, error) {
	longest, err := b.longestFreed(stocks)
	if err != nil {
		return netip.Addr{}, err
	}
	if longest.addr.IsValid() && now.UnixNano()-longest.position > int64(rested) {
		return longest.addr, nil
	}
	for _, s := range stocks {
		if addr, err := s.advance(b.tx); err != nil || addr.IsValid() {
			return addr, err
		}
	}
	return longest.addr, nil
}

// longestFreed returns the address of the stocks that was freed longest ago, the
// zero value when their queues are empty.
func (b *book) longestFreed(stocks []*stock) (longest queued, err error) {
	for _, s := range stocks {
		q, err := s.oldest(b.tx)
		if err != nil {
			return queued{}, err
		}
		if q.addr.IsValid() && (!longest.addr.IsValid() || q.position < longest.position) {
			longest = q
		}
	}
	return longest, nil
}

// hold gives addr to owner, which is the one place where an address gets an
// owner.
func (b *book) hold(addr netip.Addr, owner Owner) error {
	holder, err := get(b.tx, addrKey(addr))
	if err != nil {
		return err
	}
	if holder != nil {
		return &HeldError{Addr: addr, Owner: parseOwner(string(holder))}
	}
	for _, s := range b.stocks {
		if !s.contains(addr) {
			continue
		}
		if err := s.remove(b.tx, addr); err != nil {
			return err
		}
	}
	return b.tx.Put(addrKey(addr), []byte(ownerText(owner)))
}

// free ends the hold on addr: from now on it is the one freed last. It returns
// the highest position that addr has in a queue.
func (b *book) free(addr netip.Addr, now time.Time) (highest int64, err error) {
	for _, s := range b.stocks {
		if !s.canGive(addr) {
			continue
		}
		if err := s.push(b.tx, addr, now.UnixNano()); err != nil {
			return 0, err
		}
		highest = max(highest, s.Newest)
	}
	return highest, b.tx.Delete(addrKey(addr))
}

// save writes the stocks that changed.
func (b *book) save() error {
	for _, s := range b.stocks {
		if !s.changed {
			continue
		}
		if err := s.put(b.tx); err != nil {
			return err
		}
	}
	return nil
}
