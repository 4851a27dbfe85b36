package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/ipam"
	"github.com/fairlead/fairlead/ipam/disk"
)

// storePatience is how long a command waits for the transactions of pods. Each
// takes about a millisecond.
const storePatience = 10 * time.Second

// ipamFlags are those that every ipam command has.
type ipamFlags struct {
	dataDir, network, output string
}

func (f *ipamFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.dataDir, "data-dir", disk.DefaultDir, "directory of the stores: ipam.dataDir of the network's configuration")
	cmd.Flags().StringVar(&f.network, "network", "", "name of one network (default: all that have a store)")
	cmd.Flags().StringVarP(&f.output, "output", "o", "table", "table or json")
}

func ipamCommand(e env) *cobra.Command {
	cmd := onlyOthers(&cobra.Command{Use: "ipam", Short: "Look at and repair which pod has which address on this node"})
	cmd.AddCommand(ipamShowCommand(e), ipamListCommand(e), ipamReleaseCommand(e), ipamCheckCommand(e), ipamImportCommand(e), ipamExportCommand(e))
	return cmd
}

// network is a network and where its rows are.
type network struct {
	name  string
	store *disk.Store
}

// networks returns what the flags select.
func (f ipamFlags) networks() ([]network, error) {
	if f.output != "table" && f.output != "json" {
		return nil, usagef("--output %q: allowed are table and json", f.output)
	}
	names := []string{f.network}
	if f.network == "" {
		var err error
		if names, err = disk.Networks(f.dataDir); err != nil {
			return nil, err
		}
	}
	var selected []network
	for _, name := range names {
		store, err := disk.New(f.dataDir, name)
		if err != nil {
			return nil, usagef("--network: %w", err)
		}
		selected = append(selected, network{name, store})
	}
	return selected, nil
}

// view runs read on each network. What is wrong with one does not hide the
// others; it is in the error.
func (f ipamFlags) view(ctx context.Context, networks []network, read func(network, ipam.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, storePatience)
	defer cancel()
	var failed []error
	for _, n := range networks {
		err := n.store.View(ctx, func(tx ipam.Tx) error { return read(n, tx) })
		if errors.Is(err, fs.ErrNotExist) {
			err = f.noStore(n)
		}
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

func (f ipamFlags) noStore(n network) error {
	return fmt.Errorf("network %s has no store in %s", n.name, f.dataDir)
}

// update runs change in a transaction in which every row is of the running boot.
func (n network) update(ctx context.Context, e env, change func(tx ipam.Tx, boot string) error) error {
	boot, err := e.bootID()
	if err != nil {
		return fmt.Errorf("read boot id: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, storePatience)
	defer cancel()
	return n.store.Update(ctx, func(tx ipam.Tx) error {
		if err := ipam.Reclaim(tx, boot); err != nil {
			return err
		}
		return change(tx, boot)
	})
}

// print writes the document as JSON or, for people, as a table whose first row
// is header.
func (f ipamFlags) print(w io.Writer, document any, header string, rows [][]string) error {
	if f.output == "json" {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(document)
	}
	if len(rows) == 0 {
		return nil
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, strings.Join(strings.Fields(header), "\t"))
	for _, row := range rows {
		fmt.Fprintln(table, strings.Join(row, "\t"))
	}
	return table.Flush()
}

// say writes a sentence for people.
func (f ipamFlags) say(w io.Writer, format string, args ...any) {
	if f.output != "json" {
		fmt.Fprintf(w, format+"\n", args...)
	}
}

// row is an address that is held, as the commands print it.
type row struct {
	Network   string     `json:"network"`
	Address   netip.Addr `json:"address"`
	Pod       string     `json:"pod"` // namespace/name, "" when the runtime did not say
	Container string     `json:"container"`
	Interface string     `json:"interface"`
	Netns     string     `json:"netns"` // "" when it is not known
	Since     time.Time  `json:"since"`
}

const rowHeader = "NETWORK ADDRESS POD CONTAINER INTERFACE NETNS SINCE"

func rowsOf(network string, leases ...ipam.Lease) []row {
	rows := []row{}
	for _, lease := range leases {
		for _, addr := range lease.Addrs {
			rows = append(rows, row{network, addr, lease.Pod, lease.ContainerID, lease.IfName, lease.Netns, lease.Since.UTC()})
		}
	}
	slices.SortFunc(rows, func(a, b row) int { return a.Address.Compare(b.Address) })
	return rows
}

func cells(rows []row) [][]string {
	var table [][]string
	for _, r := range rows {
		table = append(table, []string{
			r.Network, r.Address.String(), orDash(r.Pod), short(r.Container), r.Interface, orDash(r.Netns), shortTime(r.Since),
		})
	}
	return table
}

// short is the beginning of a container's ID, as crictl and ctr take it.
func short(id string) string { return id[:min(13, len(id))] }

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// shortTime is a time to the second, "-" when there is none.
func shortTime(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

// counted is a number of things in words, as in "1 row" and "2 rows".
func counted(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
