package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/fairlead/fairlead/cni/node"
	"github.com/fairlead/fairlead/e2e/netns"
)

// wellNode has the files of a node with which all is well.
func wellNode() fstest.MapFS {
	root := fstest.MapFS{}
	for path, text := range map[string]string{
		"proc/sys/net/ipv4/ip_forward":                 "1\n",
		"proc/sys/net/ipv6/conf/all/forwarding":        "1\n",
		"proc/sys/net/ipv4/conf/all/rp_filter":         "0\n",
		"proc/sys/net/ipv4/conf/eth0/rp_filter":        "2\n",
		"proc/sys/net/bridge/bridge-nf-call-iptables":  "1\n",
		"proc/sys/net/bridge/bridge-nf-call-ip6tables": "1\n",
		"proc/sys/net/netfilter/nf_conntrack_count":    "10\n",
		"proc/sys/net/netfilter/nf_conntrack_max":      "100\n",
		"proc/self/mounts":                             "none /sys/fs/cgroup cgroup2 rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\n",
		"proc/thread-self/net/ip_tables_names":         "nat\n",
		"etc/cni/net.d/10-fairlead.conflist":           "{}",
		"etc/cni/net.d/50-other.conflist":              "{}",
		"etc/cni/net.d/README":                         "",
		"proc/sys/net/ipv4/conf/default/rp_filter":     "1\n",
		"proc/sys/net/ipv4/conf/lo/rp_filter":          "1\n",
	} {
		root[path] = &fstest.MapFile{Data: []byte(text)}
	}
	return root
}

