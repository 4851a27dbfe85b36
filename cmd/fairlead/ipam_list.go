package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/ipam"
)

func ipamListCommand(e env) *cobra.Command {
	var f ipamFlags
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the addresses that pods hold",
		Long:  "Lists the addresses that pods hold. Container IDs are shortened in the table, not in JSON.",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return listRows(cmd.Context(), e, f) },
	}
	f.register(cmd)
	return cmd
}

func listRows(ctx context.Context, e env, f ipamFlags) error {
	networks, err := f.networks()
	if err != nil {
		return err
	}
	rows, failed := f.rows(ctx, e, networks)
	document := struct {
		Rows []row `json:"rows"`
	}{rows}
	err = f.print(e.stdout, document, rowHeader, cells(rows))
	if failed == nil && len(rows) == 0 {
		f.say(e.stdout, "no pod holds an address (stores in %s)", f.dataDir)
	}
	return errors.Join(failed, err)
}

// rows reads the rows of networks. With an error it returns those that could be
// read.
func (f ipamFlags) rows(ctx context.Context, e env, networks []network) ([]row, error) {
	boot, err := e.bootID()
	if err != nil {
		return nil, fmt.Errorf("read boot id: %w", err)
	}
	rows := []row{}
	err = f.view(ctx, networks, func(n network, tx ipam.Tx) error {
		leases, err := ipam.Leases(tx, boot)
		rows = append(rows, rowsOf(n.name, leases...)...)
		if err != nil {
			return fmt.Errorf("read network %s: %w", n.name, err)
		}
		return nil
	})
	return rows, err
}
