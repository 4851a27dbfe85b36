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
	const why = "flows to Services may go to endpoints that are gone: nobody keeps this up to date, or two programs do"
	var found []Finding
	other := func(what, mend string) {
		found = append(found, Finding{State: Bad, What: what, Why: why, Mend: mend})
	}
	for _, command := range []string{"iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"} {
		if strings.Contains(command, "legacy") && n.read("proc/thread-self/net/ip_tables_names")+n.read("proc/thread-self/net/ip6_tables_names") == "" {
			continue // the command would make the tables that it looks for
		}
		out, err := n.Output(ctx, command, "-t", "nat")
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
	return wellUnless(found, "nothing of theirs is here")
}

// conflist is the file that fairlead node writes.
const conflist = "10-fairlead.conflist"

// otherConfigurations looks for one that the container runtime prefers to ours: it
// takes the first by name.
func otherConfigurations(_ context.Context, n Node) []Finding {
	entries, err := fs.ReadDir(n.Root, strings.TrimPrefix(n.ConfDir, "/"))
	if err != nil {
		return nil // no CNI on this node
	}
	var names []string
	for _, e := range entries {
		if slices.Contains([]string{".conf", ".conflist", ".json"}, path.Ext(e.Name())) {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
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

// vxlanOverhead is what VXLAN over IPv4 adds to a packet, in bytes (RFC 7348: outer
// Ethernet, IPv4, UDP and VXLAN headers).
const vxlanOverhead = 50

// mtu looks for bridges of pods whose packets do not fit through the tunnel.
func mtu(context.Context, Node) []Finding {
	links, err := netlink.LinkList()
	if err != nil {
		return []Finding{{State: Warning, What: "cannot list links: " + err.Error(), Why: "their MTU is not known", Mend: "run as root"}}
	}
	tunnel := 0
	for _, l := range links {
		if l.Type() == "vxlan" && strings.HasPrefix(l.Attrs().Name, "fairlead-") {
			tunnel = l.Attrs().MTU
		}
	}
	var found []Finding
	for _, l := range links {
		if name := l.Attrs().Name; tunnel > 0 && ofPods(l, links) && l.Attrs().MTU > tunnel {
			found = append(found, Finding{
				State: Warning, What: fmt.Sprintf("MTU %d of %s, but %d of the tunnel to other nodes", l.Attrs().MTU, name, tunnel),
				Why:  "packets of pods that are too large for the tunnel depend on path MTU discovery, or are cut up",
				Mend: fmt.Sprintf("set \"mtu\": %d in the network configuration (%d less than the node's link) and make the pods anew", tunnel, vxlanOverhead),
			})
		}
	}
	return wellUnless(found, "what pods send fits")
}

// ofPods says whether a link is a bridge with a veth in it.
func ofPods(l netlink.Link, all []netlink.Link) bool {
	return l.Type() == "bridge" && slices.ContainsFunc(all, func(port netlink.Link) bool {
		return port.Type() == "veth" && port.Attrs().MasterIndex == l.Attrs().Index
	})
}
