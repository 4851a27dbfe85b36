package ebpf

import (
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/fairlead/fairlead/e2e/cgroup"
)

// Programs of others are found, once each, and ours are not among them.
func TestStrangers(t *testing.T) {
	group := cgroup.NewT(t)
	attach := func(name string, hook ebpf.AttachType) {
		t.Helper()
		program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: name, Type: ebpf.CGroupSockAddr, AttachType: hook, License: "GPL",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = program.Close() }()
		l, err := link.AttachCgroup(link.CgroupOptions{Path: group.Path, Attach: hook, Program: program})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
	}
	attach(bpfProgSockConnect4, ebpf.AttachCGroupInet4Connect)
	if names, err := Strangers(group.Path); err != nil || len(names) > 0 {
		t.Errorf("with ours alone: %q, %v", names, err)
	}
	attach("theirs", ebpf.AttachCGroupInet4Connect)
	attach("theirs", ebpf.AttachCGroupUDP6Sendmsg)
	attach("also_theirs", ebpf.AttachCGroupInet4Connect)
	if names, err := Strangers(group.Path); err != nil || !slices.Equal(names, []string{"also_theirs", "theirs"}) {
		t.Errorf("found %q, %v", names, err)
	}
}
