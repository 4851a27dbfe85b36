package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/cni/node"
)

// agent asks 'fairlead node'; nil: nobody answers.
func (n Node) agent(ctx context.Context) *Agent {
	if n.Agent == nil {
		return nil
	}
	return n.Agent(ctx)
}

// clashes has the problems that are clashes of ranges, and how to mend them.
var clashes = map[node.Kind]string{
	node.OverlapsNode:     "give one of the nodes another range: kubectl delete node NAME and let it register again, or correct spec.podCIDRs where you assign them",
	node.OverlapsLink:     "give the pods another range (--cluster-cidr of kube-controller-manager), or renumber the link",
	node.OverlapsServices: "give the pods another range, or the Services (--service-cluster-ip-range of kube-apiserver)",
	node.ServicesOnLink:   "give the Services another range (--service-cluster-ip-range of kube-apiserver), or renumber the link",
	node.AddressTaken:     "give each node an address of its own: the kubelet's --node-ip",
}

// addressRanges looks for ranges of pods that clash with others: those of other nodes'
// pods, of links and of Services. 'fairlead node' knows all of them; without it the
// range of this node is compared with what this node knows.
func addressRanges(ctx context.Context, n Node) []Finding {
	const why = "an address that two have is reached for one of them only"
	if n.Unprivileged {
		return nil
	}
	problems, whole := []node.Problem(nil), "pods, nodes, links and Services have ranges of their own"
	if agent := n.agent(ctx); agent != nil {
		problems = agent.Problems
	} else {
		own := n.podRanges()
		if len(own) == 0 {
			return nil // pods are made by somebody else
		}
		var err error
		if problems, err = n.clashesOf(ctx, own); err != nil {
			return []Finding{{State: Warning, What: "not known: " + err.Error(), Why: why, Mend: "run as root"}}
		}
		whole = fmt.Sprintf("those of this node's pods clash with nothing that is known here (%s)", joined(own))
	}
	var found []Finding
	for _, p := range problems {
		if mend, ok := clashes[p.Kind]; ok {
			found = append(found, Finding{State: severity(p.Kind), What: p.String(), Why: why, Mend: mend})
		}
	}
	return wellUnless(found, whole)
}

// clashesOf has 'fairlead node's own plan judge the ranges of this node.
func (n Node) clashesOf(ctx context.Context, own []netip.Prefix) ([]node.Problem, error) {
	kernel, err := node.Open()
	if err != nil {
		return nil, err
	}
	defer kernel.Close()
	underlay, err := kernel.Underlay()
	if err != nil {
		return nil, err
	}
	var options node.Options
	if n.Virtual != nil {
		options.Services = n.Virtual(ctx)
	}
	self := node.Member{Name: "this", PodCIDRs: own, Addrs: slices.Collect(maps.Keys(underlay.Addrs))} // any of its own
	plan := node.Make(self, nil, underlay, options)
	// A virtual IP on a link may be meant so: external ones are.
	return slices.DeleteFunc(plan.Problems, func(p node.Problem) bool { return p.Kind == node.ServicesOnLink }), nil
}

// podRanges are the ranges, one of each family, of the network configuration that the
// container runtime takes, unless its pods are on a link of the node.
func (n Node) podRanges() []netip.Prefix {
	dir := strings.TrimPrefix(n.ConfDir, "/")
	names := n.configurations()
	if len(names) == 0 {
		return nil
	}
	text, err := fs.ReadFile(n.Root, path.Join(dir, names[0]))
	if err != nil {
		return nil
	}
	type ipam struct {
		Subnet string
		Ranges [][]struct{ Subnet string }
	}
	type plugin struct {
		Type, Mode string
		IPAM       ipam
	}
	var config struct {
		plugin
		Plugins []plugin
	}
	if json.Unmarshal(text, &config) != nil {
		return nil // the runtime will say so
	}
	var own []netip.Prefix
	for _, p := range append(config.Plugins, config.plugin) {
		if slices.Contains([]string{"macvlan", "ipvlan"}, p.Type) || p.Mode == "macvlan" {
			continue
		}
		subnets := []string{p.IPAM.Subnet}
		for _, set := range p.IPAM.Ranges {
			for _, r := range set {
				subnets = append(subnets, r.Subnet)
			}
		}
		for _, s := range subnets {
			if prefix, err := netip.ParsePrefix(s); err == nil {
				own = append(own, prefix.Masked())
			}
		}
	}
	return own
}

