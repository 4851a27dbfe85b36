package plugin

import (
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"

	"github.com/fairlead/fairlead/e2e/echo"
	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/e2e/traffic"
)

// The steps of docs/migration.md, from the reference plugins to Fairlead and back, while
// pods that each of them has made talk with each other and with outside: no request fails,
// of 1,000 datagrams a second none is lost, no address is given twice, each deletes the
// pods of the other, and nothing is left.
func TestMigration(t *testing.T) {
	tests := map[string]struct {
		site      func(*testing.T) *site
		reference object // configuration
	}{
		"bridge":  {bridged, object{"type": "bridge", "isDefaultGateway": true, "ipMasq": true, "hairpinMode": true}},
		"macvlan": {onTheWire, object{"type": "macvlan", "master": "eth0", "mode": "bridge"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) { newMigration(t, tt.site(t), tt.reference).run(t) })
	}
}

// migration is a node that changes its plugins. There are ten addresses of each family.
type migration struct {
	*site
	theirs, ours *libcni.NetworkConfigList
	flags        []string // of 'fairlead ipam'
	hostLocal    string   // its directory
	pods         map[string]*migrant
	loads        []*traffic.Traffic
	streams      []*traffic.Stream
}

// migrant is a pod with its addresses.
type migrant struct {
	pod
	addrs []netip.Addr
}

func newMigration(t *testing.T, s *site, reference object) *migration {
	t.Helper()
	m := &migration{site: s, hostLocal: t.TempDir(), pods: map[string]*migrant{}}
	store := t.TempDir()
	m.flags = []string{"--network", "net", "--data-dir", store}
	network := func(kind, ipam, dir string) *libcni.NetworkConfigList {
		conf := object{}
		for key, value := range reference {
			conf[key] = value
		}
		conf["type"] = kind
		conf["ipam"] = object{"type": ipam, "dataDir": dir, "ranges": [][]object{
			{{"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.10", "rangeEnd": "10.9.0.19"}}, {{"subnet": "fd09::/64", "rangeStart": "fd09::10", "rangeEnd": "fd09::19"}},
		}}
		return newList(t, conf)
	}
	m.theirs = network(reference["type"].(string), "host-local", m.hostLocal)
	m.ours = network("fairlead-cni", "fairlead-ipam", store)
	echo.ServeT(t, s.outside, "outside", endpoints(s.others)...)
	return m
}

func (m *migration) run(t *testing.T) {
	for i := range 4 {
		m.add(t, m.theirs, fmt.Sprint("old-", i))
	}
	m.talk(t, "old-0", "old-1")
	m.stream(t, "old-0", "old-1")

	m.fairlead(t, "import-host-local", "--from", m.hostLocal, "--dry-run")
	m.fairlead(t, "import-host-local", "--from", m.hostLocal)
	for i := range 6 {
		m.add(t, m.ours, fmt.Sprint("new-", i))
	}
	m.isFull(t, m.ours)
	m.talk(t, "new-0", "old-1")
	m.remove(t, m.ours, "old-2", "old-3")
	m.add(t, m.ours, "new-6")
	m.add(t, m.ours, "new-7")
	m.isFull(t, m.ours)

	m.fairlead(t, "export-host-local", "--to", m.hostLocal, "--dry-run")
	m.fairlead(t, "export-host-local", "--to", m.hostLocal)
	m.isFull(t, m.theirs)
	m.remove(t, m.theirs, "new-6", "new-7")
	m.add(t, m.theirs, "back-0")
	m.add(t, m.theirs, "back-1")
	m.isFull(t, m.theirs)
	m.talk(t, "back-0", "new-0")
	for _, load := range m.loads {
		load.End(t)
	}
	for _, s := range m.streams {
		t.Log(s.End(t), "datagrams")
	}

	for id := range m.pods {
		m.remove(t, m.theirs, id)
	}
	if left, _ := filepath.Glob(filepath.Join(m.hostLocal, "net", "[0-9f]*[0-9]")); len(left) > 0 {
		t.Errorf("host-local holds %q", left)
	}
	if links := m.node.ns.RunT(t, "ip", "-brief", "link"); strings.Contains(links, "veth") {
		t.Errorf("ports are left:\n%s", links)
	}
	if rules := m.node.ns.RunT(t, "sh", "-c", "iptables-save; ip6tables-save"); strings.Contains(rules, "CNI-") {
		t.Errorf("rules are left:\n%s", rules)
	}
}

