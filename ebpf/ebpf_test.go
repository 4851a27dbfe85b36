package ebpf

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/fairlead/fairlead/e2e/bpffs"
	"github.com/fairlead/fairlead/e2e/cgroup"
	"github.com/fairlead/fairlead/e2e/netns"
)

func TestMain(m *testing.M) { bpffs.Main(m) }

// most is how many instructions the verifier may go through for one program: half
// of what it allows, so that another kernel's has room.
const most = 500_000

// TestLoad has the data path come into the kernel and go again, and prints how hard
// its programs are to verify.
func TestLoad(t *testing.T) {
	config := Config{Root: filepath.Join(t.TempDir(), "bpf"), CgroupRoot: cgroup.NewT(t).Path}
	node := netns.NewT(t)
	remove := func() {
		if err := node.Do(func() error { return Remove(config.Root) }); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(remove)
	var d *DataPath
	err := node.Do(func() (err error) {
		if d, err = Load(config); err != nil {
			return err
		}
		return d.Publish()
	})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	d.checkPrograms(t)
	if ok, err := d.Intact(); !ok || err != nil {
		t.Errorf("published: intact %v, %v", ok, err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	remove()
	if _, err := os.Stat(config.Root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("removed: %s is still there (%v)", config.Root, err)
	}
}

func (d *DataPath) checkPrograms(t *testing.T) {
	t.Helper()
	p := d.programs
	for _, program := range []*ebpf.Program{
		p.SockConnect4, p.SockConnect6, p.SockSendmsg4, p.SockSendmsg6, p.SockRecvmsg4, p.SockRecvmsg6,
		p.SockGetpeername4, p.SockGetpeername6, p.SockRelease,
		p.PacketIn, p.PacketPortIn, p.PacketTunnelIn, p.PacketOut, p.PacketTunnelOut,
	} {
		info, err := program.Info()
		if err != nil {
			t.Fatal(err)
		}
		n, known := info.VerifiedInstructions() // since kernel 5.16
		t.Logf("%-16s %6d instructions verified", info.Name, n)
		if known && n > most {
			t.Errorf("%s: %d instructions to verify, at most %d are to be", info.Name, n, most)
		}
	}
}

// Try needs nothing and leaves nothing.
func TestTry(t *testing.T) {
	if err := Try(""); err != nil {
		t.Error(err)
	}
	if err := CanEndSockets(); err != nil {
		t.Error(err)
	}
}

// What the kernel does not have is named.
func TestLacking(t *testing.T) {
	spec, err := loadBpf()
	if err != nil {
		t.Fatal(err)
	}
	if lacks := lacking(spec); lacks != "" {
		t.Errorf("this kernel loads the programs, and is said to lack something: %s", lacks)
	}
	p := spec.Programs[bpfProgSockConnect4]
	p.Instructions = append(asm.Instructions{asm.FnTcpCheckSyncookie.Call()}, p.Instructions...) // of tc programs only
	if got, want := lacking(spec), "the kernel's BPF programs of type CGroupSockAddr have no bpf_tcp_check_syncookie"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
