package pool

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/ipam"
)

func TestSpec(t *testing.T) {
	for _, tt := range []struct {
		spec Spec
		want string // First-Last gateway, block size, number of blocks; or the error
	}{
		{Spec{Subnet: "192.168.10.0/24"}, "192.168.10.1-192.168.10.254 192.168.10.1 /28 16"},
		{Spec{Subnet: "192.168.10.0/29"}, "192.168.10.1-192.168.10.6 192.168.10.1 /29 1"},
		{Spec{Subnet: "0.0.0.0/0", BlockSize: 30}, "0.0.0.1-255.255.255.254 0.0.0.1 /30 1073741824"},
		{Spec{Subnet: "192.168.10.0/24", RangeStart: "192.168.10.100", RangeEnd: "192.168.10.200", Gateway: "192.168.10.254", BlockSize: 29},
			"192.168.10.100-192.168.10.200 192.168.10.254 /29 14"},
		{Spec{Subnet: "fd00:1::/64"}, "fd00:1::1-fd00:1::ffff:ffff:ffff:ffff fd00:1::1 /122 288230376151711744"},
		{Spec{Subnet: "fd00::/16"}, "fd00::1-fd00:ffff:ffff:ffff:ffff:ffff:ffff:ffff fd00::1 /78 4611686018427387904"},
		{Spec{Subnet: "fd00:1::/64", BlockSize: 80}, "fd00:1::1-fd00:1::ffff:ffff:ffff:ffff fd00:1::1 /80 65536"},
		{Spec{Subnet: "192.168.10.0"}, `spec.subnet: "192.168.10.0" is not allowed: it must be a subnet, such as 192.168.10.0/24 or fd00:1::/64`},
		{Spec{Subnet: "192.168.10.1/24"}, "spec.subnet: 192.168.10.1/24 has host bits set: the subnet is 192.168.10.0/24"},
		{Spec{Subnet: "192.168.10.0/31"}, "spec.subnet: 192.168.10.0/31 is too small: it must have room for hosts, which /30 has"},
		{Spec{Subnet: "192.168.10.0/24", BlockSize: 23}, "spec.blockSize: 23 is not allowed: blocks of 192.168.10.0/24 can have prefix lengths of 24 to 30"},
		{Spec{Subnet: "192.168.10.0/24", BlockSize: 31}, "spec.blockSize: 31 is not allowed: blocks of 192.168.10.0/24 can have prefix lengths of 24 to 30"},
		{Spec{Subnet: "192.168.10.0/24", RangeEnd: "192.168.11.1"}, `spec.rangeEnd: "192.168.11.1" is not allowed: it must be an address of 192.168.10.0/24`},
		{Spec{Subnet: "192.168.10.0/24", RangeStart: "192.168.10.9", RangeEnd: "192.168.10.8"}, "spec.rangeEnd: 192.168.10.8 is before rangeStart 192.168.10.9"},
	} {
		t.Run(fmt.Sprint(tt.spec), func(t *testing.T) {
			p, err := tt.spec.Parse("lan")
			got := fmt.Sprintf("%s-%s %s /%d %d", p.First, p.Last, p.Gateway, p.Bits, p.blocks2())
			if err != nil {
				got = err.Error()
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

// blocks2 is blocks of a pool that may be none.
func (p Pool) blocks2() uint64 {
	if p.Bits == 0 {
		return 0
	}
	return p.blocks()
}

// Blocks of a pool are found by their number, and their number by any address.
func TestBlocks(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, spec := range []Spec{
		{Subnet: "192.168.10.0/24", RangeStart: "192.168.10.100", RangeEnd: "192.168.10.200", BlockSize: 29},
		{Subnet: "0.0.0.0/0", BlockSize: 30}, {Subnet: "fd00:1::/64"}, {Subnet: "fd00::/16"}, {Subnet: "fd00::/16", BlockSize: 64},
		{Subnet: "fd00::/16", BlockSize: 63}, {Subnet: "fd00:1:2::/48", BlockSize: 96},
	} {
		p, err := spec.Parse("lan")
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range []uint64{0, 1, p.blocks() - 1, random.Uint64N(p.blocks()), random.Uint64N(p.blocks())} {
			i = min(i, p.blocks()-1)
			block := p.block(i)
			if !p.has(block) || p.index(block.Addr())-p.index(p.First) != i || p.index(ipam.LastAddr(block))-p.index(p.First) != i {
				t.Errorf("block %d of %v is %s", i, spec, block)
			}
		}
	}
}

// A block has one name, and no other has it.
func TestBlockName(t *testing.T) {
	for block, want := range map[string]string{
		"192.168.10.16/28":  "192-168-10-16-28",
		"fd00:1::40/122":    "fd00-0001-0000-0000-0000-0000-0000-0040-122",
		"fd00:1:2::/48":     "fd00-0001-0002-0000-0000-0000-0000-0000-48",
		"192.168.10.160/28": "192-168-10-160-28",
	} {
		if got := BlockName(netip.MustParsePrefix(block)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestSettle(t *testing.T) {
	parse := func(name, subnet string, age int64) Pool {
		p, err := Spec{Subnet: subnet}.Parse(name)
		if err != nil {
			t.Fatal(err)
		}
		p.Created = time.Unix(1000-age, 0)
		return p
	}
	good, problems := Settle([]Pool{
		parse("young", "192.168.10.128/25", 1), parse("old", "192.168.10.0/24", 9),
		parse("pods", "10.244.0.0/24", 5), parse("fine", "192.168.11.0/24", 0),
	}, []Taken{{netip.MustParsePrefix("10.244.0.0/16"), "the pod CIDR of node a"}})
	if len(good) != 2 || good["old"].Name == "" || good["fine"].Name == "" {
		t.Errorf("good: %v", good)
	}
	want := []Problem{
		{KindPool, "pods", "10.244.0.1-10.244.0.254 overlaps 10.244.0.0/16, the pod CIDR of node a: no blocks of it are leased"},
		{KindPool, "young", "192.168.10.129-192.168.10.254 overlaps 192.168.10.1-192.168.10.254 of IPPool old: no blocks of it are leased"},
	}
	if diff := cmp.Diff(want, problems); diff != "" {
		t.Errorf("problems: -want +got\n%s", diff)
	}
}