// otherNodes is what else keeps pods of other nodes from being reached.
func otherNodes(ctx context.Context, n Node) []Finding {
	agent := n.agent(ctx)
	if agent == nil {
		return nil // nodes are connected by somebody else
	}
	var found []Finding
	for _, p := range agent.Problems {
		if _, clash := clashes[p.Kind]; clash {
			continue
		}
		mend, ok := mends[p.Kind]
		if !ok {
			mend = "see the log of 'fairlead node'"
		}
		found = append(found, Finding{State: severity(p.Kind), What: p.String(), Why: "pods that it concerns are not reached, or cannot be made", Mend: mend})
	}
	return wellUnless(found, "their pods are reached")
}

// severity: some problems leave a way.
func severity(kind node.Kind) State {
	if kind == node.NoPodCIDROfBoth || kind == node.ServicesOnLink {
		return Warning
	}
	return Bad
}

// mends has how to mend the problems that are none of ranges.
var mends = map[node.Kind]string{
	node.NoPodCIDR:       "let kube-controller-manager give ranges (--allocate-node-cidrs)",
	node.NoPodCIDROfBoth: "let kube-controller-manager give ranges of both families (--cluster-cidr with two), and make the node anew",
	node.NoAddress:       "look at the kubelet's --node-ip, and at ip addr",
	node.NotOnLink:       "fairlead node --routing auto",
	node.IPv6Disabled:    "sysctl -w net.ipv6.conf.all.disable_ipv6=0",
	node.PortTaken:       "end the other program (ss -ulpn), or give all nodes another --vxlan-port",
}

// forwardPolicy looks for filters that drop what no rule lets through.
func forwardPolicy(ctx context.Context, n Node) []Finding {
	if n.Unprivileged {
		return nil
	}
	var found []Finding
	drops := func(what, mend string) {
		found = append(found, Finding{
			State: Warning, What: what + " drops what no rule of it lets through",
			Why:  "'fairlead proxy' lets flows to Services through; packets between pods of two nodes, and from pods to the outside, need a rule",
			Mend: mend,
		})
	}
	for _, command := range n.iptables() {
		out, err := n.Output(ctx, command+"-save", "-t", "filter")
		if err == nil && strings.Contains(string(out), "\n:FORWARD DROP") {
			drops("chain FORWARD of "+command, fmt.Sprintf("%s -P FORWARD ACCEPT, or a rule that accepts from and to the pods' range", command))
		}
	}
	out, err := n.Output(ctx, "nft", "list", "chains")
	if err != nil {
		return wellUnless(found, "packets that are passed on are dropped by no policy")
	}
	table, chain := "", ""
	for line := range strings.Lines(string(out)) {
		words := strings.Fields(line)
		switch {
		case len(words) > 2 && words[0] == "table":
			table = words[1] + " " + words[2]
		case len(words) > 1 && words[0] == "chain":
			chain = words[1]
		case strings.Contains(line, "hook forward") && strings.Contains(line, "policy drop") && chain != "FORWARD":
			drops(fmt.Sprintf("chain %s of nftables table %s", chain, table), fmt.Sprintf("nft insert rule %s %s ip saddr PODS accept, and the same for ip daddr", table, chain))
		}
	}
	return wellUnless(found, "packets that are passed on are dropped by no policy")
}

func joined(prefixes []netip.Prefix) string {
	var out []string
	for _, p := range prefixes {
		out = append(out, p.String())
	}
	return strings.Join(out, ", ")
}
