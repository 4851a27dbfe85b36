package ebpf

// The same programs with rows of flows that are laid out in another way, as those of
// another version may be.
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -output-stem other other c/fairlead.c -- -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu -O2 -g -Wall -Wextra -Werror -mcpu=v3 -DOTHER_ROWS
