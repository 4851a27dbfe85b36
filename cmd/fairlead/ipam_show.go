package main

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
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
		Long: `Shows each range of which a pod has had an address since the node booted:

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
	boot, err := e.bootID()
	if err != nil {
		return fmt.Errorf("read boot id: %w", err)
	}
	usages := []usage{}
	var table [][]string
	failed := f.view(ctx, networks, func(n network, tx ipam.Tx) error {
		ranges, err := ipam.Ranges(tx, boot, e.now())
		for _, r := range ranges {
			usages = append(usages, usageOf(n.name, r))
			table = append(table, []string{
				n.name, r.First.String() + "-" + r.Last.String(), r.Size.String(),
				strconv.Itoa(r.Used), strconv.Itoa(r.Cooling), r.Free.String(), shortTime(r.Oldest),
			})
		}
		return err
	})
	document := struct {
		Ranges []usage `json:"ranges"`
	}{usages}
	err = f.print(e.stdout, document, "NETWORK RANGE SIZE USED COOLING FREE OLDEST", table)
	if failed == nil && len(usages) == 0 {
		f.say(e.stdout, "no pod has had an address since this node booted (stores in %s)", f.dataDir)
	}
	return errors.Join(failed, err)
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
