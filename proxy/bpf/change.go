package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/fairlead/fairlead/ebpf"
	"github.com/fairlead/fairlead/proxy/conntrack"
	"github.com/fairlead/fairlead/proxy/service"
)

// What becomes of flows that have begun when the node changes from a backend that
// translates with netfilter to this one, or back.
//
// The socket path has nothing to change: its connections lead to the backend itself,
// whoever translates others. Of packets, netfilter goes on with the TCP and SCTP flows
// that it translates, because to us their packets begin nothing: it is held to that when
// the rules go (conntrack.Hold). Of UDP, every packet may begin a flow: so we are told
// of those that there are.

// begin has all links get their programs before one of them leads anything. Until then
// netfilter, if it has rules, translates what it did.
//
//	write ─▶ attach ─▶ take flows over ─▶ lead ─▶ take over those that began meanwhile ─▶ hold netfilter
func (b *Backend) begin(t *service.Table, p *plan) error {
	takeOver := func() error { return b.inNode(func() error { return b.takeOver(t) }) }
	if err := b.apply(p); err != nil {
		return err
	}
	if err := b.path.StandBy(true); err != nil {
		return err
	}
	err := b.publish()
	if err == nil {
		err = takeOver()
	}
	// Also if something failed: what is attached is better than nothing.
	if err := errors.Join(err, b.path.StandBy(false)); err != nil {
		return err
	}
	return errors.Join(takeOver(), b.inNode(holdIfNeeded))
}

// holdIfNeeded holds netfilter if it translates flows. It begins no more of them.
func holdIfNeeded() error {
	flows, err := conntrack.Translated(service.TCP, service.UDP, service.SCTP)
	if err != nil || len(flows) == 0 {
		return err
	}
	return conntrack.Hold()
}

// takeOver makes rows for the UDP flows that netfilter translates the way that the
// Table says. Those of the node itself it has translated before we see them.
func (b *Backend) takeOver(t *service.Table) error {
	flows, err := conntrack.Translated(service.UDP)
	if err != nil {
		return fmt.Errorf("take flows over from netfilter: %w", err)
	}
	for _, f := range flows {
		_, ok := t.Frontend(f.Dst, f.Protocol)
		class := t.Class(f.Src.Addr(), "")
		if !ok || class == service.FromNode || !t.Serves(f.Dst, f.Protocol, f.ToDst) {
			continue
		}
		row := ebpf.Flow{Stage: ebpf.StageOpen, Class: uint8(classes[class])}
		row.To.Src, row.To.Dst = endpointRow(f.ToSrc), endpointRow(f.ToDst)
		key := ebpf.FlowKey{Protocol: uint32(f.Protocol)}
		key.Tuple.Src, key.Tuple.Dst = endpointRow(f.Src), endpointRow(f.Dst)
		if err := b.path.PutFlow(key, row); err != nil {
			return err
		}
	}
	return nil
}

// looksUntilRelease is how many calls of Intact, of which there are four a second, go by
// before it is looked again whether netfilter translates something: where there are many
// flows that takes a while.
const looksUntilRelease = 40

// release lets netfilter stop when the last flow has ended that it translated before
// the node changed to this backend.
func (b *Backend) release() error {
	if !b.holds {
		return nil
	}
	if b.looks%looksUntilRelease != 0 {
		return nil
	}
	flows, err := conntrack.Translated(service.TCP, service.UDP, service.SCTP)
	if err != nil || len(flows) > 0 {
		return err
	}
	b.holds = false
	return conntrack.Release()
}

// HandOver gives netfilter, whose rules are in the kernel already, the flows of the
// backend whose pins are under root, and removes that, whether its process runs or
// not. Where nobody's rules are, the flows end.
//
//	tell netfilter ─▶ begin no flows ─▶ tell it of those that began meanwhile ─▶ remove
func HandOver(root string) error {
	return errors.Join(tellNetfilter(root), ebpf.BeginNone(root), tellNetfilter(root), ebpf.Remove(root), conntrack.Release())
}

func tellNetfilter(root string) error {
	rows, err := ebpf.PinnedFlows(root)
	if err != nil {
		return err
	}
	var flows []conntrack.Flow
	for _, has := range rows {
		key, row := has.Key, has.Forward
		stages := []uint8{ebpf.StageOpening, ebpf.StageOpen, ebpf.StageEnding}
		if !slices.Contains(stages, row.Stage) {
			continue
		}
		f := conntrack.Flow{
			Protocol: service.Protocol(key.Protocol), Lasts: lasts[service.Protocol(key.Protocol)],
			Src: endpointOf(key.Tuple.Src), Dst: endpointOf(key.Tuple.Dst),
			ToSrc: endpointOf(row.To.Src), ToDst: endpointOf(row.To.Dst),
			Tag: tagOf(row), ReplyTag: tagOf(has.Reply),
		}
		flows = append(flows, f)
	}
	return conntrack.Insert(flows)
}

func tagOf(row ebpf.Flow) uint32 {
	return binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, row.Tag))
}

// lasts is how long netfilter remembers a flow without packets, until it has seen
// one.
var lasts = map[service.Protocol]time.Duration{
	service.TCP: 24 * time.Hour, service.UDP: 2 * time.Minute, service.SCTP: time.Hour,
}
