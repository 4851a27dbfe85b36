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

// key is here once more because the kernel may give the memory of a row that goes
// to another one at once, while a program still reads it: whoever reads a row
// looks at key last.
struct frontend {
	struct frontend_key key;
	struct path paths[CLASSES];
	__u32 id;     // names it in map sources
	__u32 origin; // the Service port: key of map origins
	__u32 flags;
};

// The Service port that a row comes from, for people: "namespace/name:port",
// filled up with zeros. Each of the three has 63 characters at most (RFC 1123).
struct origin {
	char name[192];
};

// A row that is there allows a sender to use a frontend.
struct source_key {
	__u32 prefixlen; // 32 for the id, plus that of the range as IPv6
	__u32 frontend;  // frontend.id, in network byte order
	struct addr addr;
};

// A pool keeps its number while it lives. Its backends of one moment are a
// generation, which is twice the number or one more: the rows of the one that is
// not in use are written first, then the pool's row flips to it in one store of
// eight bytes, which readers see whole; then the rows of the other go. turns[number]
// goes on through all of them. A row of zeros is a pool that is not there.
struct generation {
	__u32 id;
	__u32 count; // backends that take turns
};

struct pool {
	struct generation now;
	__u32 affinity; // seconds; 0: none
	__u32 flags;
};

enum pool_flags {
	POOL_MEMBERS = 1, // map members has this generation's rows (UDP, SCTP, affinity)
	POOL_RESET = 2,   // TCP connections to a backend that goes are reset
};

// How many flows a pool has led. Whoever takes a turn adds one to taken; what was
// there modulo the generation's count is the backend's index.
struct turn {
	__u64 taken;
	__u64 kept; // out of turn, by affinity
};

struct backend_key {
	__u32 generation;
	__u32 index; // 0 to count-1
};

// generation is here once more for the reason that is with struct frontend.
struct backend {
	__u32 generation;
	__be16 port;
	__u16 pad;
	struct addr addr;
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

// An address of the node, and whether node ports are on it. 127.0.0.1 is here where
// they are on localhost, for the node's own sockets only.
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
	__u32 pad;
	__u64 last; // ns, CLOCK_MONOTONIC: when the last flow began
};

// What a connected socket believes to be connected to, and what it is.
struct peer {
	struct endpoint frontend;
	struct endpoint backend;
	__u64 netns; // cookie of the socket's network namespace
	__u32 protocol;
	__u32 pad;
};

// Where a datagram socket that is not connected sends to, seen from either side.
struct datagram_key {
	__u64 cookie; // of the socket
	struct endpoint to;
	__u32 pad;
};

// A packet's two ends.
struct tuple {
	struct endpoint src;
	struct endpoint dst;
};

#ifdef OTHER_ROWS
// As another version may have it, for tests of upgrades.
struct flow_key {
	__u32 protocol;
	struct tuple tuple;
};
#else
struct flow_key {
	struct tuple tuple;
	__u32 protocol;
};
#endif

// How far a flow of packets is.
enum stage {
	STAGE_OPENING, // the backend has not answered
	STAGE_OPEN,
	STAGE_ENDING, // one side has said that it ends (TCP: FIN; SCTP: SHUTDOWN)
	STAGE_ENDED,  // both have
	STAGE_BROKEN, // RST, ABORT
	STAGES,
};

enum direction {
	FORWARD, // of the packets to the frontend
	REPLY,   // of those of the backend
};

// A flow has two rows, one for each direction. Its key is what a packet says when
// it comes, to is what it says when it goes on: each row is the other's, read
// backwards. So one look is enough to translate a packet, and a row that the kernel
// has thrown out (the map is LRU) is made anew from the other one.
struct flow {
#ifdef OTHER_ROWS
	__u32 before;
#endif
	struct tuple to;
	__be32 tag;      // SCTP: the verification tag of this direction's packets; 0: not seen
	__u32 seen;      // when its last packet came, in 2^30 ns, a bit more than a second
	__u8 direction;
	__u8 stage;
	__u8 ended_by;   // with STAGE_ENDING: the direction of who said so
	__u8 class;      // of the sender; with FLOW_RESETS
	__u32 check;     // ties the row to its key: see read_flow
};

// How versions whose flows have other rows tell each other of those that begin while one
// takes the other's place: see map former. These are the rows of the first version that
// could, and must stay so for ever, with struct tuple: what a later struct flow has
// besides, the flow does without until the versions have changed.
struct told_key {
	struct tuple tuple;
	__u32 protocol;
};

struct told {
	struct tuple to;
	__be32 tag;
	__u32 seen;
	__u8 direction;
	__u8 stage;
	__u8 ended_by;
	__u8 class;
	__u32 check;
};

// Beside a flow's class: it is reset if its backend goes.
#define FLOW_RESETS 0x80

// The later fragments of a packet have no ports.
struct fragments_key {
	struct addr src;
	struct addr dst;
	__u32 id;
	__u32 protocol;
};

struct ports {
	__be16 src;
	__be16 dst;
};

// The node's address on packets that leave by a link; of any link with ifindex 0.
struct masquerade_key {
	__u32 ifindex;
	__u32 v6;
};

// How a program ended. Each is counted, in map outcomes.
enum outcome {
	SOCK_PASSED,    // no Service's
	SOCK_FORWARDED, // to a backend in turn
	SOCK_KEPT,      // the same, to the backend that the sender had, by affinity
	SOCK_SENT,      // a datagram to the backend of those before
	SOCK_REFUSED,   // no backend: the sender was told
	SOCK_LEFT,      // to the packet path: DROP, or a sender whose address is not known
	SOCK_LOST,      // no backend although the pool has some: told as refused

	PACKET_PASSED,      // no Service's
	PACKET_BEGUN,       // to a backend in turn, as the first of its flow
	PACKET_KEPT,        // the same, to the backend that the sender had, by affinity
	PACKET_FORWARDED,   // to the backend of its flow
	PACKET_REPLIED,     // from a backend to who had asked
	PACKET_ERROR,       // an ICMP error about a translated packet, to who had sent that
	PACKET_REFUSED,     // REJECT: the sender was told
	PACKET_RESET,       // its backend is gone, and the Service wants senders to be told
	PACKET_DROPPED,     // DROP
	PACKET_NOT_ADMITTED, // dropped: the sender is in none of the source ranges
	PACKET_UNREACHABLE, // no way to the backend: the sender was told
	PACKET_TOO_BIG,     // for the way to the backend: the sender was told
	PACKET_EXPIRED,     // no hops left: the sender was told
	PACKET_MUTE,        // dropped: the sender was to be told, but its packet is too odd for it
	PACKET_MALFORMED,   // headers that contradict themselves, for the kernel to see
	PACKET_SCTP_FRAGMENT, // dropped: a fragment's SCTP checksum cannot be mended
	PACKET_LOST,        // dropped: no backend although the pool has some
	PACKET_NO_PORT,     // dropped: all ports for masquerading to this backend are in use
	PACKET_NO_MEMORY,   // dropped
	OUTCOMES,
};

// How often programs ended so, on one processor, and how many of these they have
// reported in this tick.
struct tally {
	__u64 count;
	__u32 tick;
	__u32 reported;
};

// A report of one outcome, for who looks on.
struct report {
	__u64 at; // ns, CLOCK_MONOTONIC
	struct tuple asked; // as the sender has it; of a socket src is not known
	struct endpoint backend; // whom it goes to, zeros if to nobody
	__u32 protocol;
	__u32 outcome;
	__u32 link; // by which the packet came in or goes out; 0: a socket
	__u32 process; // of the socket
};
