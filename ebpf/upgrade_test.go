package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/e2e/cgroup"
	"github.com/fairlead/fairlead/e2e/echo"
	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/e2e/traffic"
)

// What programs of different versions tell each other is laid out as it was in the
// first: those that are in the field know no other.
func TestToldLayout(t *testing.T) {
	end := func(b byte) bpfEndpoint {
		e := bpfEndpoint{Port: binary.NativeEndian.Uint16([]byte{b, b})}
		for i := range e.Addr.W {
			e.Addr.W[i] = uint32(b) * 0x01010101
		}
		return e
	}
	tuple := bpfTuple{Src: end(1), Dst: end(2)}
	told, err := binary.Append(nil, binary.LittleEndian, struct {
		Key bpfToldKey
		Row bpfTold
	}{
		bpfToldKey{Tuple: tuple, Protocol: 3},
		bpfTold{To: tuple, Tag: 4, Seen: 5, Direction: 6, Stage: 7, EndedBy: 8, Class: 9, Check: 10},
	})
	if err != nil {
		t.Fatal(err)
	}
	const one, two = "01010101010101010101010101010101" + "0101" + "0000", "02020202020202020202020202020202" + "0202" + "0000"
	const want = one + two + "03000000" + one + two + "04000000" + "05000000" + "06070809" + "0a000000"
	if diff := cmp.Diff(want, fmt.Sprintf("%x", told)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestOtherRows has programs of two versions at work, one whose flows have other rows.
// What begins with either goes on with the other.
func TestOtherRows(t *testing.T) {
	n := newNode(t)
	o := n.otherRows()
	for name, f := range families {
		for word, protocol := range protocols {
			for way, nodes := range map[string][2]*node{"up": {n, o}, "down": {o, n}} {
				t.Run(name+"/"+word+"/"+way, func(t *testing.T) {
					before, now := *nodes[0], *nodes[1]
					before.TB, now.TB = t, t
					before.forgetFlows()
					now.forgetFlows()
					now.tellEachOther()
					w := before.newFlow(f, protocol)
					before.expect("first", before.run(before.PacketIn, "pod", w.first.frame(), 0), actionRedirect, bpfOutcomePACKET_BEGUN, w.forwarded)
					now.expect("reply", now.run(now.PacketIn, "pod", w.reply.frame(), 0), actionRedirect, bpfOutcomePACKET_REPLIED, w.replied)
					now.expect("again", now.run(now.PacketIn, "pod", w.first.frame(), 0), actionRedirect, bpfOutcomePACKET_FORWARDED, w.forwarded)
					before.expect("reply before", before.run(before.PacketIn, "pod", w.reply.frame(), 0), actionRedirect, bpfOutcomePACKET_REPLIED, w.replied)
				})
			}
		}
	}
}

// otherRows is the same node with the programs of another version, whose table of flows
// is another.
func (n *node) otherRows() *node {
	n.Helper()
	o := &node{TB: n.TB, ns: n.ns, links: n.links, seen: n.seen}
	spec, err := loadOther()
	if err != nil {
		n.Fatal(err)
	}
	m := &n.bpfMaps
	shared := map[string]*ebpf.Map{
		bpfMapFrontends: m.Frontends, bpfMapBackends: m.Backends, bpfMapMembers: m.Members, bpfMapNodeAddrs: m.NodeAddrs,
		bpfMapSources: m.Sources, bpfMapPodCidrs: m.PodCidrs, bpfMapPodLinks: m.PodLinks, bpfMapPools: m.Pools, bpfMapTurns: m.Turns,
		bpfMapAffinities: m.Affinities, bpfMapOutcomes: m.Outcomes, bpfMapReports: m.Reports, bpfMapFormer: m.Former,
		bpfMapBegun: m.Begun, bpfMapFragments: m.Fragments, bpfMapMasqueradeAddrs: m.MasqueradeAddrs, bpfMapSctpShifts: m.SctpShifts,
	}
	if err := n.ns.Do(func() error { return o.load(spec, shared) }); err != nil {
		n.Fatalf("%+v", err)
	}
	n.Cleanup(func() { _ = o.Close() })
	return o
}

// A crossing is a node between somebody outside and a backend, with many links beside
// theirs: the programs of the one outside are the first to flip, the backend's the last.
type crossing struct {
	testing.TB
	node, outside *netns.NS
	config        Config
	vips          []echo.Endpoint
}

func newCrossing(t *testing.T) *crossing {
	t.Helper()
	if testing.Short() {
		t.Skip("loads programs many times under traffic: too much for an emulated machine")
	}
	c := &crossing{
		TB: t, node: netns.NewT(t), outside: netns.NewT(t),
		config: Config{Root: filepath.Join(t.TempDir(), "bpf"), CgroupRoot: cgroup.NewT(t).Path},
	}
	t.Cleanup(func() {
		if err := c.node.Do(func() error { return Remove(c.config.Root) }); err != nil {
			t.Error(err)
		}
	})
	backend := netns.NewT(t)
	c.node.RunT(t, "sh", "-ec", "ip link set lo up; sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	c.connect("outside", c.outside, "192.168.50", "fd00:50:")
	c.node.RunT(t, "sh", "-ec", "for i in $(seq 30); do ip link add idle$i type veth peer name far$i; done")
	c.connect("backend", backend, "10.244.1", "fd00:10:244:1:")
	for _, f := range families {
		for network := range protocols {
			echo.ServeT(t, backend, "backend", echo.Endpoint{Network: network, Addr: port(f.backend, 8080)})
			c.vips = append(c.vips, echo.Endpoint{Network: network, Addr: port(f.vip, 80)})
		}
	}
	return c
}

// connect makes a link between the node, which is .1 there, and a party, which is .2.
func (c *crossing) connect(name string, party *netns.NS, ipv4, ipv6 string) {
	c.Helper()
	c.node.RunT(c, "sh", "-ec", `
		ip link add "$0" type veth peer name eth0 netns "$1"
		ip addr add "$2.1/24" dev "$0"
		ip addr add "$3:1/64" dev "$0" nodad
		ip link set dev "$0" up`, name, party.Path(), ipv4, ipv6)
	party.RunT(c, "sh", "-ec", `
		ip link set lo up
		ip addr add "$0.2/24" dev eth0
		ip addr add "$1:2/64" dev eth0 nodad
		ip link set dev eth0 up
		ip route add default via "$0.1"
		ip route add default via "$1:1"`, ipv4, ipv6)
}

// loaded loads a version, as a process does that starts.
func (c *crossing) loaded(version func() (*ebpf.CollectionSpec, error)) *DataPath {
	c.Helper()
	spec, err := version()
	if err != nil {
		c.Fatal(err)
	}
	var d *DataPath
	if err := c.node.Do(func() (err error) {
		d, err = load(c.config, spec)
		return err
	}); err != nil {
		c.Fatalf("%+v", err)
	}
	n := &node{TB: c, bpfObjects: bpfObjects{bpfMaps: d.Maps}}
	for _, f := range families {
		for _, protocol := range protocols {
			n.service(f.pool(uint32(protocol)%100), port(f.vip, 80), protocol, forward, 0, port(f.backend, 8080))
		}
	}
	return d
}

// upgrade puts a version in the place of another.
func (c *crossing) upgrade(version func() (*ebpf.CollectionSpec, error)) {
	c.Helper()
	d := c.loaded(version)
	if err := errors.Join(c.node.Do(d.Publish), d.Close()); err != nil {
		c.Fatal(err)
	}
}

// traffic asks on connections that last and on many new ones.
func (c *crossing) traffic() (end func()) {
	c.Helper()
	all := []*traffic.Traffic{
		traffic.Start(c, traffic.Source{Name: "outside", NS: c.outside, To: c.vips}),
		traffic.StartNew(c, 400, traffic.Source{Name: "many", NS: c.outside, To: slices.Repeat(c.vips, 4)}),
	}
	return func() {
		c.Helper()
		for _, tr := range all {
			tr.GoOn(c)
			tr.End(c)
		}
	}
}

// TestUpgrade has a version take the place of one whose flows have other rows, and the
// other way round, under traffic.
func TestUpgrade(t *testing.T) {
	for name, clsact := range map[string]bool{"tcx": false, "clsact": true} {
		t.Run(name, func(t *testing.T) {
			c := newCrossing(t)
			c.config.Clsact = clsact
			c.upgrade(loadBpf)
			end := c.traffic()
			for range 3 {
				c.upgrade(loadOther)
				c.upgrade(loadBpf)
			}
			end()
			if twice := netstat(t, c.outside, "TCPSynRetrans"); twice != 0 {
				t.Errorf("%d SYNs had to be sent again", twice)
			}
		})
	}
}

// TestUnfinishedUpgrade has processes end in the midst of an upgrade. Traffic goes on,
// and the next process, of the same version or the one before, goes on with it.
func TestUnfinishedUpgrade(t *testing.T) {
	c := newCrossing(t)
	c.upgrade(loadBpf)
	end := c.traffic()
	for _, fault := range []struct {
		steps int
		next  func() (*ebpf.CollectionSpec, error)
	}{{3, loadOther}, {4, loadOther}, {4, loadBpf}, {6, loadOther}, {6, loadBpf}, {7, loadBpf}} {
		d := c.loaded(loadOther)
		if err := errors.Join(c.node.Do(func() error { return d.partly(fault.steps) }), d.Close()); err != nil {
			t.Fatalf("%d steps: %v", fault.steps, err)
		}
		time.Sleep(100 * time.Millisecond) // there is nobody
		c.upgrade(fault.next)
		c.upgrade(loadBpf)
	}
	end()
	if twice := netstat(t, c.outside, "TCPSynRetrans"); twice != 0 {
		t.Errorf("%d SYNs had to be sent again", twice)
	}
}

// partly does the first steps of Publish. If the last one of them is that the programs
// flip, they do at all links but one.
func (d *DataPath) partly(steps int) error {
	const flip = 3
	for i, step := range d.steps()[:steps] {
		if i == flip && steps == flip+1 {
			step = d.flipSome
		}
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (d *DataPath) flipSome() error {
	all, err := d.links.kernel.LinkList()
	if err != nil {
		return err
	}
	d.links.roles = map[int]role{}
	for _, l := range all {
		if l.Attrs().Name == "backend" {
			continue
		}
		if err := d.links.attachLink(l, roleOf(l, "")); err != nil {
			return err
		}
	}
	return nil
}

// netstat is a number that the kernel counts in a namespace (/proc/net/netstat).
func netstat(t *testing.T, ns *netns.NS, name string) int {
	t.Helper()
	lines := strings.Split(ns.RunT(t, "cat", "/proc/self/net/netstat"), "\n") // names and values of TcpExt come first
	values := strings.Fields(lines[1])
	for i, n := range strings.Fields(lines[0]) {
		if n == name {
			number, err := strconv.Atoi(values[i])
			if err != nil {
				t.Fatal(err)
			}
			return number
		}
	}
	t.Fatalf("no %s in %s", name, lines[0])
	return 0
}
