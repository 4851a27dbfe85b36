package ipam

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// memory is Tx in a map: small and slow, and it shows what is stored.
type memory map[string]string

func (m memory) Seek(key []byte) (k, v []byte, err error) {
	for text := range m {
		if text >= string(key) && (k == nil || text < string(k)) {
			k, v = []byte(text), []byte(m[text])
		}
	}
	return k, v, nil
}

func (m memory) Put(key, value []byte) error {
	m[string(key)] = string(value)
	return nil
}

func (m memory) Delete(key []byte) error {
	delete(m, string(key))
	return nil
}

// try runs f as a transaction.
func (m memory) try(f func(Tx) error) error {
	before := maps.Clone(m)
	err := f(m)
	if err != nil {
		clear(m)
		maps.Copy(m, before)
	}
	return err
}

// withPrefix is the pairs whose key begins with the byte, without that byte.
func (m memory) withPrefix(prefix byte) map[string]string {
	found := map[string]string{}
	for k, v := range m {
		if k[0] == prefix {
			found[k[1:]] = v
		}
	}
	return found
}

// verify checks what schema.go says of the keys.
func (m memory) verify(t *testing.T) {
	t.Helper()
	held := m.withPrefix(addrPrefix)
	m.verifyLeases(t, held)
	queues := 0
	for key, text := range m.withPrefix(stockPrefix) {
		s, err := parseStock([]byte("r"+key), []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		queues += m.verifyStock(t, s, held)
	}
	if n := len(m.withPrefix(queuePrefix)); n != queues {
		t.Fatalf("%d addresses are queued, %d of them in a stock", n, queues)
	}
	if n := len(m.withPrefix(positionPrefix)); n != queues {
		t.Fatalf("%d positions for %d addresses queued", n, queues)
	}
	found, err := Verify(m, m[string(bootKey)])
	if err != nil || len(found) > 0 {
		t.Fatalf("Verify found %q and error %v", found, err)
	}
	if n, want := len(m.withPrefix(expiryPrefix)), len(m.withPrefix(formerPrefix)); n != want {
		t.Fatalf("%d pods are remembered and %d are to be forgotten", want, n)
	}
}

// verifyLeases checks that leases and held addresses are the same thing.
func (m memory) verifyLeases(t *testing.T, held map[string]string) {
	t.Helper()
	leased := 0
	for owner := range m.withPrefix(leasePrefix) {
		lease, err := Held(m, parseOwner(owner))
		if err != nil {
			t.Fatal(err)
		}
		leased += len(lease.Addrs)
		for _, addr := range lease.Addrs {
			if got := held[string(appendAddr(nil, addr))]; got != owner {
				t.Fatalf("%s is leased to %q and held by %q", addr, owner, got)
			}
		}
	}
	if leased != len(held) {
		t.Fatalf("%d addresses held, %d leased", len(held), leased)
	}
}

// verifyStock checks that every address of a stock is in one state, and returns
// the number of those that are freed.
func (m memory) verifyStock(t *testing.T, s *stock, held map[string]string) (freed int) {
	t.Helper()
	isHeld := func(addr netip.Addr) bool { return held[string(appendAddr(nil, addr))] != "" }
	prefix := string(idKey(queuePrefix, s.id))
	for key, text := range m {
		position, queued := strings.CutPrefix(key, prefix)
		if !queued {
			continue
		}
		freed++
		addr, err := parseAddr([]byte(text))
		switch {
		case err != nil:
			t.Fatal(err)
		case m[string(s.positionKey(addr))] != position:
			t.Fatalf("%s is not at its position in the queue", addr)
		case isHeld(addr):
			t.Fatalf("%s is held and freed", addr)
		case slices.Contains(s.KeptOut, addr) || !s.contains(addr):
			t.Fatalf("%s is freed and cannot be given", addr)
		}
	}
	for addr := s.First; s.contains(addr) && addr != s.Frontier; addr = addr.Next() {
		_, queued := m[string(s.positionKey(addr))]
		if !queued && !isHeld(addr) && !slices.Contains(s.KeptOut, addr) {
			t.Fatalf("%s is lost: neither held nor freed, and the frontier is at %s", addr, s.Frontier)
		}
	}
	return freed
}

func addrs(texts ...string) []netip.Addr {
	var parsed []netip.Addr
	for _, text := range texts {
		parsed = append(parsed, netip.MustParseAddr(text))
	}
	return parsed
}
