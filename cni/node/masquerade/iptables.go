package masquerade

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"

	"github.com/fairlead/fairlead/cni/host/command"
	"github.com/fairlead/fairlead/cni/host/xtables"
)

// IPTables is a chain of our own in the nat table of each family, and a rule that
// leads there for each range of pods.
//
// Its name does not begin with that of the service proxy's chains: the proxy
// removes every chain of that name which it does not know.
type IPTables struct {
	last synced // what the kernel has
}

const iptName = "FLNODE-MASQ"

// OpenIPTables finds the commands. It fails if there are none.
func OpenIPTables() (*IPTables, error) {
	if _, err := exec.LookPath("iptables-restore"); err != nil {
		return nil, fmt.Errorf("find iptables: %w (on Debian: apt-get install iptables)", err)
	}
	return &IPTables{}, nil
}

func (t *IPTables) String() string { return "iptables" }

// Lost implements Table. Of iptables the kernel tells nothing.
func (t *IPTables) Lost(context.Context) (<-chan struct{}, error) { return nil, nil }

// Sync implements Table.
func (t *IPTables) Sync(pods []netip.Prefix, to *Cluster) error {
	if t.last.is(pods, to) {
		return nil
	}
	t.last = synced{}
	var errs []error
	for _, is6 := range []bool{false, true} {
		errs = append(errs, syncIPTables(is6, shortest(ofFamily(pods, is6)), shortest(to.of(is6))))
	}
	err := errors.Join(errs...)
	if err == nil {
		t.last = newSynced(pods, to)
	}
	return err
}

func syncIPTables(is6 bool, pods, cluster []netip.Prefix) error {
	name := "iptables"
	if is6 {
		name = "ip6tables"
	}
	if len(pods) == 0 && !hasNAT(is6) {
		return nil // and iptables-legacy-save would make one
	}
	saved, err := run("", name+"-save", "-t", "nat")
	if err != nil && len(pods) == 0 {
		return nil // no nat table of that family, nothing in it
	}
	if err != nil {
		return fmt.Errorf("read the nat table: %w", err)
	}
	script := iptScript(saved, pods, cluster)
	if script == "" {
		return nil
	}
	if _, err := run(script, name+"-restore", "--noflush", "-w", "10"); err != nil {
		return fmt.Errorf("write masquerading to iptables: %w", err)
	}
	return nil
}

// hasNAT says whether there may be a table in which iptables has rules of ours, of
// either variant.
func hasNAT(is6 bool) bool {
	const name = "nat"
	legacy, err := xtables.Tables(is6)
	if err != nil || slices.Contains(legacy, name) {
		return true
	}
	n, err := OpenNFTables()
	if err != nil {
		return false
	}
	defer n.close()
	tables, err := n.conn.ListTablesOfFamily(newNFTable(is6, nil).Family)
	return err != nil || slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == name })
}

// iptScript is the input of iptables-restore --noflush, one step, that turns what
// was saved into what is wanted.
func iptScript(saved string, pods, cluster []netip.Prefix) string {
	var b strings.Builder
	for line := range strings.Lines(saved) {
		if rest, ok := strings.CutPrefix(line, "-A POSTROUTING "); ok && strings.Contains(rest, "-j "+iptName) {
			b.WriteString("-D POSTROUTING " + rest)
		}
	}
	there := strings.Contains(saved, ":"+iptName+" ")
	if len(pods) == 0 {
		if !there {
			return ""
		}
		return "*nat\n:" + iptName + " - [0:0]\n" + b.String() + "-X " + iptName + "\nCOMMIT\n"
	}
	for _, p := range pods {
		fmt.Fprintf(&b, "-A POSTROUTING -s %s -m comment --comment \"pods of this node\" -j %s\n", p, iptName)
	}
	for _, p := range cluster {
		fmt.Fprintf(&b, "-A %s -d %s -j RETURN\n", iptName, p)
	}
	fmt.Fprintf(&b, "-A %s -j MASQUERADE --random-fully\n", iptName)
	return "*nat\n:" + iptName + " - [0:0]\n" + b.String() + "COMMIT\n"
}

// within is how long a command may take, of which it may wait ten seconds for another
// one to give the lock of xtables free: else it hangs, and is ended.
const within = time.Minute

func run(stdin, name string, args ...string) (string, error) {
	out, err := command.Command{Name: name, Args: args, Input: command.Text(stdin), Within: within}.Run(context.Background())
	return string(out), err
}

// CleanupIPTables removes the chains, where there are any.
func CleanupIPTables() error {
	t, err := OpenIPTables()
	if err != nil {
		return nil // no iptables, no chains
	}
	return t.Sync(nil, &Cluster{})
}
