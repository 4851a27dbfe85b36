package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	goiptables "github.com/coreos/go-iptables/iptables"

	"github.com/fairlead/fairlead/cni/host/command"
	"github.com/fairlead/fairlead/cni/host/sysctl"
)

// lockWait is how many seconds iptables waits for another program that holds the
// xtables lock.
const lockWait = 10

// waits are the arguments that say so.
var waits = []string{"-w", strconv.Itoa(lockWait)}

// A command that has not ended after patience, and perRule for each rule that it may
// have to look at, hangs. With 10,000 Services iptables-nft-restore takes 0.03 ms a
// rule, and on a machine that has ten other things to do ten times that.
const (
	patience = 30 * time.Second
	perRule  = time.Millisecond
	// manyRules are as many as a node may have, where that is not known.
	manyRules = 100_000
)

// within is how long a command may take.
func (t tool) within(rules int) time.Duration {
	return t.patience + time.Duration(rules)*perRule
}

// tool is the commands that read and write one family's rules.
type tool struct {
	ipt                      *goiptables.IPTables // for what is asked at the start
	cmd, saveCmd, restoreCmd string
	version                  string        // as for people: "ip6tables 1.8.9"
	nft                      bool          // the rules are in nf_tables
	chainsPerStep            int           // see script.inSteps; 0: no limit
	witness                  witness       // of what others do; nil: nobody
	rules                    int           // that there are, as far as known
	patience                 time.Duration // the constant, but for tests
}

// newFamily finds the commands of a family and looks whether the kernel has the
// tables.
func newFamily(config Config, ipv6 bool) (*family, error) {
	name, protocol := "iptables", goiptables.ProtocolIPv4
	if ipv6 {
		name, protocol = "ip6tables", goiptables.ProtocolIPv6
	}
	switch config.Variant {
	case "":
	case Legacy, NFT:
		name += "-" + config.Variant
	default:
		return nil, fmt.Errorf("iptables variant %q: allowed are legacy, nft and none for the host's own", config.Variant)
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, fmt.Errorf("find iptables: %w (on Debian: apt-get install iptables)", err)
	}
	ipt, err := goiptables.New(goiptables.IPFamily(protocol), goiptables.Path(path), goiptables.Timeout(lockWait))
	if err != nil {
		return nil, fmt.Errorf("ask %s for its version: %w", path, err)
	}
	nft, err := isNFT(path)
	if err != nil {
		return nil, err
	}
	major, minor, patch := ipt.GetIptablesVersion()
	f := &family{
		ipv6: ipv6,
		opts: Options{
			MasqueradeMark: config.MasqueradeMark,
			RandomFully:    ipt.HasRandomFully(),
			Node:           config.Node,
		},
		tool: tool{
			ipt:        ipt,
			cmd:        path,
			saveCmd:    path + "-save",
			restoreCmd: path + "-restore",
			version:    fmt.Sprintf("%s %d.%d.%d", name, major, minor, patch),
			nft:        nft,
			patience:   patience,
		},
	}
	if f.nft {
		f.chainsPerStep = nftChainsPerStep
	}
	if err := f.lookForTables(); err != nil {
		return f, err
	}
	if err := f.probe(); err != nil {
		return f, err
	}
	if !ipv6 {
		f.opts.LocalnetWasOn, err = f.localnetWasOn()
	}
	return f, err
}

// isNFT says which variant a command is of, which iptables tells with its version:
// "iptables v1.8.9 (nf_tables)".
func isNFT(path string) (bool, error) {
	out, err := command.Command{Name: path, Args: []string{"--version"}, Within: patience}.Run(context.Background())
	if err != nil {
		return false, fmt.Errorf("ask iptables for its version: %w", err)
	}
	return bytes.Contains(out, []byte("nf_tables")), nil
}

// errNoTable: the kernel has not the table, and no module that makes it.
var errNoTable = errors.New("the kernel has no such table")

// lookForTables fails where the kernel lacks a table. It does not read one as a
// whole: the first Sync will, and with iptables-nft and many Services that takes
// seconds.
func (t tool) lookForTables() error {
	for _, table := range []string{filter, nat} {
		_, err := t.ipt.ChainExists(table, "OUTPUT")
		if err != nil && strings.Contains(err.Error(), "does not exist") {
			err = errors.Join(errNoTable, err)
		}
		if err != nil {
			return fmt.Errorf("look for the %s table: %w", table, err)
		}
	}
	return nil
}

