package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/fairlead/fairlead/proxy/conntrack"
)

func trim(text []byte) string { return strings.TrimSpace(string(text)) }

// mendSysctl is the command that sets a setting.
func mendSysctl(name, value string) string {
	return fmt.Sprintf("sysctl -w %s=%s", strings.ReplaceAll(name, "/", "."), value)
}

func forwarding(_ context.Context, n Node) []Finding {
	var found []Finding
	for _, name := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if n.sysctl(name) == "0" {
			found = append(found, Finding{
				State: Bad, What: name + " is 0",
				Why:  "the kernel passes no packets on between pods, other nodes and the outside",
				Mend: mendSysctl(name, "1"),
			})
		}
	}
	return wellUnless(found, "packets are passed on")
}

// reversePath looks for the strict filter (RFC 3704). The kernel takes the greater
// of the value of a link and that of all.
func reversePath(_ context.Context, n Node) []Finding {
	const conf = "net/ipv4/conf"
	var strict []string
	entries, _ := fs.ReadDir(n.Root, "proc/sys/"+conf)
	all := n.sysctl(conf + "/all/rp_filter")
	for _, e := range entries {
		name := e.Name()
		if name == "all" || name == "default" || name == "lo" {
			continue
		}
		if max(all, n.sysctl(conf+"/"+name+"/rp_filter")) == "1" {
			strict = append(strict, name)
		}
	}
	if len(strict) == 0 {
		return well("no link drops packets for the way they came")
	}
	return []Finding{{
		State: Warning, What: "rp_filter is strict (1) on " + some(strict),
		Why:  "packets are dropped that come in by another link than the one by which they would be answered: of macvlan pods, of tunnels, of nodes with several links",
		Mend: "sysctl -w net.ipv4.conf.all.rp_filter=2 (loose; or 0, and in /etc/sysctl.d to last)",
	}}
}

// bridgeNetfilter matters for pods behind one bridge, of which one answers the
// other directly: without it the answer does not pass through connection tracking,
// which alone knows the virtual IP.
func bridgeNetfilter(_ context.Context, n Node) []Finding {
	const why = "of two pods behind one bridge neither reaches the other by a virtual IP (in mode iptables)"
	if !n.exists("proc/sys/net/bridge") {
		return []Finding{{
			State: Warning, What: "the kernel module br_netfilter is not loaded", Why: why,
			Mend: "modprobe br_netfilter; echo br_netfilter >/etc/modules-load.d/fairlead.conf",
		}}
	}
	var found []Finding
	for _, name := range []string{"net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"} {
		if n.sysctl(name) == "0" {
			found = append(found, Finding{State: Bad, What: name + " is 0", Why: why, Mend: mendSysctl(name, "1")})
		}
	}
	return wellUnless(found, "what bridges pass on is tracked")
}

// full is how much of the table of connections may be in use.
const full = 0.8

func connectionTracking(_ context.Context, n Node) []Finding {
	count, err := strconv.Atoi(n.sysctl("net/netfilter/nf_conntrack_count"))
	limit, err2 := strconv.Atoi(n.sysctl("net/netfilter/nf_conntrack_max"))
	if err != nil || err2 != nil || limit == 0 {
		return nil // not in use
	}
	state := fmt.Sprintf("%d of %d connections", count, limit)
	dropped := conntrack.Dropped(n.read("proc/self/net/stat/nf_conntrack"))
	if dropped > 0 {
		state += fmt.Sprintf(", and %d packets dropped that could not be tracked", dropped)
	}
	if dropped == 0 && float64(count) < full*float64(limit) {
		return well(state)
	}
	return []Finding{{
		State: Warning, What: state,
		Why:  "when the table is full, new connections are dropped",
		Mend: mendSysctl("net/netfilter/nf_conntrack_max", strconv.Itoa(2*limit)) + " (or 'fairlead proxy --conntrack-min')",
	}}
}

func cgroup2(_ context.Context, n Node) []Finding {
	if mounted(n.read("proc/self/mounts"), "cgroup2") {
		return well("mounted")
	}
	return []Finding{{
		State: Warning, What: "it is not mounted",
		Why:  "mode ebpf attaches its programs for sockets there (mode iptables does without)",
		Mend: "mount -t cgroup2 none /sys/fs/cgroup/unified (systemd does so at boot with systemd.unified_cgroup_hierarchy=1)",
	}}
}

// ebpf says which mode 'fairlead proxy --mode auto' takes, by trying what it tries.
func ebpf(_ context.Context, n Node) []Finding {
	if err := n.TryEBPF(); err != nil {
		mend := "a kernel from 6.1 on, built with CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF and CONFIG_NET_CLS_BPF"
		if errors.Is(err, fs.ErrPermission) {
			mend = "run as root, or with the capabilities BPF, PERFMON and NET_ADMIN"
		}
		return []Finding{{
			State: Warning, What: "--mode auto takes iptables: " + err.Error(),
			Why: "mode ebpf does not work (mode iptables does)", Mend: mend,
		}}
	}
	if err := n.EndSockets(); err != nil {
		return []Finding{{
			State: Warning, What: "--mode auto takes ebpf, but " + err.Error(),
			Why:  "a UDP socket that is connected to an endpoint which is gone goes on sending there (mode ebpf)",
			Mend: "use a kernel that is built with CONFIG_INET_DIAG_DESTROY",
		}}
	}
	return well("--mode auto takes ebpf")
}

func bpfFS(_ context.Context, n Node) []Finding {
	if mounted(n.read("proc/self/mounts"), "bpf") {
		return well("mounted")
	}
	return []Finding{{
		State: Warning, What: "it is not mounted",
		Why:  "mode ebpf mounts one itself, which a proxy in a container loses when it ends",
		Mend: "mount -t bpf bpf /sys/fs/bpf",
	}}
}

// mounted looks for a file system type in /proc/mounts.
func mounted(mounts, fstype string) bool {
	for line := range strings.Lines(mounts) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[2] == fstype {
			return true
		}
	}
	return false
}

// clock looks whether something keeps the clock right: certificates and leases of
// the API depend on it.
func clock(_ context.Context, n Node) []Finding {
	if !n.Unkept() {
		return well("kept right")
	}
	return []Finding{{
		State: Warning, What: "the kernel says that nothing keeps the clock right",
		Why:  "certificates of the API server are refused when it runs away",
		Mend: "install and start chrony or systemd-timesyncd",
	}}
}

// some names a few and counts the rest.
func some(names []string) string {
	const few = 4
	if len(names) <= few {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:few], ", "), len(names)-few)
}
