package ebpf

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// fibSkipNeigh is BPF_FIB_LOOKUP_SKIP_NEIGH (linux/bpf.h, kernel 6.3): programs ask
// for the next hop only, whose neighbour bpf_redirect_neigh finds anyway.
const fibSkipNeigh = 1 << 2

// fibFlags are those flags of bpf_fib_lookup that help and that the kernel knows. It
// asks about no address family: a kernel that knows the flags says that it does not
// know that one.
func fibFlags() (uint32, error) {
	const paramsSize = 64 // of struct bpf_fib_lookup
	ask := asm.Instructions{asm.Mov.Imm(asm.R6, 0)}
	for offset := int16(-paramsSize); offset < 0; offset += 8 {
		ask = append(ask, asm.StoreMem(asm.R10, offset, asm.R6, asm.DWord))
	}
	ask = append(ask,
		asm.Mov.Reg(asm.R2, asm.R10),
		asm.Add.Imm(asm.R2, -paramsSize),
		asm.StoreImm(asm.R2, 0, 0xff, asm.Byte), // family
		asm.Mov.Imm(asm.R3, paramsSize),
		asm.Mov.Imm(asm.R4, fibSkipNeigh),
		asm.FnFibLookup.Call(),
		asm.Return(),
	)
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "fib_flags", Type: ebpf.SchedCLS, Instructions: ask, License: "GPL"})
	if err != nil {
		return 0, fmt.Errorf("ask which flags bpf_fib_lookup knows: %w", err)
	}
	defer func() { _ = program.Close() }()
	said, err := program.Run(&ebpf.RunOptions{Data: make([]byte, 64)})
	if err != nil {
		return 0, fmt.Errorf("ask which flags bpf_fib_lookup knows: %w", err)
	}
	if int32(said) == -int32(unix.EAFNOSUPPORT) {
		return fibSkipNeigh, nil
	}
	return 0, nil
}
