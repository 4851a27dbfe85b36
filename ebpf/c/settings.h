// SPDX-License-Identifier: Apache-2.0
// What user space says once, at load: read-only data of the programs.
#pragma once

#include <linux/types.h>

volatile const __u64 node_netns; // cookie of the node's network namespace

// The ports of masquerading, apart from those that the node's own sockets get.
struct port_range {
	__u16 first;
	__u16 count;
};

volatile const struct port_range masquerade_ports = {1024, 28976};
