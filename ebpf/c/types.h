// SPDX-License-Identifier: Apache-2.0
// What the maps hold. Go gets these types from bpf2go; nobody writes them twice.
//
//   frontend_key ──▶ frontend ──(class of sender)──▶ path ──▶ pool ──(turn)──▶ backend
//
// Addresses are IPv6 in network byte order, IPv4 as ::ffff:a.b.c.d (RFC 4291,
// 2.5.5.2): one layout and one code path for both. Ports are in network byte order.
#pragma once

#include <linux/types.h>

struct addr {
	__be32 w[4];
};

struct endpoint {
	struct addr addr;
	__be16 port;
	__u16 pad;
};

// Where a flow goes to. The unspecified address (:: or ::ffff:0.0.0.0) stands for
// every address of the node that node ports are on; the address itself goes first.
struct frontend_key {
	struct addr addr;
	__be16 port;
	__u8 protocol; // IPPROTO_TCP, _UDP, _SCTP
	__u8 pad;
};

enum class {
	CLASS_POD,
	CLASS_NODE,
	CLASS_OUTSIDE,
	CLASSES,
};

enum verdict {
	VERDICT_PASS,
	VERDICT_FORWARD,
	VERDICT_REJECT,
	VERDICT_DROP,
};

struct path {
	__u32 pool; // with VERDICT_FORWARD
	__u8 verdict;
	__u8 masquerade;
	__u16 pad;
};

enum frontend_flags {
	FRONTEND_SOURCES = 1, // only the senders in map sources are allowed
};

struct frontend {
	struct path paths[CLASSES];
	__u32 id;     // names it in map sources
	__u32 origin; // the Service port: index in map service_flows
	__u32 flags;
	__u32 pad;
};

// A row that is there allows a sender to use a frontend.
struct source_key {
	__u32 prefixlen; // 32 for the id, plus that of the range as IPv6
	__u32 frontend;  // frontend.id, in network byte order
	struct addr addr;
};

// A pool keeps its number while it lives. Its backends of one moment are a
// generation: the rows of the new one are written first, then the pool's row flips
// to it in one update of a hash map, which readers see whole; then the rows of the
// old generation go. turns[number] goes on through all of them.
struct pool {
	__u32 generation;
	__u32 count;    // backends that take turns
	__u32 affinity; // seconds; 0: none
	__u32 flags;
};

enum pool_flags {
	POOL_MEMBERS = 1, // map members has this generation's rows (UDP, SCTP, affinity)
};

struct backend_key {
	__u32 generation;
	__u32 index; // 0 to pool.count-1
};

struct backend {
	struct addr addr;
	__be16 port;
	__u16 pad;
};

// Whether a flow that has a backend may go on with it.
struct member_key {
	__u32 generation;
	struct endpoint backend;
};

enum member {
	MEMBER_SERVES = 1, // flows that it has may go on
	MEMBER_TURNS = 2,  // and it gets new ones
};

// An address of the node, and whether node ports are on it.
struct node_addr {
	__u8 node_ports;
	__u8 pad[3];
};

struct prefix_key {
	__u32 prefixlen; // as IPv6: 96 more for IPv4
	struct addr addr;
};

// To whom a sender of a pool with affinity goes. On the socket path the sender is
// its network namespace, whose cookie stands in addr.
struct affinity_key {
	struct addr sender;
	__u32 pool;
	__u32 by_socket;
};

struct affinity {
	struct endpoint backend;
	__u32 generation;
	__u64 last; // ns, CLOCK_MONOTONIC: when the last flow began
};

// What user space says once, at load. Read-only data of the programs.
struct settings {
	__u64 node_netns; // cookie of the node's network namespace
};
