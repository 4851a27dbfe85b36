package ebpf

import (
	"testing"

	"github.com/cilium/ebpf"
)

// FuzzPackets runs each program on packets of a few that have to do with Services,
// with bytes changed from somewhere on, and cut. It asks of them what TestRandomPackets
// does.
func FuzzPackets(f *testing.F) {
	n := newNode(f)
	kinds := n.kinds()
	for i := range kinds {
		f.Add(uint8(i), uint8(i), uint16(0), []byte{}, uint16(4000))
	}
	f.Add(uint8(0), uint8(0), uint16(9), []byte{255}, uint16(30))
	programs := []*ebpf.Program{n.PacketIn, n.PacketPortIn, n.PacketOut}
	links := []uint32{uint32(n.links["pod"].Index), uint32(n.links["wan"].Index)}
	f.Fuzz(func(t *testing.T, kind, program uint8, at uint16, other []byte, length uint16) {
		frame := kinds[int(kind)%len(kinds)]
		const least = etherLen + 40 // the header of IPv6, as the kernel has it pulled
		in := append([]byte{}, frame[:min(max(int(length), least), len(frame))]...)
		if from := etherLen + int(at); from < len(in) {
			copy(in[from:], other)
		}
		out := make([]byte, 4096)
		opts := &ebpf.RunOptions{Data: in, DataOut: out, Context: skb{Ifindex: links[int(program)/len(programs)%len(links)]}}
		var action uint32
		err := n.ns.Do(func() (err error) {
			action, err = programs[int(program)%len(programs)].Run(opts)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if why := wrong(in, opts.DataOut, int32(action)); why != "" {
			t.Errorf("action %d: %s\n in % x\nout % x", int32(action), why, in, opts.DataOut)
		}
	})
}
