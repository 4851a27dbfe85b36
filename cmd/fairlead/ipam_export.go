package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/ipam"
	"github.com/fairlead/fairlead/ipam/takeover"
)

type exportFlags struct {
	ipamFlags
	to        string
	toNetwork string // "": of the same name
	dryRun    bool
}

func ipamExportCommand(e env) *cobra.Command {
	var f exportFlags
	cmd := &cobra.Command{
		Use:   "export-host-local",
		Short: "Give a running node's addresses back to the reference plugin host-local",
		Long: `Has host-local hold for a network what is held here, and free what it has of pods
that were imported from it and have ended since, so that the network's configuration
can be changed back to "host-local" while its pods run. Addresses of pods that only
host-local knows stay as they are. When one address is held by different pods here
and there, nothing is changed. Both plugins wait meanwhile.

It may be run again. What is held here stays so.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return exportRows(cmd.Context(), e, f) },
	}
	f.register(cmd)
	cmd.Flags().StringVar(&f.to, "to", takeover.DefaultDir, "host-local's directory of networks: its ipam.dataDir")
	cmd.Flags().StringVar(&f.toNetwork, "to-network", "", "the network's name in host-local's configuration (default: --network)")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "say what would be exported and change nothing")
	return cmd
}

// exported is what became of rows.
type exported struct {
	takeover.Change
	held int // addresses, here
}

func exportRows(ctx context.Context, e env, f exportFlags) error {
	networks, err := f.networks()
	if err != nil {
		return err
	}
	if f.network == "" {
		return usagef("--network: missing: the name of the network to give back")
	}
	n := networks[0]
	switch there, err := n.store.Exists(); {
	case err != nil:
		return err
	case !there:
		return f.noStore(n)
	}
	ctx, cancel := context.WithTimeout(ctx, storePatience)
	defer cancel()
	dir, theirs, err := f.open(ctx)
	if err != nil {
		return err
	}
	defer dir.Close()
	done, err := f.export(ctx, e, n, theirs, dir)
	if err != nil {
		return fmt.Errorf("export network %s: %w", f.network, err)
	}
	return f.report(e, done)
}

// open locks what host-local has of the network, and reads it.
func (f exportFlags) open(ctx context.Context) (*takeover.Dir, takeover.Rows, error) {
	open := takeover.Make
	if f.dryRun {
		open = takeover.Open
	}
	dir, err := open(ctx, f.to, cmp.Or(f.toNetwork, f.network))
	if errors.Is(err, fs.ErrNotExist) && f.dryRun { // the export would make it
		return &takeover.Dir{}, takeover.Rows{}, nil
	}
	if err != nil {
		return nil, takeover.Rows{}, err
	}
	rows, err := dir.Read()
	if err != nil {
		dir.Close()
	}
	return dir, rows, err
}

// export tells host-local, while no pod comes or goes.
func (f exportFlags) export(ctx context.Context, e env, n network, theirs takeover.Rows, dir *takeover.Dir) (done exported, err error) {
	if !f.dryRun {
		err = n.update(ctx, e, func(tx ipam.Tx, boot string) (err error) {
			if done, err = f.compare(tx, boot, theirs); err != nil {
				return err
			}
			return dir.Apply(done.Change)
		})
		return done, err
	}
	boot, err := e.bootID()
	if err != nil {
		return exported{}, fmt.Errorf("read boot id: %w", err)
	}
	err = n.store.View(ctx, func(tx ipam.Tx) (err error) {
		done, err = f.compare(tx, boot, theirs)
		return err
	})
	return done, err
}

// compare finds what host-local is to be told.
func (f exportFlags) compare(tx ipam.Tx, boot string, theirs takeover.Rows) (exported, error) {
	held, err := ipam.Leases(tx, boot)
	if err != nil {
		return exported{}, err
	}
	var unread error
	change, err := takeover.Compare(theirs, held, func(o ipam.Owner) bool {
		imported, err := ipam.Imported(tx, o)
		unread = errors.Join(unread, err)
		return imported
	})
	if err = errors.Join(unread, err); err != nil {
		return exported{}, fmt.Errorf("nothing was changed: %w", err)
	}
	return exported{change, len(rowsOf(f.network, held...))}, nil
}

func (f exportFlags) report(e env, done exported) error {
	document := struct {
		DryRun   bool  `json:"dryRun"`
		Exported []row `json:"exported"`
		Freed    []row `json:"freed"` // of pods that have ended
		Kept     []row `json:"kept"`  // of pods that only host-local knows
		Known    int   `json:"known"` // rows that host-local had
	}{f.dryRun, rowsOf(f.network, done.Hold...), rowsOf(f.network, done.Free...), rowsOf(f.network, done.Kept...), 0}
	document.Known = done.held - len(document.Exported)
	if err := f.print(e.stdout, document, rowHeader, cells(document.Exported)); err != nil {
		return err
	}
	for _, l := range done.Kept {
		f.say(e.stdout, "left as it is, as only host-local knows of it: %s", holding{network{name: f.network}, l})
	}
	verbs := [2]string{"exported", "freed"}
	if f.dryRun {
		verbs = [2]string{"would export", "would free"}
	}
	f.say(e.stdout, "%s %s, %s %d of pods that have ended; %s known before",
		verbs[0], counted(len(document.Exported), "row"), verbs[1], len(document.Freed), counted(document.Known, "row"))
	return nil
}
