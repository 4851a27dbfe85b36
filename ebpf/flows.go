package ebpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

type (
	// FlowKey is what a packet of a flow says when it comes.
	FlowKey = bpfFlowKey
	// Flow is what becomes of it.
	Flow = bpfFlow
)

// Forward says of which of the two rows of a flow this is: that of the client's packets.
func (f Flow) Forward() bool { return f.Direction == uint8(bpfDirectionFORWARD) }

// Stages of a Flow that has begun and is not over.
const (
	StageOpening = uint8(bpfStageSTAGE_OPENING)
	StageOpen    = uint8(bpfStageSTAGE_OPEN)
	StageEnding  = uint8(bpfStageSTAGE_ENDING)
)

// PutFlow makes the rows of a flow as if it had begun here, unless there are some.
// forward is what becomes of the client's packets, whose key is given.
func (d *DataPath) PutFlow(key FlowKey, forward Flow) error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &now); err != nil {
		return err
	}
	forward.Direction = uint8(bpfDirectionFORWARD)
	forward.Seen, forward.Check = uint32(now.Nano()>>tickShift), checkOf(key)
	reply := forward
	reply.Direction = uint8(bpfDirectionREPLY)
	reply.To = bpfTuple{Src: key.Tuple.Dst, Dst: key.Tuple.Src}
	back := replyKey(forward, key.Protocol)
	reply.Check = checkOf(back)
	if err := d.Begun.Put(uint32(0), someBegun); err != nil {
		return fmt.Errorf("write to %s: %w", d.Begun, err)
	}
	if err := d.Flows.Update(&back, &reply, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
		return fmt.Errorf("write to %s: %w", d.Flows, err)
	}
	if err := d.Flows.Update(&key, &forward, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
		return fmt.Errorf("write to %s: %w", d.Flows, err)
	}
	return nil
}

// replyKey is the key of the other direction's row.
func replyKey(f Flow, protocol uint32) FlowKey {
	return FlowKey{Tuple: bpfTuple{Src: f.To.Dst, Dst: f.To.Src}, Protocol: protocol}
}

// noteFlows tells programs that there are flows, if there are: of a version that did not,
// or when they were about to be handed over.
func (d *DataPath) noteFlows() error {
	first, err := d.Flows.NextKeyBytes(nil)
	var told uint32
	if err == nil {
		err = d.Begun.Lookup(uint32(0), &told)
	}
	if err != nil {
		return fmt.Errorf("read %s and %s: %w", d.Flows, d.Begun, err)
	}
	if first == nil && told != handedOver {
		return nil
	}
	return d.Begun.Put(uint32(0), someBegun)
}

// What map begun says.
const (
	someBegun  = uint32(bpfFlowsAreSOME_BEGUN)
	handedOver = uint32(bpfFlowsAreHANDED_OVER)
)

// checkOf is check_of of c/conn.h.
func checkOf(k FlowKey) uint32 {
	t := k.Tuple
	return t.Src.Addr.W[3] ^ t.Dst.Addr.W[3]<<1 ^ t.Dst.Addr.W[1] ^ uint32(t.Src.Port)<<16 ^ uint32(t.Dst.Port)
}

// PinnedFlow is a flow of packets, as the client sees it. The rows say what becomes of
// its packets and of the answers, of which there may be none.
type PinnedFlow struct {
	Key            FlowKey
	Forward, Reply Flow
}

// PinnedFlows are those that are pinned under root: none, if nothing is pinned there,
// or by a version with other rows.
func PinnedFlows(root string) ([]PinnedFlow, error) {
	m, err := pinned(root, bpfMapFlows)
	if m == nil {
		return nil, err
	}
	defer func() { _ = m.Close() }()
	all := map[FlowKey]Flow{}
	var key FlowKey
	var row Flow
	rows := m.Iterate()
	for rows.Next(&key, &row) {
		all[key] = row
	}
	if err := rows.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) { // flows came and went
		return nil, fmt.Errorf("read %s: %w", m, err)
	}
	var flows []PinnedFlow
	for key, row := range all {
		if row.Forward() {
			flows = append(flows, PinnedFlow{key, row, all[replyKey(row, key.Protocol)]})
		}
	}
	return flows, nil
}

// BeginNone has the programs that are pinned under root lead no new flows: those go
// where they would without. All that have begun go on.
func BeginNone(root string) error {
	begun, err := pinned(root, bpfMapBegun)
	if err != nil {
		return err
	}
	if begun != nil {
		defer func() { _ = begun.Close() }()
		if err := begun.Put(uint32(0), handedOver); err != nil {
			return fmt.Errorf("write to %s: %w", begun, err)
		}
	}
	m, err := pinned(root, bpfMapFrontends)
	if m == nil {
		return err
	}
	defer func() { _ = m.Close() }()
	var key FrontendKey
	for {
		err := m.NextKey(nil, &key)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err == nil {
			err = m.Delete(&key)
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("empty %s: %w", m, err)
		}
	}
}

// pinned opens a map that an earlier process has left. It is nil if there is none
// with the rows of today.
func pinned(root, name string) (*ebpf.Map, error) {
	spec, err := loadBpf()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(root, "maps", name)
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil, nil // who may not use BPF is refused before the kernel looks for the path
	}
	m, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EINVAL) { // or it is in no bpf file system
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open map %s: %w", name, err)
	}
	if m.KeySize() != spec.Maps[name].KeySize || m.ValueSize() != spec.Maps[name].ValueSize {
		_ = m.Close()
		return nil, nil
	}
	return m, nil
}
