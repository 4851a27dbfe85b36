package bpf

import (
	"context"
	"maps"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/cni/host/nftnews"
	"github.com/fairlead/fairlead/ebpf"
	"github.com/fairlead/fairlead/proxy/way"
)

// An endpoint outside the cluster does not know the way back to a pod, so that nodes
// masquerade what pods send there: by rules of netfilter, of 'fairlead node' or others,
// which never see a packet of the packet path. What these rules say of external
// endpoints, programs read in map leaving. Of Services that have none nothing is asked.

// leaving is what is known of that.
type leaving struct {
	news <-chan struct{} // rules of nftables have changed; nil: nobody tells
	stop context.CancelFunc
}

func (l *leaving) close() {
	if l.stop != nil {
		l.stop()
	}
}

// looksUntilAsked is how many calls of Intact go by at least before rules that change all
// the time are followed again: a second.
const looksUntilAsked = 4

// follow follows the rules, of which iptables-legacy tells nothing: it is asked once a
// minute.
func (b *Backend) follow() error {
	changed := b.looks%looksUntilRead == 0
	if b.looks%looksUntilAsked == 0 {
		select {
		case <-b.leaving.news:
			changed = true
		default:
		}
	}
	b.have.unsettled = b.have.unsettled || changed && len(b.have.externals) > 0
	return b.settle()
}

// settle has the programs masquerade pods to those endpoints for which rules say so.
func (b *Backend) settle() error {
	if !b.have.unsettled {
		return nil
	}
	var want map[ebpf.Addr]uint32
	if err := b.inNode(func() error { want = b.masqueraded(); return nil }); err != nil {
		return err
	}
	var r reader
	var change rows[ebpf.Addr, uint32]
	change.replace(readAll[ebpf.Addr, uint32](&r, b.path.Leaving), want, func(a, b uint32) bool { return a == b })
	w := writer{err: r.err}
	write(&w, b.path.Leaving, change)
	remove(&w, b.path.Leaving, change)
	b.written += w.rows
	b.have.unsettled = w.err != nil
	return w.err
}

// masqueraded are the rows of those external endpoints to which pods of this node are
// masqueraded. All pods of a range are taken to be alike.
func (b *Backend) masqueraded() map[ebpf.Addr]uint32 {
	want := map[ebpf.Addr]uint32{}
	if len(b.have.externals) == 0 {
		return want
	}
	b.leaving.listen()
	for _, pods := range b.have.ownPods {
		to := slices.DeleteFunc(slices.Collect(maps.Keys(b.have.externals)), func(a netip.Addr) bool { return a.Is6() != pods.Addr().Is6() })
		if len(to) == 0 {
			continue
		}
		for i, is := range way.Masqueraded(context.Background(), someone(pods), to) {
			if is {
				want[addrRow(to[i])] = 1
			}
		}
	}
	return want
}

// someone is an address of a range, the third: the first is nobody's, and the second
// mostly the node's own.
func someone(pods netip.Prefix) netip.Addr {
	first := pods.Masked().Addr()
	if third := first.Next().Next(); pods.Contains(third) {
		return third
	}
	return first
}

// listen begins to listen to what becomes of the rules, before they are read. Where that
// cannot be, there is nobody whose news were missed: a kernel without nftables.
func (l *leaving) listen() {
	if l.stop != nil {
		return
	}
	var ctx context.Context
	ctx, l.stop = context.WithCancel(context.Background())
	if news, err := nftnews.Listen(ctx, func(nftnews.Event) bool { return true }); err == nil {
		l.news = news
	}
}

// Leaves says whether pods of this node are masqueraded to an endpoint by the packet
// path because it is outside the cluster. It is safe for concurrent use.
func (b *Backend) Leaves(endpoint netip.Addr) bool {
	row := addrRow(endpoint)
	var is uint32
	return b.path.Leaving.Lookup(&row, &is) == nil
}
