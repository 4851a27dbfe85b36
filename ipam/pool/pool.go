// Package pool shares addresses among nodes: a pool is a range of addresses of
// the whole cluster, cut into blocks of one size, and a node leases as many
// blocks as its pods need. No address can be given by two nodes, because no
// block has two holders.
//
//	objects (IPPool, IPBlock) ──watch──▶ View ─┐
//	                                           ├─▶ Lessor.Sync ──▶ API (IPBlock)
//	what pods want and use ──Stores───────────▶┘              └──▶ Stores (ipam.Grant)
//
// pool.go says what pools and blocks are, lessor.go how a node gets and gives
// back blocks, and why that is safe. The package knows neither Kubernetes nor
// files: an API and the stores come from its caller. Time and chance come in too.
package pool

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/fairlead/fairlead/ipam"
)

// Spec is the spec of an IPPool, as JSON has it.
type Spec struct {
	Subnet     string `json:"subnet"`               // of the link that the pods are on; addresses get its length
	RangeStart string `json:"rangeStart,omitempty"` // first address to give; "": the first host of Subnet
	RangeEnd   string `json:"rangeEnd,omitempty"`   // last address to give; "": the last host
	Gateway    string `json:"gateway,omitempty"`    // of Subnet, never given; "": the first host
	BlockSize  int    `json:"blockSize,omitempty"`  // prefix length of blocks; 0: 28 in IPv4, 122 in IPv6, or that of Subnet if it is longer
}

// Pool is a valid Spec.
type Pool struct {
	Name    string
	Subnet  netip.Prefix
	First   netip.Addr // inclusive, as is Last
	Last    netip.Addr
	Gateway netip.Addr
	Bits    int       // prefix length of blocks
	Created time.Time // of two pools that overlap, the elder counts
}

// A block is at least four addresses, and a pool at most 2^62 blocks.
const (
	hostBits  = 2
	indexBits = 62
)

// Parse validates. The error names the field, its value and what is allowed.
func (s Spec) Parse(name string) (Pool, error) {
	subnet, err := netip.ParsePrefix(s.Subnet)
	switch {
	case err != nil || subnet.Addr().Is4In6():
		return Pool{}, fmt.Errorf("spec.subnet: %q is not allowed: it must be a subnet, such as 192.168.10.0/24 or fd00:1::/64", s.Subnet)
	case subnet != subnet.Masked():
		return Pool{}, fmt.Errorf("spec.subnet: %s has host bits set: the subnet is %s", subnet, subnet.Masked())
	case subnet.Bits() > subnet.Addr().BitLen()-hostBits:
		return Pool{}, fmt.Errorf("spec.subnet: %s is too small: it must have room for hosts, which /%d has", subnet, subnet.Addr().BitLen()-hostBits)
	}
	p := Pool{Name: name, Subnet: subnet, First: subnet.Addr().Next(), Last: ipam.LastHost(subnet), Gateway: subnet.Addr().Next()}
	for _, f := range []struct {
		name, value string
		into        *netip.Addr
	}{{"rangeStart", s.RangeStart, &p.First}, {"rangeEnd", s.RangeEnd, &p.Last}, {"gateway", s.Gateway, &p.Gateway}} {
		if f.value == "" {
			continue
		}
		if *f.into, err = netip.ParseAddr(f.value); err != nil || !subnet.Contains(*f.into) {
			return Pool{}, fmt.Errorf("spec.%s: %q is not allowed: it must be an address of %s", f.name, f.value, subnet)
		}
	}
	if p.Last.Less(p.First) {
		return Pool{}, fmt.Errorf("spec.rangeEnd: %s is before rangeStart %s", p.Last, p.First)
	}
	p.Bits, err = s.bits(subnet)
	return p, err
}

// bits is the prefix length of blocks.
func (s Spec) bits(subnet netip.Prefix) (int, error) {
	whole := subnet.Addr().BitLen()
	least, most := subnet.Bits(), min(whole-hostBits, subnet.Bits()+indexBits)
	if s.BlockSize == 0 {
		standard := 28
		if whole == 128 {
			standard = 122
		}
		return min(max(standard, least), most), nil
	}
	if s.BlockSize < least || s.BlockSize > most {
		return 0, fmt.Errorf("spec.blockSize: %d is not allowed: blocks of %s can have prefix lengths of %d to %d", s.BlockSize, subnet, least, most)
	}
	return s.BlockSize, nil
}

// overlaps says that the pools have an address in common.
func (p Pool) overlaps(q Pool) bool {
	return p.First.Compare(q.Last) <= 0 && q.First.Compare(p.Last) <= 0
}

// blocks is how many blocks the pool has, those at the edges included of which
// not every address is in its range.
func (p Pool) blocks() uint64 { return p.index(p.Last) - p.index(p.First) + 1 }

// index is the number of the block of the subnet that has an address.
func (p Pool) index(a netip.Addr) uint64 {
	return p.number(a) - p.number(p.Subnet.Addr())
}

// number is the address without the bits that are the host's in a block, as far
// as 64 bits go: the subnet has indexBits of them at most.
func (p Pool) number(a netip.Addr) uint64 {
	if a.Is4() {
		b := a.As4()
		return uint64(binary.BigEndian.Uint32(b[:])) >> (32 - p.Bits)
	}
	b := a.As16()
	high, low := binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
	shift := 128 - p.Bits
	if shift >= 64 {
		return high >> (shift - 64)
	}
	return low>>shift | high<<(64-shift)
}