// has says whether a chain has a rule. This is asked all the time: a command that hangs
// is ended.
func (t tool) has(table, chain, rule string) (bool, error) {
	args := slices.Concat(waits, []string{"-t", table, "-C", chain}, strings.Fields(rule))
	_, err := command.Command{Name: t.cmd, Args: args, Within: t.within(manyRules)}.Run(context.Background())
	if command.ExitCode(err) == 1 {
		return false, nil
	}
	return err == nil, err
}

// tcpBeLiberal says whether the kernel takes TCP segments for valid that are
// outside of the window.
func tcpBeLiberal() bool {
	value, err := sysctl.Read("net/netfilter/nf_conntrack_tcp_be_liberal")
	return err == nil && value != "0"
}

// sysctlLocalnet says whether addresses of 127.0.0.0/8 are routed like others.
const sysctlLocalnet = "net/ipv4/conf/all/route_localnet"

// localnetWasOn says whether that was on before Fairlead switched it on.
func (t tool) localnetWasOn() (bool, error) {
	guarded, err := t.ipt.ChainExists(filter, chainLocalhost)
	if err != nil {
		return false, fmt.Errorf("look for the guard of route_localnet: %w", err)
	}
	if !guarded {
		value, err := sysctl.Read(sysctlLocalnet)
		return err == nil && value == "1", nil
	}
	rules, err := t.ipt.List(filter, chainLocalhost)
	if err != nil {
		return false, fmt.Errorf("read the guard of route_localnet: %w", err)
	}
	return strings.Contains(strings.Join(rules, ""), localnetWasOn), nil
}

func routeLocalnet(on bool) error {
	value := "0"
	if on {
		value = "1"
	}
	if err := sysctl.Write(sysctlLocalnet, value); err != nil {
		return fmt.Errorf("set route_localnet, for node ports on localhost: %w", err)
	}
	return nil
}

// read asks the kernel what of its rules is ours. (iptables-nft-save reads all tables
// of the family, whichever it is asked for.)
func (t tool) read(ctx context.Context) (Ruleset, error) {
	asked := [][]string{{"-t", filter}, {"-t", nat}}
	if t.nft {
		asked = [][]string{nil}
	}
	rs := Ruleset{filter: nil, nat: nil}
	for _, args := range asked {
		saved, err := save(ctx, t.saveCmd, args...)
		if err != nil {
			return nil, fmt.Errorf("read the rules that there are: %w", err)
		}
		all, err := parse(saved)
		if err != nil {
			return nil, fmt.Errorf("read the rules that there are: %w", err)
		}
		for table := range rs {
			if chains, ok := all[table]; ok {
				rs[table] = chains
			}
		}
	}
	return rs, nil
}

// nftChainsPerStep is how many chains iptables-nft-restore changes fastest in one step:
// with fewer most of the time goes into the kernel's part of each step, with more into
// iptables' own.
const nftChainsPerStep = 128

// restore feeds a script to iptables-restore. What packets meet of a table changes in
// one step or not at all.
func (t tool) restore(ctx context.Context, s script) error {
	if len(s) == 0 {
		return nil
	}
	if t.chainsPerStep > 0 {
		s = s.inSteps(t.chainsPerStep)
	}
	c := command.Command{Name: t.restoreCmd, Args: append([]string{"--noflush"}, waits...), Input: s.writeTo, Within: t.within(t.rules + total(s.count()))}
	if t.witness != nil {
		c.Started = t.witness.writes
		defer t.witness.wrote()
	}
	if _, err := c.Run(ctx); err != nil {
		return &failedScript{cause: err, script: s, line: blamed(err, s)}
	}
	return nil
}

// save is what iptables-save prints.
func save(ctx context.Context, path string, args ...string) ([]byte, error) {
	return command.Command{Name: path, Args: args, Within: patience + manyRules*perRule}.Run(ctx)
}

var lineNumber = regexp.MustCompile(`line:? (\d+)`)

// blamed is the line of the script that a failed iptables-restore names. COMMIT is
// no answer: what the kernel refuses at the end may be any line.
func blamed(err error, s script) string {
	var failed *command.Error
	if !errors.As(err, &failed) {
		return ""
	}
	found := lineNumber.FindStringSubmatch(failed.Stderr)
	if found == nil {
		return ""
	}
	lines := strings.Split(s.String(), "\n")
	n, err := strconv.Atoi(found[1])
	if err != nil || n < 1 || n > len(lines) {
		return ""
	}
	if lines[n-1] == "COMMIT" {
		return ""
	}
	return lines[n-1]
}
