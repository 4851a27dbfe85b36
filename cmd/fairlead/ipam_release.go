package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/ipam"
)

type releaseFlags struct {
	ipamFlags
	ifName string
	yes    bool
}

func ipamReleaseCommand(e env) *cobra.Command {
	var f releaseFlags
	cmd := &cobra.Command{
		Use:   "release ADDRESS|CONTAINER",
		Short: "Free the addresses of a pod that is gone",
		Long: `Frees what the container holds, or the holder of the address: all addresses of each
of its interfaces. CONTAINER may be the beginning of an ID. For pods whose end the
runtime never told: an address that a running pod still uses would be given to a
second pod ('fairlead ipam check' finds rows whose pod is gone).`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] == "" { // every ID begins with nothing
				return usagef("'%s' takes one address or container ID", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return release(cmd.Context(), e, f, args[0]) },
	}
	f.register(cmd)
	cmd.Flags().StringVar(&f.ifName, "ifname", "", "release one interface of the container only")
	cmd.Flags().BoolVarP(&f.yes, "yes", "y", false, "do not ask")
	return cmd
}

// holding is a lease and the network that it is of.
type holding struct {
	network
	lease ipam.Lease
}

func release(ctx context.Context, e env, f releaseFlags, what string) error {
	networks, err := f.networks()
	if err != nil {
		return err
	}
	found, err := f.find(ctx, e, networks, what)
	if err != nil {
		return err
	}
	if err := f.confirm(e, found); err != nil {
		return err
	}
	released := []row{}
	for _, h := range found {
		if err := h.release(ctx, e); err != nil {
			return err
		}
		released = append(released, rowsOf(h.name, h.lease)...)
		f.say(e.stdout, "released %s", h)
	}
	if f.output != "json" {
		return nil
	}
	return f.print(e.stdout, struct {
		Released []row `json:"released"`
	}{released}, "", nil)
}

// find returns what holds the address or is of the container. There is at least
// one, and all are of one container where a container was named.
func (f releaseFlags) find(ctx context.Context, e env, networks []network, what string) ([]holding, error) {
	boot, err := e.bootID()
	if err != nil {
		return nil, fmt.Errorf("read boot id: %w", err)
	}
	addr, notAddr := netip.ParseAddr(what)
	isMeant := func(l ipam.Lease) bool { return slices.Contains(l.Addrs, addr.Unmap()) }
	if notAddr != nil {
		isMeant = func(l ipam.Lease) bool { return strings.HasPrefix(l.ContainerID, what) }
	}
	var found []holding
	err = f.view(ctx, networks, func(n network, tx ipam.Tx) error {
		leases, err := ipam.Leases(tx, boot)
		for _, lease := range leases {
			if isMeant(lease) && (f.ifName == "" || f.ifName == lease.IfName) {
				found = append(found, holding{n, lease})
			}
		}
		return err
	})
	switch {
	case len(found) > 0 && notAddr != nil:
		return found, oneContainer(what, found)
	case len(found) > 0: // what cannot be read elsewhere does not matter
		return found, nil
	case err != nil:
		return nil, err
	case notAddr != nil:
		return nil, fmt.Errorf("release %s: no such container holds an address", what)
	default:
		return nil, fmt.Errorf("release %s: nobody holds it", what)
	}
}

// oneContainer refuses the beginning of several IDs.
func oneContainer(prefix string, found []holding) error {
	first := found[0].lease.ContainerID
	for _, h := range found {
		if h.lease.ContainerID != first {
			return fmt.Errorf("release %s: containers %s and %s begin so: name one", prefix, first, h.lease.ContainerID)
		}
	}
	return nil
}

// confirm asks on a terminal. Where there is none, only --yes will do.
func (f releaseFlags) confirm(e env, found []holding) error {
	if f.yes {
		return nil
	}
	var list []string
	for _, h := range found {
		list = append(list, fmt.Sprintf("%s, pod %s, since %s", h, orDash(h.lease.Pod), shortTime(h.lease.Since)))
	}
	return confirm(e, "release", list, "A pod that still runs would share its address with another. Release?")
}

// release frees what was found, if that is still what is held.
func (h holding) release(ctx context.Context, e env) error {
	return h.update(ctx, e, func(tx ipam.Tx, _ string) error {
		held, err := ipam.Held(tx, h.lease.Owner)
		if err != nil {
			return err
		}
		if !slices.Equal(held.Addrs, h.lease.Addrs) || !held.Since.Equal(h.lease.Since) {
			return fmt.Errorf("release %s: it changed in the meantime; nothing was changed", h)
		}
		return ipam.Release(tx, h.lease.Owner, e.now())
	})
}

func (h holding) String() string {
	var addrs []string
	for _, addr := range h.lease.Addrs {
		addrs = append(addrs, addr.String())
	}
	return fmt.Sprintf("%s of %s in network %s", strings.Join(addrs, ", "), h.lease.Owner, h.name)
}
