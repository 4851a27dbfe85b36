package nft

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cni/mode"
)

// The table that masquerades:
//
//	table inet fairlead-cni {
//		map masquerade4 { type ipv4_addr : verdict; elements = { 10.9.0.2 : goto net-5ad1…-0c22… } }
//		map masquerade6 { type ipv6_addr : verdict }
//		chain postrouting {
//			type nat hook postrouting priority srcnat
//			ip saddr vmap @masquerade4
//			ip6 saddr vmap @masquerade6
//		}
//		chain net-5ad1…-0c22… {
//			ip daddr 10.9.0.0/24 return
//			ip daddr 224.0.0.0/4 return
//			ip6 daddr ff00::/8 return
//			masquerade
//		}
//	}
//
// A chain is for all pods of a network with the same addresses to spare.

var (
	masquerade4 = set{nftables.TableFamilyINet, "masquerade4"}
	masquerade6 = set{nftables.TableFamilyINet, "masquerade6"}

	masqueradeSets = []set{masquerade4, masquerade6}
)

// multicast stays as it is, so that pods reach others on their link.
var multicast = []netip.Prefix{netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("ff00::/8")}

// Masquerade has what a pod sends leave the node with the node's address, except
// to what is exempt and to multicast groups. It reports whether it had to make
// what its network needs for that.
func (c *Conn) Masquerade(owner mode.Owner, pod []netip.Addr, exempt []netip.Prefix) (made bool, err error) {
	elements, table := masqueradeElements(owner, pod, exempt)
	made, err = c.put(elements, table)
	if err != nil {
		return false, fmt.Errorf("masquerade %s: %w", owner, err)
	}
	return made, nil
}

// VerifyMasquerade returns, in words, what differs from what Masquerade makes.
func (c *Conn) VerifyMasquerade(owner mode.Owner, pod []netip.Addr, exempt []netip.Prefix) ([]string, error) {
	elements, table := masqueradeElements(owner, pod, exempt)
	return c.verify(elements, table)
}

// RepairMasquerade makes what is missing of what Masquerade makes. Addresses that
// another pod has are left to it.
func (c *Conn) RepairMasquerade(owner mode.Owner, pod []netip.Addr, exempt []netip.Prefix) error {
	elements, table := masqueradeElements(owner, pod, exempt)
	if err := c.repair(elements, table); err != nil {
		return fmt.Errorf("repair masquerade of %s: %w", owner, err)
	}
	return nil
}

// masqueradeElements is what a pod has in the maps, and the table around it.
func masqueradeElements(owner mode.Owner, pod []netip.Addr, exempt []netip.Prefix) ([]element, construct) {
	chain := networkChain(owner.Network, exempt)
	elements := make([]element, 0, len(pod))
	for _, addr := range pod {
		elements = append(elements, element{set: masqueradeSet(addr), key: addr.AsSlice(), chain: chain, comment: owner.String(), what: addr.String()})
	}
	return elements, func(d *draft) error {
		return draftMasquerade(d, chain, append(exempt[:len(exempt):len(exempt)], multicast...))
	}
}

// StopMasquerade takes back Masquerade. It succeeds if there is nothing to take
// back. The error wraps ErrUnsupported if Masquerade cannot have succeeded.
func (c *Conn) StopMasquerade(owner mode.Owner) error {
	return c.remove(masqueradeSets, func(comment string) bool { return comment == owner.String() })
}

// Release has what is sent from addresses leave as it is: it takes back what
// Masquerade did for pods that had them before and whose DEL was lost or left it.
//
// It looks first: a change is a transaction, for which the kernel waits long
// (synchronize_rcu) also if it fails because there is nothing to delete.
func (c *Conn) Release(addrs []netip.Addr) error {
	for _, addr := range addrs {
		e := element{set: masqueradeSet(addr), key: addr.AsSlice()}
		found, err := c.get(e)
		if err != nil {
			return fmt.Errorf("look for masquerade of %s: %w", addr, err)
		}
		if found == nil {
			continue
		}
		if err := c.commit(deleting([]element{e})); err != nil && !errors.Is(err, unix.ENOENT) { // gone in between
			return fmt.Errorf("stop masquerade of %s: %w", addr, err)
		}
	}
	return nil
}

func masqueradeSet(addr netip.Addr) set {
	if addr.Is4() {
		return masquerade4
	}
	return masquerade6
}

// networkChain is named by what is in it, so that a chain never has to change
// while pods use it.
func networkChain(network string, exempt []netip.Prefix) string {
	return chainPrefix(network) + hash(fmt.Sprint(exempt))
}

// chainPrefix is what the chains of a network have in common.
func chainPrefix(network string) string { return "net-" + hash(network) + "-" }

func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:6])
}

// collectChains deletes the chains of a network that no pod uses.
func collectChains(network string) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	chains, err := conn.ListChainsOfTableFamily(masquerade4.family)
	if err != nil {
		return fmt.Errorf("list nftables chains: %w", err)
	}
	for _, c := range chains {
		if c.Table.Name != tableName || !strings.HasPrefix(c.Name, chainPrefix(network)) {
			continue
		}
		conn.DelChain(c)
		err := conn.Flush()
		if err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOENT) { // in use; gone
			return fmt.Errorf("delete nftables chain %s: %w", c.Name, err)
		}
	}
	return nil
}

// draftMasquerade describes the table and the chain of one network. All of it may be
// there already, but for the rules of the two chains, which are made anew: rules
// have no names.
func draftMasquerade(d *draft, network string, exempt []netip.Prefix) error {
	table := d.conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: tableName})
	pods := []*nftables.Set{
		{Table: table, Name: masquerade4.name, IsMap: true, KeyType: nftables.TypeIPAddr, DataType: nftables.TypeVerdict, KeyByteOrder: binaryutil.BigEndian},
		{Table: table, Name: masquerade6.name, IsMap: true, KeyType: nftables.TypeIP6Addr, DataType: nftables.TypeVerdict, KeyByteOrder: binaryutil.BigEndian},
	}
	for _, s := range pods {
		if err := d.conn.AddSet(s, nil); err != nil {
			return fmt.Errorf("make nftables map %s: %w", s.Name, err)
		}
	}
	leaving := d.chain(nftables.Chain{
		Table: table, Name: "postrouting", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	leaving.rule(isIPv4, sourceOf(ipv4), lookUp(masquerade4))
	leaving.rule(isIPv6, sourceOf(ipv6), lookUp(masquerade6))

	own := d.chain(nftables.Chain{Table: table, Name: network})
	for _, prefix := range exempt {
		own.rule(isFor(prefix), destinationIn(prefix), verdict(expr.VerdictReturn))
	}
	own.rule(match{&expr.Masq{}})
	return nil
}
