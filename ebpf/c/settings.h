// SPDX-License-Identifier: Apache-2.0
// What user space says once, at load: read-only data of the programs.
#pragma once

#include <linux/types.h>

volatile const __u64 node_netns; // cookie of the node's network namespace
