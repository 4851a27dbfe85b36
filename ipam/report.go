package ipam

import (
	"errors"
	"math/big"
	"net/netip"
	"time"
)

// Leases returns the leases of the boot that can be read, in the order of their
// owners, and the joined errors of those that cannot.
func Leases(tx Tx, boot string) ([]Lease, error) {
	current, err := isOfBoot(tx, boot)
	if err != nil || !current {
		return nil, err
	}
	var leases []Lease
	var unreadable []error
	err = each(tx, []byte{leasePrefix}, func(k, v []byte) error {
		lease, err := parseLease(parseOwner(string(k[1:])), v)
		if err != nil {
			unreadable = append(unreadable, err)
			return nil
		}
		leases = append(leases, lease)
		return nil
	})
	return leases, errors.Join(append(unreadable, err)...)
}

// Usage is how much of a range is given. Size is Used, Cooling and Free.
type Usage struct {
	First, Last netip.Addr
	Size        *big.Int // addresses that it can give when none is held
	Used        int      // held
	Cooling     int      // freed less than Cooldown ago
	Free        *big.Int
	Cooldown    time.Duration
	Oldest      time.Time // when the oldest of its leases began; zero: it has none

	stock *stock
}

// Gives says that the address is one of Size.
func (u Usage) Gives(addr netip.Addr) bool { return u.stock.canGive(addr) }

// Ranges returns the usage of every range of which an address was asked for in
// the boot and that is still configured or has an address held or cooling.
func Ranges(tx Tx, boot string, now time.Time) ([]Usage, error) {
	current, err := isOfBoot(tx, boot)
	if err != nil || !current {
		return nil, err
	}
	b, err := openBook(tx)
	if err != nil {
		return nil, err
	}
	leases, err := Leases(tx, boot)
	if err != nil {
		return nil, err
	}
	var usages []Usage
	for _, s := range b.stocks {
		u, err := s.usage(tx, leases, now)
		if err != nil {
			return nil, err
		}
		usages = append(usages, u)
	}
	return usages, nil
}

func (s *stock) usage(tx Tx, leases []Lease, now time.Time) (Usage, error) {
	u := Usage{First: s.First, Last: s.Last, Cooldown: s.Cooldown, Size: s.size(), stock: s}
	for _, lease := range leases {
		for _, addr := range lease.Addrs {
			if !s.canGive(addr) {
				continue
			}
			u.Used++
			if u.Oldest.IsZero() || lease.Since.Before(u.Oldest) {
				u.Oldest = lease.Since
			}
		}
	}
	cooling, err := s.cooling(tx, now)
	u.Cooling = len(cooling)
	u.Free = new(big.Int).Sub(u.Size, big.NewInt(int64(u.Used+u.Cooling)))
	return u, err
}

// size is the number of addresses that the stock can give.
func (s *stock) size() *big.Int {
	first := new(big.Int).SetBytes(s.First.AsSlice())
	n := new(big.Int).SetBytes(s.Last.AsSlice())
	n.Sub(n, first)
	return n.Add(n, big.NewInt(1-int64(len(s.KeptOut))))
}
