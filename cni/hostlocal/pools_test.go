package hostlocal

import (
	"net/netip"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/fairlead/fairlead/ipam"
	"github.com/fairlead/fairlead/ipam/disk"
)

// A network with pools gives addresses of the blocks that 'fairlead node' put into
// its store, and says what it wants, and why it cannot.
func TestPools(t *testing.T) {
	n := newNode(t, `{"ipam": {"subnet": "10.244.1.0/24", "pools": ["lan"]}}`)
	store, err := disk.New(n.dataDir, "testnet")
	if err != nil {
		t.Fatal(err)
	}
	update := func(f func(tx ipam.Tx) error) {
		t.Helper()
		if err := store.Update(t.Context(), func(tx ipam.Tx) error {
			if err := ipam.Reclaim(tx, "first"); err != nil {
				return err
			}
			return f(tx)
		}); err != nil {
			t.Fatal(err)
		}
	}
	const none = "this node has no block of pool lan yet: 'fairlead node' leases one"
	expectError(t, n.status(nil), types.ErrPluginNotAvailable, none)
	_, err = n.add("a", nil)
	expectError(t, err, types.ErrTryAgainLater, none)
	update(func(tx ipam.Tx) error {
		wanted, err := ipam.Wanted(tx)
		if at := wanted["lan"]; at.IsZero() {
			t.Error("an ADD in vain leaves no sign that the pool is wanted")
		}
		return err
	})

	block := netip.MustParsePrefix("192.168.10.16/30")
	grant := ipam.Grant{Block: block, Range: ipam.Range{
		Subnet: netip.MustParsePrefix("192.168.10.0/24"), First: block.Addr(), Last: ipam.LastAddr(block), Pool: "lan",
	}}
	vips := netip.MustParsePrefix("10.96.0.0/16")
	update(func(tx ipam.Tx) error { return ipam.PutGrant(tx, grant) })
	update(func(tx ipam.Tx) error {
		return ipam.PutState(tx, "lan", ipam.PoolState{
			Note:   "all 1 blocks of the pool are leased",
			Routes: []ipam.PoolRoute{{Dst: netip.MustParsePrefix("192.168.10.5/32")}, {Dst: vips, Via: netip.MustParseAddr("192.168.10.5")}},
		})
	})
	if err := n.status(nil); err != nil {
		t.Errorf("STATUS with a block: %v", err)
	}
	n.expect("a", "10.244.1.2/24 192.168.10.16/24")
	result, err := n.Add(t.Context(), n.args("b", nil))
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Routes) != 2 || *result.Routes[0].Scope != 253 || result.Routes[1].GW.String() != "192.168.10.5" || result.IPs[1].Gateway != nil {
		t.Errorf("result: %+v", result)
	}
	n.expect("c", "10.244.1.4/24 192.168.10.18/24")
	n.expect("d", "10.244.1.5/24 192.168.10.19/24")
	const full = "no addresses left in the blocks of pool lan that this node has, 192.168.10.16-192.168.10.19: all 1 blocks of the pool are leased"
	_, err = n.add("e", nil)
	expectError(t, err, types.ErrTryAgainLater, full)
	expectError(t, n.status(nil), types.ErrPluginNotAvailable, full)

	grant.Closed = ipam.Lost
	update(func(tx ipam.Tx) error { return ipam.PutGrant(tx, grant) })
	expectError(t, n.status(nil), types.ErrLimitedConnectivity,
		"this node has no block of pool lan: all 1 blocks of the pool are leased\n"+
			"block 192.168.10.16/30 of pool lan was given to another node, and pods of this node still have addresses of it")
	n.del("a")
	n.Now = func() time.Time { return time.Unix(1_700_000_060, 0) }
	update(func(tx ipam.Tx) error { grant.Closed = ""; return ipam.PutGrant(tx, grant) })
	n.expect("e", "10.244.1.6/24 192.168.10.16/24")
}

func TestPoolConfigErrors(t *testing.T) {
	for _, tt := range []struct{ pools, want string }{
		{`["lan", "lan"]`, `ipam.pools[1]: "lan" is there twice: a pod gets one address of a pool`},
		{`[7]`, "ipam.pools[0]: 7 is not allowed: it must be the name of an IPPool"},
		{`["Lan"]`, `ipam.pools[0]: "Lan" is not allowed: it must be the name of an IPPool`},
		{`"lan"`, "ipam.pools: a JSON string is not allowed: it must be a list"},
	} {
		n := newNode(t, `{"ipam": {"pools": `+tt.pools+`}}`)
		_, err := n.add("a", nil)
		expectError(t, err, types.ErrInvalidNetworkConfig, tt.want)
	}
}
