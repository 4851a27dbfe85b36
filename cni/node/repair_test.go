package node

import (
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// dump is all that a node has of ours, in the words of ip(8) and bridge(8).
func (n *testNode) dump(t *testing.T) string {
	t.Helper()
	return shell(t, n.ns, `
		ip route show table all proto 250
		ip -6 route show table all proto 250
		ip rule show prio 7250
		ip -6 rule show prio 7250
		for dev in fairlead-vx4 fairlead-vx6; do
			ip -d link show $dev 2>&1 | sed 's/^[0-9]*: //;s/@[^:]*//;s/ifindex [0-9]*//' | grep -v qlen
			ip neigh show dev $dev nud permanent 2>&1 || true
			bridge fdb show dev $dev 2>&1 || true
		done`)
}

// settle brings the plan whenever there is news until the node has what is wanted,
// as a witness reads it.
func (n *testNode) settle(t *testing.T, others []Member, witness *Kernel, want state) {
	t.Helper()
	end := time.After(patience)
	for {
		witness.known = false
		if err := witness.learn(); err != nil {
			t.Fatal(err)
		}
		diff := cmp.Diff(want, witness.have, compareStates...)
		if diff == "" {
			return
		}
		select {
		case news := <-n.kernel.News():
			if n.kernel.Note(news) {
				n.sync(t, others, testOptions)
			}
		case <-end:
			t.Fatalf("not repaired (-want +got):\n%s", diff)
		}
	}
}

var compareStates = cmp.Options{cmp.AllowUnexported(state{}, neighbourKey{}, forwardKey{}, routeKey{}, hop{}), sameAddrs, samePrefixes}

func sorted(text string) string {
	lines := strings.Split(text, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// What others change is put right because the kernel tells of it.
func TestRepair(t *testing.T) {
	w := newWorld(t)
	w.connect(testOptions)
	a := w.nodes["a"]
	before, witness := a.dump(t), openKernel(t, a.ns)
	if err := witness.learn(); err != nil {
		t.Fatal(err)
	}
	want := witness.have
	macC, macC6 := macOf(nodeC.Addrs[0]), macOf(nodeC.Addrs[1])
	tests := []struct{ name, damage string }{
		{"route deleted", "ip route del 10.244.2.0/24"},
		{"IPv6 route deleted", "ip -6 route del fd00:244:2::/64"},
		{"route changed", "ip route replace 10.244.2.0/24 via 10.0.0.254 proto 250"},
		{"route replaced by another's, which then goes", "ip route replace 10.244.2.0/24 via 10.0.0.254 proto static\nip route del 10.244.2.0/24"},
		{"MTU of a route changed", "ip -6 route change fd00:244:2::/64 via fd00::2 dev eth0 src fd00::1 proto 250 mtu 1400"},
		{"route added in our name", "ip route add 10.77.0.0/16 via 10.0.0.2 proto 250"},
		{"table flushed", "ip route flush table 7250\nip -6 route flush table 7250"},
		{"neighbours deleted", "ip neigh flush dev fairlead-vx4 nud permanent"},
		{"neighbour changed", "ip neigh replace 10.9.0.3 lladdr 02:00:00:00:00:01 dev fairlead-vx4 nud permanent"},
		{"forwarding deleted", "bridge fdb del " + macC.String() + " dev fairlead-vx4 dst 10.9.0.3"},
		{"forwarding changed", "bridge fdb replace " + macC6.String() + " dev fairlead-vx6 dst fd09::9 self permanent"},
		{"rule deleted", "ip rule del prio 7250"},
		{"tunnel deleted", "ip link del fairlead-vx4\nip link del fairlead-vx6"},
		{"tunnel down", "ip link set fairlead-vx4 down"},
		{"tunnel changed", "ip link set fairlead-vx6 address 02:00:00:00:00:02 mtu 1400"},
		{"uplink down and up", "ip link set eth0 down\nip link set eth0 up\nip route add default via 10.0.0.254\nip addr add fd00::1/64 dev eth0 nodad\nip route add default via fd00::fe"},
		{"address deleted and added", "ip addr del 10.0.0.1/24 dev eth0\nip addr add 10.0.0.1/24 dev eth0\nip route add default via 10.0.0.254"},
		{"news lost", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.damage == "" {
				a.kernel.Note(News{err: unix.ENOBUFS})
				a.sync(t, w.others(a), testOptions)
				return
			}
			shell(t, a.ns, tt.damage)
			a.settle(t, w.others(a), witness, want)
		})
	}
	if diff := cmp.Diff(sorted(before), sorted(a.dump(t))); diff != "" {
		t.Errorf("ip and bridge see something else than before (-before +after):\n%s", diff)
	}
	w.mesh()
}

// What others have made stays, in what order whatever comes.
func TestOthersAreLeftAlone(t *testing.T) {
	w := newWorld(t)
	a := w.nodes["a"]
	a.open(t)
	shell(t, a.ns, `
		ip route add 10.244.2.0/24 via 10.0.0.254 proto static
		ip route add 10.50.0.0/16 via 10.0.0.254
		ip rule add from 10.244.1.0/24 lookup 99 prio 99
		ip link add fairlead-vx6 type bridge`)
	_, err := a.trySync(w.others(a), testOptions)
	if err == nil || !strings.Contains(err.Error(), "set route 10.244.2.0/24 via 10.0.0.2 dev eth0: file exists, and it is not Fairlead's") {
		t.Errorf("error: %v", err)
	}
	if err == nil || !strings.Contains(err.Error(), "add VXLAN device fairlead-vx6: file exists") {
		t.Errorf("error: %v", err)
	}
	if got := a.dump(t); !strings.Contains(got, "10.244.3.0/24 via 10.9.0.3 dev fairlead-vx4") ||
		!strings.Contains(got, "fd00:244:2::/64 via fd00::2 dev eth0") {
		t.Errorf("what is possible is not done:\n%s", got)
	}
	if err := a.kernel.Cleanup(); err != nil {
		t.Error(err)
	}
	got := shell(t, a.ns, "ip route show proto static\nip route show 10.50.0.0/16\nip rule show prio 99\nip -o link show type bridge")
	for _, want := range []string{"10.244.2.0/24", "10.50.0.0/16", "lookup 99", "fairlead-vx6"} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is gone:\n%s", want, got)
		}
	}
}

