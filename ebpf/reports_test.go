package ebpf

import (
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf/ringbuf"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"
)

func TestOutcomes(t *testing.T) {
	names := map[string]bool{}
	for i, o := range outcomes {
		name := o.Path + " " + o.Name
		if o.Name == "" || o.Text == "" || names[name] {
			t.Errorf("outcome %d is %+v: it must have a name of its own", i, o)
		}
		names[name] = true
	}
}

// TestReports has programs tell of trouble, so often and no more, and of all else
// only while somebody looks on.
func TestReports(t *testing.T) {
	n := newNode(t)
	ring, err := ringbuf.NewReader(n.Reports)
	if err != nil {
		t.Fatal(err)
	}
	reports := Reports{ring}
	t.Cleanup(func() { _ = reports.Close() })
	f := families["ipv6"]
	w := n.newFlow(f, unix.IPPROTO_TCP)
	n.service(2, port(f.vip, 90), unix.IPPROTO_UDP, Path{Verdict: Drop}, 0)
	bad := n.from("pod", first(unix.IPPROTO_UDP, port(f.client, 40000), port(f.vip, 90)))

	trouble := Report{Outcome: outcomes[bpfOutcomePACKET_DROPPED], Src: bad.src, Dst: bad.dst, Protocol: unix.IPPROTO_UDP, Link: n.links["pod"].Index}
	begun := Report{Outcome: outcomes[bpfOutcomePACKET_BEGUN], Src: w.first.src, Dst: w.first.dst, Backend: w.forwarded.dst, Protocol: unix.IPPROTO_TCP, Link: n.links["pod"].Index}
	n.run(n.PacketIn, "pod", w.first.frame(), 0)
	began := time.Now()
	for range 1000 {
		n.run(n.PacketIn, "pod", bad.frame(), 0)
	}
	ticks := int(time.Since(began)>>tickShift) + 2
	got := reports.all(t)
	if allowed := 16 * runtime.NumCPU() * ticks; len(got) == 0 || len(got) > allowed {
		t.Errorf("%d reports of 1,000 drops within %d ticks, at most %d are allowed", len(got), ticks, allowed)
	}
	for _, r := range got {
		n.sameReport("nobody looks on", trouble, r)
	}
	if err := lookOn(n.LookedAtUntil, time.Minute); err != nil {
		t.Fatal(err)
	}
	n.forgetFlows()
	n.run(n.PacketIn, "pod", w.first.frame(), 0)
	n.run(n.PacketIn, "pod", w.first.frame(), 0) // is no event
	if got = reports.all(t); len(got) != 1 {
		t.Fatalf("of a flow that began: %d reports", len(got))
	}
	n.sameReport("somebody looks on", begun, got[0])
	if err := lookOn(n.LookedAtUntil, 0); err != nil {
		t.Fatal(err)
	}
	n.forgetFlows()
	n.run(n.PacketIn, "pod", w.first.frame(), 0)
	if got = reports.all(t); len(got) != 0 {
		t.Errorf("nobody looks on any more: %v", got)
	}
}

// all are those that there are.
func (r *Reports) all(t *testing.T) []Report {
	t.Helper()
	var out []Report
	for r.ring.AvailableBytes() > 0 {
		one, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, one)
	}
	return out
}

func (n *node) sameReport(what string, want, got Report) {
	n.Helper()
	opts := cmp.Options{cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }), cmpopts.IgnoreFields(Report{}, "Ago")}
	if diff := cmp.Diff(want, got, opts); diff != "" {
		n.Errorf("%s: (-want +got)\n%s", what, diff)
	}
	if got.Ago < 0 || got.Ago > time.Minute {
		n.Errorf("%s: it happened %s ago", what, got.Ago)
	}
}