// Every trouble is found, and is the only one that is.
func TestLook(t *testing.T) {
	tests := map[string]struct {
		set          map[string]string // file → text; "-" removes it
		says         map[string]string // command line → output
		strangers    []string
		unprivileged bool
		unkept       bool // the clock
		// What trying says of eBPF, and of ending sockets.
		ebpf, sockets error
		want          []string // check and state, with a part of what is said
	}{
		"all is well":             {},
		"nobody keeps the clock":  {unkept: true, want: []string{"clock warning nothing keeps the clock right"}},
		"no forwarding":           {set: map[string]string{"proc/sys/net/ipv4/ip_forward": "0\n"}, want: []string{"forwarding bad net/ipv4/ip_forward is 0"}},
		"no forwarding, IPv6":     {set: map[string]string{"proc/sys/net/ipv6/conf/all/forwarding": "0\n"}, want: []string{"forwarding bad net/ipv6/conf/all/forwarding is 0"}},
		"no IPv6":                 {set: map[string]string{"proc/sys/net/ipv6/conf/all/forwarding": "-"}},
		"strict filter":           {set: map[string]string{"proc/sys/net/ipv4/conf/eth0/rp_filter": "1\n"}, want: []string{"reverse path filter warning strict (1) on eth0"}},
		"loose for all":           {set: map[string]string{"proc/sys/net/ipv4/conf/eth0/rp_filter": "1\n", "proc/sys/net/ipv4/conf/all/rp_filter": "2\n"}},
		"no br_netfilter":         {set: map[string]string{"proc/sys/net/bridge/bridge-nf-call-iptables": "-", "proc/sys/net/bridge/bridge-nf-call-ip6tables": "-"}, want: []string{"bridge netfilter warning br_netfilter is not loaded"}},
		"bridges are not seen":    {set: map[string]string{"proc/sys/net/bridge/bridge-nf-call-iptables": "0\n"}, want: []string{"bridge netfilter bad bridge-nf-call-iptables is 0"}},
		"nearly full":             {set: map[string]string{"proc/sys/net/netfilter/nf_conntrack_count": "80\n"}, want: []string{"connection tracking warning 80 of 100"}},
		"full":                    {set: map[string]string{"proc/sys/net/netfilter/nf_conntrack_count": "100\n", "proc/self/net/stat/nf_conntrack": "entries drop\n64 ff\n64 1\n"}, want: []string{"connection tracking warning 100 of 100 connections, and 256 packets dropped"}},
		"eBPF does not work":      {ebpf: errors.New("no cgroup v2"), want: []string{"eBPF warning --mode auto takes iptables: no cgroup v2"}},
		"sockets cannot be ended": {sockets: errors.New("the kernel cannot"), want: []string{"eBPF warning --mode auto takes ebpf, but the kernel cannot"}},
		"not root":                {unprivileged: true, says: map[string]string{"iptables-nft-save -t nat": "*nat\n:KUBE-SERVICES - [0:0]\nCOMMIT\n"}, want: []string{"rights warning this is not root"}},
		"it may not":              {ebpf: fmt.Errorf("load: %w", fs.ErrPermission), want: []string{"eBPF warning permission denied"}},
		"no BPF file system":      {set: map[string]string{"proc/self/mounts": "none /sys/fs/cgroup cgroup2 rw 0 0\n"}, want: []string{"BPF file system warning it is not mounted"}},
		"no cgroup v2":            {set: map[string]string{"proc/self/mounts": "bpf /sys/fs/bpf bpf rw 0 0\ncgroup /sys/fs/cgroup cgroup rw 0 0\n"}, want: []string{"cgroup v2 warning it is not mounted"}},
		"some were dropped":       {set: map[string]string{"proc/self/net/stat/nf_conntrack": "entries drop\na ff\na 1\n"}, want: []string{"connection tracking warning 10 of 100 connections, and 256 packets dropped"}},
		"drop policy": {says: map[string]string{"iptables-nft-save -t filter": "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\nCOMMIT\n"},
			want: []string{"forward policy warning chain FORWARD of iptables-nft drops"}},
		"drop policy of nft": {says: map[string]string{"nft list chains": "table inet wall {\n\tchain in {\n\t\ttype filter hook input priority filter; policy drop;\n\t}\n\tchain through {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n}\n"},
			want: []string{"forward policy warning chain through of nftables table inet wall drops"}},
		"another configuration":  {set: map[string]string{"etc/cni/net.d/05-cilium.conflist": "{}"}, want: []string{"other CNI configurations bad takes 05-cilium.conflist"}},
		"not our pods":           {set: map[string]string{"etc/cni/net.d/10-fairlead.conflist": "-"}},
		"kube-proxy's rules":     {says: map[string]string{"iptables-nft-save -t nat": "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-X - [0:0]\nCOMMIT\n"}, want: []string{"other proxies bad 2 chains of kube-proxy (iptables-nft)"}},
		"kube-proxy's old rules": {says: map[string]string{"iptables-legacy-save -t nat": "*nat\n:KUBE-SERVICES - [0:0]\nCOMMIT\n"}, want: []string{"other proxies bad 1 chains of kube-proxy (iptables-legacy)"}},
		"kube-proxy's nft table": {says: map[string]string{"nft list table ip kube-proxy": "table ip kube-proxy {}\n"}, want: []string{"other proxies bad nftables table ip kube-proxy"}},
		"programs of others":     {strangers: []string{"cil_sock4_connect"}, want: []string{"other proxies warning connections of sockets too: cil_sock4_connect"}},
		"only kubelet's chains":  {says: map[string]string{"iptables-nft-save -t nat": "*nat\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			root := wellNode()
			for path, text := range tt.set {
				if delete(root, path); text != "-" {
					root[path] = &fstest.MapFile{Data: []byte(text)}
				}
			}
			found := inEmptyNamespace(t, Node{Root: root, Unprivileged: tt.unprivileged, ConfDir: "/etc/cni/net.d", Unkept: func() bool { return tt.unkept }, Output: says(tt.says),
				Strangers: func() []string { return tt.strangers }, TryEBPF: func() error { return tt.ebpf }, EndSockets: func() error { return tt.sockets }})
			compare(t, tt.want, found)
		})
	}
}