// add makes a pod, whose addresses no other one has, with a server.
func (m *migration) add(t *testing.T, list *libcni.NetworkConfigList, id string) {
	t.Helper()
	p := &migrant{pod: newPod(t, id)}
	p.ns.RunT(t, "ip", "link", "set", "lo", "up")
	for _, ip := range m.node.add(t, list, p.pod).IPs {
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		p.addrs = append(p.addrs, addr.Unmap())
	}
	for other, o := range m.pods {
		if slices.ContainsFunc(o.addrs, func(a netip.Addr) bool { return slices.Contains(p.addrs, a) }) {
			t.Errorf("%s has of %v one that %s has", id, p.addrs, other)
		}
	}
	m.pods[id] = p
	echo.ServeT(t, p.ns, id, endpoints(p.addrs)...)
}

// isFull checks that another pod gets no address.
func (m *migration) isFull(t *testing.T, list *libcni.NetworkConfigList) {
	t.Helper()
	p := newPod(t, "too-many")
	if got, err := m.node.cni.AddNetworkList(t.Context(), list, p.conf); err == nil {
		t.Errorf("a pod too many gets %v", got)
	}
	m.node.del(t, list, p) // as runtimes do after a failure: the reference leaves half a pod
}

func (m *migration) remove(t *testing.T, list *libcni.NetworkConfigList, ids ...string) {
	t.Helper()
	for _, id := range ids {
		m.node.del(t, list, m.pods[id].pod)
		delete(m.pods, id)
	}
}

// fairlead runs a command of 'fairlead ipam'.
func (m *migration) fairlead(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), filepath.Join(programs.Dir(t), "fairlead"), slices.Concat([]string{"ipam"}, args, m.flags)...).CombinedOutput()
	if err != nil {
		t.Fatalf("fairlead ipam %v: %v\n%s", args, err, out)
	}
}

// talk has two pods and outside ask each other.
func (m *migration) talk(t *testing.T, from, to string) {
	t.Helper()
	a, b := m.pods[from], m.pods[to]
	m.loads = append(m.loads, traffic.Start(t,
		traffic.Source{Name: from, NS: a.ns, To: endpoints(slices.Concat(b.addrs, m.others))},
		traffic.Source{Name: "outside", NS: m.outside, To: endpoints(a.addrs)},
	))
}

// stream has two pods and outside send to each other all the time.
func (m *migration) stream(t *testing.T, from, to string) {
	t.Helper()
	a, b := m.pods[from], m.pods[to]
	stream := func(from, to *netns.NS, addr netip.Addr) {
		m.streams = append(m.streams, traffic.NewStream(t, from, to, netip.AddrPortFrom(addr, 9999)))
	}
	for i := range a.addrs {
		stream(a.ns, b.ns, b.addrs[i])
		stream(a.ns, m.outside, m.others[i])
	}
	stream(m.outside, a.ns, a.addrs[0])
}

// endpoints are where servers listen.
func endpoints(addrs []netip.Addr) []echo.Endpoint {
	var at []echo.Endpoint
	for _, a := range addrs {
		at = append(at, echo.Endpoint{Network: "tcp", Addr: netip.AddrPortFrom(a, 8080)})
		if a.Is4() {
			at = append(at, echo.Endpoint{Network: "udp", Addr: netip.AddrPortFrom(a, 8080)})
		}
	}
	return at
}
