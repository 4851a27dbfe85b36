package ebpf

// Headers are Debian's linux-libc-dev and libbpf-dev; only generating needs them.
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -output-stem programs -type addr -type endpoint -type class -type verdict -type frontend_key -type frontend -type path -type frontend_flags -type origin -type source_key -type pool -type generation -type pool_flags -type turn -type backend_key -type backend -type member_key -type member -type node_addr -type prefix_key -type affinity_key -type affinity -type peer -type datagram_key -type outcome bpf c/fairlead.c -- -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu -O2 -g -Wall -Wextra -Werror -mcpu=v3