// inEmptyNamespace looks where there are no links but lo.
func inEmptyNamespace(t *testing.T, n Node) []Finding {
	t.Helper()
	var found []Finding
	err := netns.NewT(t).Do(func() error {
		found = Look(t.Context(), n)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(found, func(f Finding) bool { return f.State == Well })
}

func says(outputs map[string]string) func(context.Context, string, ...string) ([]byte, error) {
	return func(_ context.Context, name string, args ...string) ([]byte, error) {
		line := strings.Join(append([]string{name}, args...), " ")
		if text, ok := outputs[line]; ok {
			return []byte(text), nil
		}
		return nil, errors.New("no such table")
	}
}

// compare checks that each finding is one that is wanted, in this order, and can
// be acted on.
func compare(t *testing.T, want []string, found []Finding) {
	t.Helper()
	if len(found) != len(want) {
		t.Fatalf("found %+v, want %q", found, want)
	}
	for i, f := range found {
		prefix := f.Check + " " + string(f.State) + " "
		what, ok := strings.CutPrefix(want[i], prefix)
		if !ok || !strings.Contains(f.What, what) || f.Why == "" || f.Mend == "" {
			t.Errorf("found %+v, want %q", f, want[i])
		}
	}
}

// A bridge of pods whose packets are larger than the tunnel's.
func TestMTU(t *testing.T) {
	ns := netns.NewT(t)
	for _, command := range []string{
		"link add fairlead-vx4 mtu 1450 type vxlan id 1 dstport 4789",
		"link add cni0 type bridge", "link add docker0 type bridge",
		"link add pod type veth peer name pod0", "link set pod master cni0",
	} {
		ns.RunT(t, "ip", strings.Fields(command)...)
	}
	look := func() (found []Finding) {
		if err := ns.Do(func() error { found = mtu(t.Context(), Node{}); return nil }); err != nil {
			t.Fatal(err)
		}
		return found
	}
	if found := look(); len(found) != 1 || found[0].State != Warning || !strings.Contains(found[0].What, "MTU 1500 of cni0, but 1450") {
		t.Errorf("found %+v", found)
	}
	ns.RunT(t, "ip", "link", "set", "cni0", "mtu", "1450")
	if found := look(); Worst(found) != Well {
		t.Errorf("found %+v", found)
	}
}

func TestWorst(t *testing.T) {
	for want, states := range map[State][]State{Well: {Well}, Warning: {Well, Warning}, Bad: {Bad, Warning}} {
		var found []Finding
		for _, s := range states {
			found = append(found, Finding{State: s})
		}
		if got := Worst(found); got != want {
			t.Errorf("worst of %v: %s", states, got)
		}
	}
}

// Ranges that clash are found: as 'fairlead node' knows them, or without it as far as
// this node does.
func TestAddressRanges(t *testing.T) {
	ns := netns.NewT(t)
	ns.RunT(t, "sh", "-ec", `
		ip link add eth0 type bridge
		ip addr add 10.244.0.9/16 dev eth0
		ip addr add fd00::9/64 dev eth0 nodad
		ip link set eth0 up`)
	conflist := func(text string) fs.FS {
		return fstest.MapFS{"etc/cni/net.d/10-pods.conflist": &fstest.MapFile{Data: []byte(text)}}
	}
	agent := func(kinds ...node.Kind) func(context.Context) *Agent {
		a := &Agent{}
		for _, kind := range kinds {
			a.Problems = append(a.Problems, node.Problem{Kind: kind, Member: "n2", Text: "it is so"})
		}
		return func(context.Context) *Agent { return a }
	}
	virtual := func(context.Context) []netip.Prefix {
		return []netip.Prefix{netip.MustParsePrefix("10.88.0.7/32"), netip.MustParsePrefix("10.244.0.7/32")}
	}
	tests := map[string]struct {
		node Node
		want []string
	}{
		"nobody's pods": {Node{Root: fstest.MapFS{}}, nil},
		"on a link": {Node{Root: conflist(`{"plugins": [{"type": "fairlead-cni", "ipam": {"ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:1::/64"}]]}}]}`)},
			[]string{"address ranges bad node this: its pod CIDR 10.244.1.0/24 overlaps 10.244.0.0/16, which is on a link of this node"}},
		"among Services": {Node{Root: conflist(`{"type": "bridge", "ipam": {"subnet": "10.88.0.0/24"}}`), Virtual: virtual},
			[]string{"address ranges bad node this: its pod CIDR 10.88.0.0/24 overlaps 10.88.0.7/32, in which Services are"}},
		"macvlan": {Node{Root: conflist(`{"plugins": [{"type": "fairlead-cni", "mode": "macvlan", "ipam": {"subnet": "10.244.0.0/16"}}]}`)}, nil},
		"fairlead node is asked": {Node{Root: fstest.MapFS{}, Agent: agent(node.OverlapsNode, node.ServicesOnLink, node.PortTaken, "Another")},
			[]string{"address ranges bad node n2: it is so", "address ranges warning node n2: it is so", "other nodes bad node n2: it is so", "other nodes bad node n2: it is so"}},
		"all is well": {Node{Root: fstest.MapFS{}, Agent: agent()}, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tt.node.ConfDir = "/etc/cni/net.d"
			var found []Finding
			err := ns.Do(func() error {
				for _, c := range checks {
					if c.name == "address ranges" || c.name == "other nodes" {
						for _, f := range c.look(t.Context(), tt.node) {
							f.Check = c.name
							found = append(found, f)
						}
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			compare(t, tt.want, slices.DeleteFunc(found, func(f Finding) bool { return f.State == Well }))
		})
	}
}
