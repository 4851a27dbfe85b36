// SPDX-License-Identifier: Apache-2.0
// The maps that both data paths read. User space writes those of the Table,
// programs those of flows. Sizes here are defaults; the loader sets them. They are for
// 30,000 Services of four endpoints on a node of some hundred pods.
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "types.h"

#define TABLE_MAP(NAME, KEY, VALUE, SIZE)               \
	struct {                                        \
		__uint(type, BPF_MAP_TYPE_HASH);        \
		__uint(map_flags, BPF_F_NO_PREALLOC);   \
		__uint(max_entries, SIZE);              \
		__type(key, KEY);                       \
		__type(value, VALUE);                   \
	} NAME SEC(".maps")

#define PREFIX_MAP(NAME, KEY, VALUE, SIZE)              \
	struct {                                        \
		__uint(type, BPF_MAP_TYPE_LPM_TRIE);    \
		__uint(map_flags, BPF_F_NO_PREALLOC);   \
		__uint(max_entries, SIZE);              \
		__type(key, KEY);                       \
		__type(value, VALUE);                   \
	} NAME SEC(".maps")

TABLE_MAP(frontends, struct frontend_key, struct frontend, 65536);
TABLE_MAP(backends, struct backend_key, struct backend, 262144);
TABLE_MAP(members, struct member_key, __u32, 32768);
TABLE_MAP(origins, __u32, struct origin, 65536);
TABLE_MAP(node_addrs, struct addr, struct node_addr, 1024);
PREFIX_MAP(sources, struct source_key, __u32, 65536);
PREFIX_MAP(pod_cidrs, struct prefix_key, __u32, 1024);

// Addresses of endpoints outside the cluster to which pods are masqueraded, as the rules
// of netfilter want it, which do not see packets of this path.
TABLE_MAP(leaving, struct addr, __u32, 8192);

// Index of a link by which packets of pods come in, where pods are known by that.
TABLE_MAP(pod_links, __u32, __u32, 4096);

// By the pool's number.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 40960);
	__type(key, __u32);
	__type(value, struct pool);
} pools SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 40960);
	__type(key, __u32);
	__type(value, struct turn);
} turns SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct affinity_key);
	__type(value, struct affinity);
} affinities SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, OUTCOMES);
	__type(key, __u32);
	__type(value, struct tally);
} outcomes SEC(".maps");

// For one reader.
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 131072); // bytes
} reports SEC(".maps");

// Goes with its socket.
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct peer);
} peers SEC(".maps");

// Cookie of a socket → what it is connected to. User space ends those that must not
// go on when their backend goes: UDP ones, and TCP ones of pools with POOL_RESET.
TABLE_MAP(connected, __u64, struct peer, 16384);

// Socket and frontend → backend.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct datagram_key);
	__type(value, struct endpoint);
} datagrams SEC(".maps");

// Socket and backend → frontend.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct datagram_key);
	__type(value, struct endpoint);
} replies SEC(".maps");