// Nodes come, go, change their address and their range; at the end nothing is left.
func TestMembersChange(t *testing.T) {
	w := newWorld(t)
	a := w.nodes["a"]
	a.open(t)
	nothing := a.dump(t)
	moved, readded := nodeC, nodeB
	moved.Addrs = addrs("10.9.0.4", "fd09::4")
	readded.PodCIDRs = cidrs("10.244.22.0/24", "fd00:244:22::/64")
	steps := []struct {
		others  []Member
		routing Routing
	}{
		{[]Member{nodeB}, Auto},
		{[]Member{nodeB, nodeC}, Auto},
		{[]Member{nodeB, moved}, Auto},
		{[]Member{readded, moved}, Auto},
		{[]Member{readded, moved}, VXLAN},
		{[]Member{readded, moved}, Auto},
		{[]Member{readded}, Direct},
		{[]Member{nodeC}, Auto},
		{nil, Auto},
	}
	for _, step := range steps {
		plan := a.sync(t, step.others, Options{Routing: step.routing, VNI: 7, Port: 4789})
		want := newState()
		maps.Insert(want.tunnels, plan.tunnels())
		maps.Insert(want.neighbours, plan.neighbours())
		maps.Insert(want.forwards, plan.forwards())
		maps.Insert(want.routes, plan.routes())
		maps.Insert(want.rules, plan.rules())
		fresh := openKernel(t, a.ns)
		if err := fresh.learn(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, fresh.have, compareStates...); diff != "" {
			t.Errorf("%+v: the kernel differs from the plan (-plan +kernel):\n%s", step, diff)
		}
	}
	if got := a.dump(t); got != nothing {
		t.Errorf("left over:\n%s", got)
	}
}

// A process that starts where another one was writes nothing: no packet can be
// lost by that.
func TestRestartWritesNothing(t *testing.T) {
	w := newWorld(t)
	a := w.nodes["a"]
	a.open(t)
	a.sync(t, w.others(a), testOptions)
	a.kernel.Close()
	a.open(t)
	var news *nl.NetlinkSocket
	err := a.ns.Do(func() (err error) {
		news, err = nl.Subscribe(unix.NETLINK_ROUTE, newsGroups...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(news.Close)
	a.sync(t, w.others(a), testOptions)
	shell(t, a.ns, "ip route add 10.99.0.0/16 via 10.0.0.254")
	for {
		messages, _, err := news.Receive()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages {
			if r, ok := parseRoute(m.Data); ok && m.Header.Type == unix.RTM_NEWROUTE && r.dst == netip.MustParsePrefix("10.99.0.0/16") {
				return
			}
			if !ours(m.Header.Type, m.Data) {
				continue
			}
			t.Errorf("message of type %d came", m.Header.Type)
		}
	}
}

// ours says whether news is of what package node writes. Of the rest there is
// always some.
func ours(kind uint16, m []byte) bool {
	switch kind {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		r, _ := parseRoute(m)
		return r.protocol == Protocol
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		n, _ := parseNeighbour(m)
		return n.permanent
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		d, _ := parseDevice(m)
		return isTunnel(d.Name)
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		return true
	}
	return false
}

// A tunnel whose UDP port is taken keeps only what goes through it from being
// reached, and comes when the port is free.
func TestPortTaken(t *testing.T) {
	w := newWorld(t)
	a := w.nodes["a"]
	a.open(t)
	var taken net.PacketConn
	err := a.ns.Do(func() (err error) {
		taken, err = net.ListenPacket("udp4", ":4789")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.trySync(w.others(a), testOptions)
	if want := "set fairlead-vx4 up: UDP port 4789 is taken by another program: address already in use"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	if got := a.dump(t); !strings.Contains(got, "10.244.2.0/24 via 10.0.0.2") || !strings.Contains(got, "fairlead-vx6") {
		t.Errorf("what is possible is not done:\n%s", got)
	}
	_ = taken.Close()
	a.sync(t, w.others(a), testOptions)
	if got := a.dump(t); !strings.Contains(got, "10.244.3.0/24 via 10.9.0.3 dev fairlead-vx4") {
		t.Errorf("the tunnel does not come:\n%s", got)
	}
}
