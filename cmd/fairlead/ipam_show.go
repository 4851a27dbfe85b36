package main

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/ipam"
)

func ipamShowCommand(e env) *cobra.Command {
	var f ipamFlags
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show how full the ranges of addresses are",
		Long: `Shows each block of a pool that this node has, and each other range of which a
pod has had an address since the node booted:

  POOL     the pool of the cluster that the range is a block of; - if it is the
           node's own, (lost) if another node has the block now
  SIZE     the addresses that it can give: without network, broadcast and gateway
           address, so a /24 with its gateway inside has 253
  USED     held by pods
  COOLING  freed less than the network's cooldown ago, given only when nothing
           else is left
  FREE     the rest
  OLDEST   since when its oldest holder has its address`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return showRanges(cmd.Context(), e, f) },
	}
	f.register(cmd)
	return cmd
}

// usage is a range as the command prints it.
type usage struct {
	Network  string     `json:"network"`
	Pool     string     `json:"pool"`   // "" for a range of the node's own
	Closed   string     `json:"closed"` // why no more is given of a block: lost, retired; "" if it is
	First    netip.Addr `json:"first"`
	Last     netip.Addr `json:"last"`
	Size     *big.Int   `json:"size"`
	Used     int        `json:"used"`
	Cooling  int        `json:"cooling"`
	Free     *big.Int   `json:"free"`
	Cooldown string     `json:"cooldown"`
	Oldest   *time.Time `json:"oldest"` // null: no address is held
}

func showRanges(ctx context.Context, e env, f ipamFlags) error {
	networks, err := f.networks()
	if err != nil {
		return err
	}
	usages, failed := f.usages(ctx, e, networks)
	var table [][]string
	for _, u := range usages {
		table = append(table, u.cells())
	}
	document := struct {
		Ranges []usage `json:"ranges"`
	}{usages}
	err = f.print(e.stdout, document, "NETWORK POOL RANGE SIZE USED COOLING FREE OLDEST", table)
	if failed == nil && len(usages) == 0 {
		f.say(e.stdout, "no pod has had an address since this node booted (stores in %s)", f.dataDir)
	}
	return errors.Join(failed, err)
}

// usages are the ranges of the networks. What is wrong with one does not hide the
// others.
func (f ipamFlags) usages(ctx context.Context, e env, networks []network) ([]usage, error) {
	boot, err := e.bootID()
	if err != nil {
		return nil, fmt.Errorf("read boot id: %w", err)
	}
	all := []usage{}
	err = f.view(ctx, networks, func(n network, tx ipam.Tx) error {
		grants, err := ipam.Grants(tx, boot)
		if err != nil {
			return err
		}
		ranges, err := ipam.Ranges(tx, boot, e.now())
		all = append(all, withBlocks(n.name, ranges, grants)...)
		return err
	})
	return all, err
}

// withBlocks are the blocks of pools, in order, also those of which no pod has had
// an address, and then the other ranges.
func withBlocks(network string, ranges []ipam.Usage, grants []ipam.Grant) []usage {
	var all, others []usage
	blocks := map[netip.Addr]usage{} // by First
	for _, r := range ranges {
		u := usageOf(network, r)
		if i := slices.IndexFunc(grants, func(g ipam.Grant) bool { return g.Range.First == r.First && g.Range.Last == r.Last }); i >= 0 {
			blocks[r.First] = u
			continue
		}
		others = append(others, u)
	}
	for _, g := range grants {
		u, used := blocks[g.Range.First]
		if !used {
			size := new(big.Int).SetUint64(g.Range.Size())
			u = usage{Network: network, First: g.Range.First, Last: g.Range.Last, Size: size, Free: size, Cooldown: "0s"}
		}
		u.Pool, u.Closed = g.Range.Pool, string(g.Closed)
		all = append(all, u)
	}
	return append(all, others...)
}

func (u usage) cells() []string {
	pool := orDash(u.Pool)
	if u.Closed != "" {
		pool += " (" + u.Closed + ")"
	}
	oldest := "-"
	if u.Oldest != nil {
		oldest = shortTime(*u.Oldest)
	}
	return []string{
		u.Network, pool, u.First.String() + "-" + u.Last.String(), u.Size.String(),
		strconv.Itoa(u.Used), strconv.Itoa(u.Cooling), u.Free.String(), oldest,
	}
}

func usageOf(network string, r ipam.Usage) usage {
	u := usage{
		Network: network, First: r.First, Last: r.Last, Size: r.Size,
		Used: r.Used, Cooling: r.Cooling, Free: r.Free, Cooldown: r.Cooldown.String(),
	}
	if !r.Oldest.IsZero() {
		oldest := r.Oldest.UTC()
		u.Oldest = &oldest
	}
	return u
}
