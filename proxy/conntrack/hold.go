package conntrack

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// holdName is the table that holds connection tracking.
const holdName = "fairlead-hold"

// Hold has netfilter go on with the flows that it translates, in the network namespace
// of the calling thread, when the last rule that asks for that goes. For the kernel
// tracks as long as some rule wants to know of it, and translates as long as there is
// a chain that may: without them packets of such flows pass as they are, and the flows
// are lost. The table for it says nothing of any packet.
//
// On a kernel without nf_tables it does nothing: nothing can be held there.
func Hold() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	held, err := hold(conn)
	switch {
	case errors.Is(err, errNoNFTables), held != nil:
		return nil
	case err != nil:
		return err
	}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: holdName})
	conn.AddChain(&nftables.Chain{
		Table: table, Name: "translates", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	tracks := conn.AddChain(&nftables.Chain{Table: table, Name: "tracks"}) // that no packet comes to
	conn.AddRule(&nftables.Rule{Table: table, Chain: tracks, Exprs: []expr.Any{&expr.Ct{Key: expr.CtKeySTATE, Register: 1}}})
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("write nftables table %s: %w", holdName, err)
	}
	return nil
}

// Release ends what Hold began. It may have ended already.
func Release() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	held, err := hold(conn)
	switch {
	case errors.Is(err, errNoNFTables):
		return nil
	case err != nil || held == nil:
		return err
	}
	conn.DelTable(held)
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove nftables table %s: %w", holdName, err)
	}
	return nil
}

var errNoNFTables = errors.New("the kernel has no nf_tables")

// hold is the table; nil if there is none.
func hold(conn *nftables.Conn) (*nftables.Table, error) {
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		return nil, errNoNFTables
	}
	if err != nil {
		return nil, fmt.Errorf("list nftables tables: %w", err)
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == holdName })
	if i < 0 {
		return nil, nil
	}
	return tables[i], nil
}
