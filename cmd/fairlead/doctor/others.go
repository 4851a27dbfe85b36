package doctor

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// otherProxies looks for what another proxy programmed: of two that serve one
// Service each undoes what the other does.
func otherProxies(ctx context.Context, n Node) []Finding {
	if n.Unprivileged {
		return nil
	}
	const why = "flows to Services may go to endpoints that are gone: nobody keeps this up to date, or two programs do"
	var found []Finding
	other := func(what, mend string) {
		found = append(found, Finding{State: Bad, What: what, Why: why, Mend: mend})
	}
	for _, command := range n.iptables() {
		out, err := n.Output(ctx, command+"-save", "-t", "nat")
		if chains := strings.Count(string(out), "\n:KUBE-S"); err == nil && chains > 0 {
			other(fmt.Sprintf("%d chains of kube-proxy (%s)", chains, command), "fairlead cleanup --kube-proxy, once it does not run any more")
		}
	}
	for _, family := range []string{"ip", "ip6"} {
		if _, err := n.Output(ctx, "nft", "list", "table", family, "kube-proxy"); err == nil {
			other("nftables table "+family+" kube-proxy", "fairlead cleanup --kube-proxy, once it does not run any more")
		}
	}
	if _, err := netlink.LinkByName("kube-ipvs0"); err == nil {
		other("link kube-ipvs0 of kube-proxy in mode ipvs", "fairlead cleanup --kube-proxy, once it does not run any more")
	}
	if _, err := netlink.LinkByName("cilium_host"); err == nil {
		other("link cilium_host of Cilium, whose programs may lead flows to Services too", "kubeProxyReplacement: false in its configuration; if it does not run any more, cilium-dbg post-uninstall-cleanup")
	}
	if n.Strangers != nil {
		if names := n.Strangers(); len(names) > 0 {
			found = append(found, Finding{
				State: Warning, What: "programs of others decide on connections of sockets too: " + some(names), Why: why + " (what Cilium, Calico or systemd attaches may also let all pass)",
				Mend: "see whose they are (bpftool cgroup tree), and end what leads flows to Services besides 'fairlead proxy'",
			})
		}
	}
	return wellUnless(found, "nothing of theirs is here")
}

// iptables are the variants that may have rules here. That of legacy would make the
// tables that it is asked for, so that it is not asked where it has none.
func (n Node) iptables() []string {
	variants := []string{"iptables-nft", "ip6tables-nft"}
	for variant, tables := range map[string]string{"iptables-legacy": "ip_tables_names", "ip6tables-legacy": "ip6_tables_names"} {
		if n.read("proc/thread-self/net/"+tables) != "" {
			variants = append(variants, variant)
		}
	}
	slices.Sort(variants)
	return variants
}

// conflist is the file that fairlead node writes.
const conflist = "10-fairlead.conflist"

// otherConfigurations looks for one that the container runtime prefers to ours: it
// takes the first by name.
func otherConfigurations(_ context.Context, n Node) []Finding {
	names := n.configurations()
	switch i := slices.Index(names, conflist); {
	case i < 0:
		return nil // pods are made by somebody else
	case i == 0:
		return well("the runtime takes " + conflist)
	}
	return []Finding{{
		State: Bad, What: fmt.Sprintf("the runtime takes %s and not %s", names[0], conflist),
		Why:  "it takes the first by name, so that new pods are not made by Fairlead",
		Mend: "rm " + filepath.Join(n.ConfDir, names[0]),
	}}
}

// configurations are the files that the container runtime takes the first one of; none
// where there is no CNI.
func (n Node) configurations() []string {
	entries, _ := fs.ReadDir(n.Root, strings.TrimPrefix(n.ConfDir, "/"))
	var names []string
	for _, e := range entries {
		if slices.Contains([]string{".conf", ".conflist", ".json"}, path.Ext(e.Name())) {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names
}

// vxlanOverhead is what VXLAN over IPv4 adds to a packet, in bytes (RFC 7348: outer
// Ethernet, IPv4, UDP and VXLAN headers).
const vxlanOverhead = 50

// mtu looks for bridges of pods whose packets do not fit through the way to others.
func mtu(ctx context.Context, n Node) []Finding {
	links, err := netlink.LinkList()
	if err != nil {
		return []Finding{{State: Warning, What: "cannot list links: " + err.Error(), Why: "their MTU is not known", Mend: "run as root"}}
	}
	fits, of := narrowest(n.agent(ctx), links)
	var found []Finding
	for _, l := range links {
		if name := l.Attrs().Name; fits > 0 && ofPods(l, links) && l.Attrs().MTU > fits {
			found = append(found, Finding{
				State: Warning, What: fmt.Sprintf("MTU %d of %s, but %d of %s", l.Attrs().MTU, name, fits, of),
				Why:  "packets of pods that are too large for the way depend on path MTU discovery, or are cut up",
				Mend: fmt.Sprintf("set \"mtu\": %d in the network configuration (the node's link has %d for VXLAN besides) and make the pods anew", fits, vxlanOverhead),
			})
		}
	}
	return wellUnless(found, "what pods send fits")
}

// narrowest is the MTU that fits the way to all other nodes, and what has it: as
// 'fairlead node' says, or the tunnel, or the link by which all else leaves; 0 if none
// of these is there.
func narrowest(agent *Agent, links []netlink.Link) (mtu int, of string) {
	if agent != nil && agent.MTU > 0 {
		return agent.MTU, "the narrowest way to another node"
	}
	for _, l := range links {
		if l.Type() == "vxlan" && strings.HasPrefix(l.Attrs().Name, "fairlead-") {
			return l.Attrs().MTU, "the tunnel to other nodes"
		}
	}
	routes, _ := netlink.RouteList(nil, netlink.FAMILY_V4) // else the way is not known
	for _, r := range routes {
		i := slices.IndexFunc(links, func(l netlink.Link) bool { return l.Attrs().Index == r.LinkIndex })
		if i >= 0 && isDefault(r) {
			return links[i].Attrs().MTU, links[i].Attrs().Name + ", by which packets leave"
		}
	}
	return 0, ""
}

func isDefault(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}

// ofPods says whether a link is a bridge with a veth in it.
func ofPods(l netlink.Link, all []netlink.Link) bool {
	return l.Type() == "bridge" && slices.ContainsFunc(all, func(port netlink.Link) bool {
		return port.Type() == "veth" && port.Attrs().MasterIndex == l.Attrs().Index
	})
}