// block is block i of the pool, counted from the one that First is in.
func (p Pool) block(i uint64) netip.Prefix {
	i += p.index(p.First)
	shift := p.Subnet.Addr().BitLen() - p.Bits
	if p.Subnet.Addr().Is4() {
		b := p.Subnet.Addr().As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(i<<shift))
		return netip.PrefixFrom(netip.AddrFrom4(b), p.Bits)
	}
	b := p.Subnet.Addr().As16()
	high, low := binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
	if shift >= 64 {
		high |= i << (shift - 64)
	} else {
		high, low = high|i>>(64-shift), low|i<<shift // the subnet's bits are zero here
	}
	binary.BigEndian.PutUint64(b[:8], high)
	binary.BigEndian.PutUint64(b[8:], low)
	return netip.PrefixFrom(netip.AddrFrom16(b), p.Bits)
}

// rangeOf is what can be given of a block.
func (p Pool) rangeOf(block netip.Prefix) ipam.Range {
	r := ipam.Range{Subnet: p.Subnet, First: block.Addr(), Last: ipam.LastAddr(block), Gateway: p.Gateway, Pool: p.Name}
	if r.First.Less(p.First) {
		r.First = p.First
	}
	if p.Last.Less(r.Last) {
		r.Last = p.Last
	}
	return r
}

// has says that a prefix is one of the pool's blocks.
func (p Pool) has(block netip.Prefix) bool {
	return block.Bits() == p.Bits && block == block.Masked() && p.Subnet.Overlaps(block) &&
		block.Addr().Compare(p.Last) <= 0 && p.First.Compare(ipam.LastAddr(block)) <= 0
}

// start is the block that a node looks at first. It spreads nodes over a pool, so
// that those which start together seldom ask for the same block.
func (p Pool) start(node string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(node)) // never fails
	return h.Sum64() % p.blocks()
}

// BlockSpec is the spec of an IPBlock, as JSON has it.
type BlockSpec struct {
	Pool    string `json:"pool"`              // name of the IPPool
	Block   string `json:"block"`             // the addresses, as a prefix
	Node    string `json:"node"`              // name of the Node that has them
	Network string `json:"network,omitempty"` // CNI network of the node whose pods get them
	// Claim is another one after each write of a holder's: by that a request that
	// was thought lost, and is served late, finds that it is too late.
	Claim string `json:"claim,omitempty"`
}

// Block is a valid IPBlock.
type Block struct {
	Name    string // of the object
	UID     string
	Version string // resourceVersion
	Pool    string
	Prefix  netip.Prefix
	Node    string
	Network string
	Claim   string
}

// Parse validates the spec of the object of that name.
func (s BlockSpec) Parse(name string) (Block, error) {
	prefix, err := netip.ParsePrefix(s.Block)
	switch {
	case err != nil || prefix.Addr().Is4In6() || prefix != prefix.Masked():
		return Block{}, fmt.Errorf("spec.block: %q is not allowed: it must be a block, such as 192.168.10.16/28", s.Block)
	case s.Pool == "":
		return Block{}, fmt.Errorf("spec.pool: no value is not allowed: it must be the name of an IPPool")
	case s.Node == "":
		return Block{}, fmt.Errorf("spec.node: no value is not allowed: it must be the name of the node that has the block")
	}
	return Block{Name: name, Pool: s.Pool, Prefix: prefix, Node: s.Node, Network: s.Network, Claim: s.Claim}, nil
}

// Spec is the block as JSON has it.
func (b Block) Spec() BlockSpec {
	return BlockSpec{Pool: b.Pool, Block: b.Prefix.String(), Node: b.Node, Network: b.Network, Claim: b.Claim}
}

// BlockName is the name of the object of a block. It has the addresses only: two
// nodes that want the same ones, by whatever pool, want the same name.
func BlockName(block netip.Prefix) string {
	return fmt.Sprintf("%s-%d", strings.Trim(strings.NewReplacer(".", "-", ":", "-").Replace(block.Addr().StringExpanded()), "-"), block.Bits())
}

// Problem is what is wrong with a pool or a block, which alone is left out.
type Problem struct {
	Kind, Name string // of the object
	Text       string
}

func (p Problem) String() string { return p.Kind + " " + p.Name + ": " + p.Text }

// The kinds of objects.
const (
	KindPool  = "IPPool"
	KindBlock = "IPBlock"
)

// Taken is a range that no pool may overlap, and what it is.
type Taken struct {
	Prefix netip.Prefix
	What   string // as in "the pod CIDR of node a"
}

// Settle leaves out pools that overlap what is taken, or an elder pool. Every
// node that knows the same objects leaves out the same pools.
func Settle(pools []Pool, taken []Taken) (map[string]Pool, []Problem) {
	pools = slices.Clone(pools)
	slices.SortFunc(pools, func(a, b Pool) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name)) })
	var kept []Pool
	var problems []Problem
	for _, p := range pools {
		what := ""
		if i := slices.IndexFunc(taken, func(t Taken) bool { return t.Prefix.Overlaps(p.Subnet) }); i >= 0 {
			what = taken[i].Prefix.String() + ", " + taken[i].What
		} else if i := slices.IndexFunc(kept, p.overlaps); i >= 0 {
			what = fmt.Sprintf("%s-%s of IPPool %s", kept[i].First, kept[i].Last, kept[i].Name)
		}
		if what != "" {
			problems = append(problems, Problem{KindPool, p.Name, fmt.Sprintf("%s-%s overlaps %s: no blocks of it are leased", p.First, p.Last, what)})
			continue
		}
		kept = append(kept, p)
	}
	good := make(map[string]Pool, len(kept))
	for _, p := range kept {
		good[p.Name] = p
	}
	return good, problems
}
