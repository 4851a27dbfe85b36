// SPDX-License-Identifier: Apache-2.0
// What user space says: at load, but for the last two.
#pragma once

#include <linux/types.h>

volatile const __u64 node_netns; // cookie of the node's network namespace

// The ports of masquerading, apart from those that the node's own sockets get.
struct port_range {
	__u16 first;
	__u16 count;
};

volatile const struct port_range masquerade_ports = {1024, 28976};

// Flags of bpf_fib_lookup that the kernel knows.
volatile const __u32 fib_flags;

// Until which tick somebody looks on: see report.h. If they end without a word, it
// ends by itself.
volatile __u32 looked_at_until;

// Whether packets pass as they are, because not all links have programs yet.
volatile __u32 stands_by;
