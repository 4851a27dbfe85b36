package ebpf

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/fairlead/fairlead/e2e/cgroup"
	"github.com/fairlead/fairlead/e2e/netns"
)

// TestCarry has a map that an earlier version has left, of another size and with
// other rows: with a field more at the front, and one less.
func TestCarry(t *testing.T) {
	specs, err := loadBpf()
	if err != nil {
		t.Fatal(err)
	}
	key := bpfFlowKey{Tuple: bpfTuple{Src: bpfEndpoint{Port: 7}}, Protocol: 6}
	row := bpfFlow{To: bpfTuple{Dst: bpfEndpoint{Port: 8}}, Tag: 5, Seen: 4, Stage: 1, EndedBy: 1, Check: 9}
	for name, change := range map[string]func(*ebpf.MapSpec) (put any, want bpfFlow){
		"size": func(spec *ebpf.MapSpec) (any, bpfFlow) {
			spec.MaxEntries *= 2
			return row, row
		},
		"layout": func(spec *ebpf.MapSpec) (any, bpfFlow) {
			value := btf.Copy(spec.Value).(*btf.Struct)
			var kept []btf.Member
			for _, m := range value.Members {
				if m.Name != "ended_by" {
					m.Offset += 64
					kept = append(kept, m)
				}
			}
			value.Members = append([]btf.Member{{Name: "new", Type: &btf.Int{Name: "long", Size: 8}}}, kept...)
			value.Size += 8
			spec.Value, spec.ValueSize = value, value.Size
			want := row
			want.EndedBy = 0
			return struct {
				New  uint64
				Flow bpfFlow
			}{77, row}, want
		},
	} {
		t.Run(name, func(t *testing.T) {
			old := specs.Maps[bpfMapFlows].Copy()
			put, want := change(old)
			root := filepath.Join(t.TempDir(), "bpf")
			lock, err := openRoot(root) // mounts the file system
			if err != nil {
				t.Fatal(err)
			}
			_ = lock.Close()
			leave(t, root, old, key, put)
			ns := netns.NewT(t)
			var d *DataPath
			err = ns.Do(func() (err error) {
				if d, err = Load(Config{Root: root, CgroupRoot: cgroup.NewT(t).Path}); err != nil {
					return err
				}
				return d.Publish()
			})
			if err != nil {
				t.Fatal(err)
			}
			var got bpfFlow
			if err := d.Flows.Lookup(key, &got); err != nil || got != want {
				t.Errorf("got %+v, %v; want %+v", got, err, want)
			}
			var begun uint32
			if err := d.Begun.Lookup(uint32(0), &begun); err != nil || begun == 0 {
				t.Errorf("programs are told that no flow has begun: %v", err)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			if err := ns.Do(func() error { return Remove(root) }); err != nil {
				t.Error(err)
			}
		})
	}
}

// leave pins a map as an earlier process did.
func leave(t *testing.T, root string, spec *ebpf.MapSpec, key, value any) {
	t.Helper()
	m, err := ebpf.NewMap(spec)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	if err := m.Put(key, value); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "maps"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := m.Pin(filepath.Join(root, "maps", bpfMapFlows)); err != nil {
		t.Fatal(err)
	}
}
