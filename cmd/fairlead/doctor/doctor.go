// Package doctor looks at a node for what keeps Services or pods from working, or
// will one day: settings of the kernel, what others left behind, what is missing.
// It changes nothing; of all that it finds it says why it matters and how to mend
// it.
package doctor

import (
	"context"
	"io/fs"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cni/node"
)

// State is how bad a finding is.
type State string

// The states, the better one first.
const (
	Well    State = "ok"
	Warning State = "warning" // works, but not in all cases or not for long
	Bad     State = "bad"     // pods or Services do not work
)

// Finding is what a check found.
type Finding struct {
	Check string `json:"check"`
	State State  `json:"state"`
	What  string `json:"what"`           // with the values found
	Why   string `json:"why,omitempty"`  // it matters; unless Well
	Mend  string `json:"mend,omitempty"` // a command, or what to do; unless Well
}

// Node is a node to look at: the network namespace of the calling thread, and the
// files under Root.
type Node struct {
	Root fs.FS // "/", with proc, sys and etc
	// Unprivileged: rules are not shown to this process.
	Unprivileged bool
	// Output runs a command of iptables or nft, as exec.Cmd.Output does.
	Output func(ctx context.Context, name string, args ...string) ([]byte, error)
	// TryEBPF says why 'fairlead proxy --mode auto' would not take eBPF.
	TryEBPF func() error
	// EndSockets says why sockets of others cannot be ended.
	EndSockets func() error
	// Strangers names programs of others at the hooks of sockets; none where that cannot
	// be told.
	Strangers func() []string
	// Unkept says that nothing keeps the clock right, as far as the kernel knows.
	Unkept func() bool
	// ConfDir is where the container runtime looks for network configurations.
	ConfDir string
	// Agent asks 'fairlead node'; nil: it does not run here.
	Agent func(context.Context) *Agent
	// Virtual are the addresses of Services, as far as 'fairlead proxy' tells.
	Virtual func(context.Context) []netip.Prefix
}

// Agent is what 'fairlead node' knows.
type Agent struct {
	MTU      int // that pods' interfaces can have; 0: not known
	Problems []node.Problem
}

// check looks for one kind of trouble. Nil: it does not concern this node.
type check struct {
	name string
	look func(context.Context, Node) []Finding
}

// checks in the order in which a packet would meet the trouble.
var checks = []check{
	{"rights", rights},
	{"forwarding", forwarding},
	{"reverse path filter", reversePath},
	{"bridge netfilter", bridgeNetfilter},
	{"forward policy", forwardPolicy},
	{"MTU", mtu},
	{"address ranges", addressRanges},
	{"other nodes", otherNodes},
	{"other proxies", otherProxies},
	{"other CNI configurations", otherConfigurations},
	{"connection tracking", connectionTracking},
	{"cgroup v2", cgroup2},
	{"eBPF", ebpf},
	{"BPF file system", bpfFS},
	{"clock", clock},
}

// Look makes all checks. A check that finds nothing wrong has one Finding that
// says so.
func Look(ctx context.Context, n Node) []Finding {
	var all []Finding
	agent := n.agent(ctx) // asked once
	n.Agent = func(context.Context) *Agent { return agent }
	for _, c := range checks {
		for _, f := range c.look(ctx, n) {
			f.Check = c.name
			all = append(all, f)
		}
	}
	return all
}

// Worst is the worst state of all.
func Worst(all []Finding) State {
	for _, state := range []State{Bad, Warning} {
		if slices.ContainsFunc(all, func(f Finding) bool { return f.State == state }) {
			return state
		}
	}
	return Well
}

func well(what string) []Finding { return []Finding{{State: Well, What: what}} }

// wellUnless are the findings, or that all is well.
func wellUnless(found []Finding, what string) []Finding {
	if len(found) == 0 {
		return well(what)
	}
	return found
}

// sysctl reads a setting, as in net/ipv4/ip_forward. "" if there is none.
func (n Node) sysctl(name string) string { return n.read("proc/sys/" + name) }

// read is the text of a file without white space around it, "" if there is none.
func (n Node) read(path string) string {
	text, err := fs.ReadFile(n.Root, path)
	if err != nil {
		return ""
	}
	return trim(text)
}

func (n Node) exists(path string) bool {
	_, err := fs.Stat(n.Root, path)
	return err == nil
}

// Host is the node on which the process runs, as far as its files say.
func Host(confDir string) Node {
	return Node{Root: os.DirFS("/"), ConfDir: confDir, Unkept: func() bool {
		var t unix.Timex
		_, err := unix.Adjtimex(&t)
		return err == nil && t.Status&unix.STA_UNSYNC != 0
	}}
}

// rights tells that some checks are left out, which would find nothing.
func rights(_ context.Context, n Node) []Finding {
	if !n.Unprivileged {
		return nil
	}
	return []Finding{{
		State: Warning, What: "this is not root: rules of packet filters, and what Fairlead's programs know, are not looked at",
		Why: "leftovers of other proxies, policies that drop, and ranges that clash are not found", Mend: "run as root",
	}}
}
