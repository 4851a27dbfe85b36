package ipam

import (
	"bytes"
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
	key := []byte{stockPrefix}
	for {
		k, v, err := tx.Seek(key)
		if err != nil || !bytes.HasPrefix(k, []byte{stockPrefix}) {
			return b, err
		}
		s, err := parseStock(k, v)
		if err != nil {
			return nil, err
		}
		b.stocks = append(b.stocks, s)
		key = append(k, 0) // the least key after k
	}
}

// adopt makes the book fit a configuration and returns the stocks of each set.
// A range that is new gets a stock; the stock of a range that is gone goes when
// nobody holds an address of it any more.
func (b *book) adopt(sets []Set) ([][]*stock, error) {
	what := reserved(sets)
	adopted := make([][]*stock, len(sets))
	current := map[*stock]bool{}
	for i, set := range sets {
		for _, r := range set {
			s := b.stockOf(r, what)
			adopted[i] = append(adopted[i], s)
			current[s] = true
		}
	}
	var kept []*stock
	for _, s := range b.stocks {
		used, err := s.isUsed(b.tx)
		switch {
		case err != nil:
			return nil, err
		case used || current[s]:
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
func (b *book) give(stocks []*stock, wanted netip.Addr, owner Owner) (netip.Addr, error) {
	addr := wanted
	if !addr.IsValid() {
		var err error
		if addr, err = b.choose(stocks); err != nil || !addr.IsValid() {
			return addr, err
		}
	}
	return addr, b.hold(addr, owner)
}

// choose returns an address that one of the stocks can give, or the zero Addr.
func (b *book) choose(stocks []*stock) (netip.Addr, error) {
	for _, s := range stocks {
		if addr, err := s.advance(b.tx); err != nil || addr.IsValid() {
			return addr, err
		}
	}
	var longest netip.Addr
	var freed int64
	for _, s := range stocks {
		addr, position, err := s.oldest(b.tx)
		if err != nil {
			return netip.Addr{}, err
		}
		if addr.IsValid() && (!longest.IsValid() || position < freed) {
			longest, freed = addr, position
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

// free ends the hold on addr: from now on it is the one freed last.
func (b *book) free(addr netip.Addr, now time.Time) error {
	for _, s := range b.stocks {
		if !s.contains(addr) || slices.Contains(s.KeptOut, addr) {
			continue
		}
		if err := s.push(b.tx, addr, now); err != nil {
			return err
		}
	}
	return b.tx.Delete(addrKey(addr))
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
