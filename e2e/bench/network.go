package bench

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/fairlead/fairlead/ipam"
	"github.com/fairlead/fairlead/ipam/disk"
)

// The plugins that are compared.
const (
	Fairlead  = "fairlead"
	Reference = "reference" // bridge with host-local
)

// The address families of a network.
const (
	IPv4 = "IPv4"
	IPv6 = "IPv6"
	Dual = "dual"
)

// products is where the plugins are.
type products struct{ fairlead, reference string }

func (p products) program(plugin string) string {
	if plugin == Reference {
		return filepath.Join(p.reference, "bridge")
	}
	return filepath.Join(p.fairlead, "fairlead-cni")
}

// networkName is of every network: each is on a node of its own.
const networkName = "bench"

// subnets are those of a network of a family, with room for all who hold.
func subnets(family string) []netip.Prefix {
	v4, v6 := netip.MustParsePrefix("10.64.0.0/12"), netip.MustParsePrefix("fd00:64::/64")
	switch family {
	case IPv4:
		return []netip.Prefix{v4}
	case IPv6:
		return []netip.Prefix{v6}
	}
	return []netip.Prefix{v4, v6}
}

// network is the configuration, the same for both plugins but for its types.
func network(p products, s Setup, dataDir string) map[string]any {
	type object = map[string]any
	var ranges [][]object
	for _, subnet := range subnets(s.Family) {
		ranges = append(ranges, []object{{"subnet": subnet.String()}})
	}
	ipamType := "fairlead-ipam"
	if s.Plugin == Reference {
		ipamType = "host-local"
	}
	return object{
		"cniVersion": "1.1.0", "name": networkName, "type": filepath.Base(p.program(s.Plugin)),
		"bridge": "cni0", "isDefaultGateway": true, "ipMasq": s.Masquerade,
		"ipam": object{"type": ipamType, "dataDir": dataDir, "ranges": ranges},
	}
}

// fill has so many pods hold addresses, without their interfaces.
func fill(ctx context.Context, s Setup, dataDir string) error {
	if s.Held == 0 {
		return nil
	}
	if s.Plugin == Reference {
		return fillHostLocal(s, dataDir)
	}
	return fillFairlead(ctx, s, dataDir)
}

// fillFairlead makes rows as ADD does, a thousand in a transaction.
func fillFairlead(ctx context.Context, s Setup, dataDir string) error {
	boot, err := disk.BootID()
	if err != nil {
		return fmt.Errorf("read boot id: %w", err)
	}
	store, err := disk.New(dataDir, networkName)
	if err != nil {
		return err
	}
	var sets []ipam.Set
	for _, subnet := range subnets(s.Family) {
		first := subnet.Addr().Next()
		sets = append(sets, ipam.Set{{Subnet: subnet, First: first, Last: ipam.LastHost(subnet), Gateway: first}})
	}
	const batch = 1000
	for begin := 0; begin < s.Held; begin += batch {
		err := store.Update(ctx, func(tx ipam.Tx) error {
			if err := ipam.Reclaim(tx, boot); err != nil {
				return err
			}
			return allocate(tx, sets, boot, begin, min(begin+batch, s.Held))
		})
		if err != nil {
			return fmt.Errorf("fill store: %w", err)
		}
	}
	return nil
}

func allocate(tx ipam.Tx, sets []ipam.Set, boot string, begin, end int) error {
	for i := begin; i < end; i++ {
		id := holder(i)
		_, err := ipam.Allocate(tx, sets, ipam.Request{
			Owner: ipam.Owner{ContainerID: id, IfName: ifName}, Netns: "/run/netns/" + id, Boot: boot, Now: time.Now(),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// fillHostLocal makes files as host-local does: one per address, with the
// holder's name in it, and one with the address that was given last.
func fillHostLocal(s Setup, dataDir string) error {
	dir := filepath.Join(dataDir, networkName)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for set, subnet := range subnets(s.Family) {
		addr := subnet.Addr().Next() // the gateway
		for i := range s.Held {
			addr = addr.Next()
			if err := os.WriteFile(filepath.Join(dir, addr.String()), []byte(holder(i)+"\r\n"+ifName), 0o600); err != nil {
				return err
			}
		}
		last := fmt.Sprintf("last_reserved_ip.%d", set)
		if err := os.WriteFile(filepath.Join(dir, last), []byte(addr.String()), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// holder is a container ID of the length that runtimes use.
func holder(i int) string { return fmt.Sprintf("%064x", i) }
