package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/ipam"
	"github.com/fairlead/fairlead/ipam/takeover"
)

type importFlags struct {
	ipamFlags
	from        string
	fromNetwork string // "": of the same name
	dryRun      bool
}

func ipamImportCommand(e env) *cobra.Command {
	var f importFlags
	cmd := &cobra.Command{
		Use:   "import-host-local",
		Short: "Take over a running node's addresses from the reference plugin host-local",
		Long: `Reads what host-local keeps of a network and holds the same addresses for the same
containers, so that the network's configuration can be changed to "fairlead-ipam"
while its pods run. Either everything is taken over or, when one address is held by
another here, nothing. host-local waits meanwhile, and its files stay as they are.

It may be run again, also after pods have come and gone: what was imported once is
not imported a second time. Rows of pods that host-local forgot to remove come along;
the runtime's garbage collection or 'fairlead ipam release' frees them.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return importRows(cmd.Context(), e, f) },
	}
	f.register(cmd)
	cmd.Flags().StringVar(&f.from, "from", takeover.DefaultDir, "host-local's directory of networks: its ipam.dataDir")
	cmd.Flags().StringVar(&f.fromNetwork, "from-network", "", "the network's name in host-local's configuration (default: --network)")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "say what would be imported and change nothing")
	return cmd
}

func importRows(ctx context.Context, e env, f importFlags) error {
	networks, err := f.networks()
	if err != nil {
		return err
	}
	if f.network == "" {
		return usagef("--network: missing: the name of the network to take over")
	}
	ctx, cancel := context.WithTimeout(ctx, storePatience)
	defer cancel()
	dir, err := takeover.Open(ctx, f.from, cmp.Or(f.fromNetwork, f.network))
	if err != nil {
		return err
	}
	defer dir.Close() // after the rows are on disk
	rows, err := dir.Read()
	if err != nil {
		return err
	}
	taken, err := f.take(ctx, e, networks[0], rows.Leases)
	if err != nil {
		return fmt.Errorf("import network %s: nothing was changed: %w", f.network, err)
	}
	return f.report(e, taken, rows)
}

// take imports the leases, or finds out which it would import.
func (f importFlags) take(ctx context.Context, e env, n network, leases []ipam.Lease) (taken []ipam.Lease, err error) {
	if !f.dryRun {
		err := n.update(ctx, e, func(tx ipam.Tx, boot string) (err error) {
			taken, err = ipam.Import(tx, boot, leases)
			return err
		})
		return taken, err
	}
	boot, err := e.bootID()
	if err != nil {
		return nil, fmt.Errorf("read boot id: %w", err)
	}
	err = n.store.View(ctx, func(tx ipam.Tx) (err error) {
		taken, err = ipam.Missing(tx, boot, leases)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) { // the import would make it
		return leases, nil
	}
	return taken, err
}

func (f importFlags) report(e env, taken []ipam.Lease, rows takeover.Rows) error {
	imported := rowsOf(f.network, taken...)
	document := struct {
		DryRun   bool         `json:"dryRun"`
		Imported []row        `json:"imported"`
		Known    int          `json:"known"`   // rows that were imported or held before
		Unowned  []netip.Addr `json:"unowned"` // reserved by host-local for nobody, and free here
	}{f.dryRun, imported, len(rowsOf(f.network, rows.Leases...)) - len(imported), append([]netip.Addr{}, rows.Unowned...)}
	if err := f.print(e.stdout, document, rowHeader, cells(imported)); err != nil {
		return err
	}
	if len(rows.Unowned) > 0 {
		f.say(e.stdout, "left out, as host-local names no owner: %s", strings.Trim(fmt.Sprint(rows.Unowned), "[]"))
	}
	verb := "imported"
	if f.dryRun {
		verb = "would import"
	}
	f.say(e.stdout, "%s %s; %s known before", verb, counted(len(imported), "row"), counted(document.Known, "row"))
	return nil
}
