// Package kubeproxy finds and removes what kube-proxy has left in the kernel, in
// whatever mode it ran: chains of iptables, of either variant, tables of nftables,
// the link of mode ipvs. What is kubelet's, or anybody else's, stays: chains that
// begin with KUBE- are not all of kube-proxy. It works in the network namespace of
// the calling thread.
package kubeproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/fairlead/fairlead/cni/host/xtables"
)

// Leftover is a part of what kube-proxy has left.
type Leftover struct {
	What   string // as for people: "12 chains in iptables-nft"
	remove func(context.Context) error
}

// Remove removes it. It may be gone already.
func (l Leftover) Remove(ctx context.Context) error {
	if err := l.remove(ctx); err != nil {
		return fmt.Errorf("remove %s: %w", l.What, err)
	}
	return nil
}

// Find looks for all that is left. A command that is missing is passed over.
func Find(ctx context.Context) ([]Leftover, error) {
	var found []Leftover
	for _, look := range []func(context.Context) ([]Leftover, error){iptables, nftTables, ipvs} {
		more, err := look(ctx)
		if err != nil {
			return nil, err
		}
		found = append(found, more...)
	}
	return found, nil
}

func iptables(ctx context.Context) ([]Leftover, error) {
	var found []Leftover
	for _, program := range []string{"iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"} {
		if family, legacy := strings.CutSuffix(program, "tables-legacy"); legacy {
			if tables, err := xtables.Tables(family == "ip6"); err != nil || len(tables) == 0 {
				continue // the command would make the tables that it looks for
			}
		}
		script, chains, err := script(ctx, program)
		switch {
		case errors.Is(err, exec.ErrNotFound):
			continue
		case err != nil:
			return nil, err
		case chains == 0:
			continue
		}
		found = append(found, Leftover{fmt.Sprintf("%d chains in %s", chains, program), func(ctx context.Context) error {
			_, err := run(ctx, script, program+"-restore", "--noflush", "-w", "10")
			return err
		}})
	}
	return found, nil
}

func script(ctx context.Context, program string) (script []byte, chains int, err error) {
	saved, err := run(ctx, nil, program+"-save")
	if err != nil {
		return nil, 0, err
	}
	script, chains = removal(saved)
	return script, chains, nil
}

func run(ctx context.Context, stdin []byte, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}

// tableName is that of kube-proxy's tables of nftables, one for each family.
const tableName = "kube-proxy"

func nftTables(context.Context) ([]Leftover, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, nil // the kernel has no nftables
	}
	tables, err := conn.ListTables()
	if err != nil {
		return nil, nil // likewise
	}
	var found []Leftover
	for _, t := range tables {
		family := map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6"}[t.Family]
		if t.Name != tableName || family == "" {
			continue
		}
		found = append(found, Leftover{"nftables table " + family + " " + tableName, func(context.Context) error {
			conn.DelTable(t)
			return conn.Flush()
		}})
	}
	return found, nil
}

// ipvs looks for the link that has all virtual IPs in mode ipvs: without it packets
// for them do not come to where the kernel balances.
func ipvs(context.Context) ([]Leftover, error) {
	link, err := netlink.LinkByName("kube-ipvs0")
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for link kube-ipvs0: %w", err)
	}
	return []Leftover{{"link kube-ipvs0 (virtual servers stay until 'ipvsadm --clear')", func(context.Context) error {
		return netlink.LinkDel(link)
	}}}, nil
}
