// SPDX-License-Identifier: Apache-2.0
// The flows of the packet path: the connection table.
#pragma once

#include <linux/bpf.h>
#include <linux/in.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

#include "lb.h"
#include "parse.h"
#include "types.h"

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

// Where programs tell each other of flows that begin, while those of one version take
// the place of another's, link by link: each version keeps its flows in a table of its
// own, of another size or with other rows. Whatever flow begins is told here, too, and
// what is not found is looked for. Empty at all other times.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_LRU_HASH);
		__uint(max_entries, 16384);
		__type(key, struct told_key);
		__type(value, struct told);
	});
} former SEC(".maps");

// Whether a flow has ever begun. On most nodes none does, where all senders have
// sockets that are translated: then no packet needs to be looked up.
enum flows_are {
	NONE_BEGUN,
	SOME_BEGUN,
	HANDED_OVER, // and no more shall: those that have go on, whatever the Table says, until netfilter has them
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} begun SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct fragments_key);
	__type(value, struct ports);
} fragments SEC(".maps");

// How many ticks a flow lasts after its last packet, by stage. They are those of
// the kernel's connection tracking as Kubernetes sets them. What lasts too long is
// the first to go when the table is full; only ports of masquerading wait for it.
static const __u32 tcp_lifetimes[STAGES] = {60, 86400, 3600, 60, 10};
static const __u32 udp_lifetimes[STAGES] = {30, 120, 120, 120, 120};
static const __u32 sctp_lifetimes[STAGES] = {60, 86400, 60, 10, 10};

static __always_inline bool is_over(const struct flow *f, __u32 protocol, __u32 now)
{
	__u32 stage = f->stage;
	if (stage >= STAGES)
		return true;
	__u32 lasts = protocol == IPPROTO_TCP ? tcp_lifetimes[stage] :
		      protocol == IPPROTO_UDP ? udp_lifetimes[stage] : sctp_lifetimes[stage];
	return now - f->seen > lasts;
}

static __always_inline bool has_begun(void)
{
	__u32 zero = 0;
	const __u32 *b = bpf_map_lookup_elem(&begun, &zero);
	return !b || *b != NONE_BEGUN;
}

static __always_inline bool handed_over(void)
{
	__u32 zero = 0;
	const __u32 *b = bpf_map_lookup_elem(&begun, &zero);
	return b && *b == HANDED_OVER;
}

// note_begun comes before the first flow's rows.
static __always_inline void note_begun(void)
{
	__u32 zero = 0;
	__u32 *b = bpf_map_lookup_elem(&begun, &zero);
	if (b && *b == NONE_BEGUN)
		*b = SOME_BEGUN;
}

static __always_inline struct tuple reversed(const struct tuple *t)
{
	struct tuple r = {.src = t->dst, .dst = t->src};
	return r;
}

static __always_inline bool same_tuple(const struct tuple *a, const struct tuple *b)
{
	return same_endpoint(&a->src, &b->src) && same_endpoint(&a->dst, &b->dst);
}

static __always_inline __u32 check_of(const struct tuple *t)
{
	return t->src.addr.w[3] ^ (t->dst.addr.w[3] << 1) ^ t->dst.addr.w[1] ^ ((__u32)t->src.port << 16) ^ t->dst.port;
}

static __always_inline void *told_flows(void)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(&former, &zero);
}

__noinline int read_told(const struct flow_key *key, struct flow *out)
{
	void *table = told_flows();
	if (!key || !out || !table)
		return NEVER;
	struct told_key k = {.tuple = key->tuple, .protocol = key->protocol};
	const struct told *t = bpf_map_lookup_elem(table, &k);
	if (!t)
		return false;
	out->to = t->to;
	out->tag = t->tag;
	out->seen = t->seen;
	out->direction = t->direction;
	out->stage = t->stage;
	out->ended_by = t->ended_by;
	out->class = t->class;
	out->check = check_of(&key->tuple);
	barrier();
	return ((const volatile struct told *)t)->check == out->check;
}

// read_own copies a row. The kernel may give the memory of one that is thrown out
// to another while it is copied: then check is another's.
static __always_inline bool read_own(const struct flow_key *key, struct flow *out)
{
	const struct flow *f = bpf_map_lookup_elem(&flows, key);
	if (!f)
		return false;
	*out = *f;
	barrier();
	return ((const volatile struct flow *)f)->check == check_of(&key->tuple);
}

static __always_inline bool read_flow(const struct flow_key *key, struct flow *out)
{
	return read_own(key, out) || read_told(key, out);
}

static __always_inline __u8 stage_of_tcp(const struct packet *p, const struct flow *f)
{
	if (p->told & TCP_RST)
		return STAGE_BROKEN;
	if (p->told & TCP_FIN) {
		if (f->stage == STAGE_ENDING && f->ended_by != f->direction)
			return STAGE_ENDED;
		return f->stage < STAGE_ENDING ? STAGE_ENDING : f->stage;
	}
	return f->stage == STAGE_OPENING && f->direction == REPLY ? STAGE_OPEN : f->stage;
}

static __always_inline __u8 stage_of_sctp(const struct packet *p, const struct flow *f)
{
	switch (p->told) {
	case SCTP_ABORT:
		return STAGE_BROKEN;
	case SCTP_SHUTDOWN:
		return f->stage < STAGE_ENDING ? STAGE_ENDING : f->stage;
	case SCTP_SHUTDOWN_COMPLETE:
		return STAGE_ENDED;
	case SCTP_INIT: // both ends may begin at once, and an end may begin anew
	case SCTP_INIT_ACK:
	case SCTP_ERROR:
		return f->stage;
	}
	return f->stage == STAGE_OPENING && f->direction == REPLY ? STAGE_OPEN : f->stage;
}

// stage_after is how far a flow is after a packet.
static __always_inline __u8 stage_after(const struct packet *p, const struct flow *f)
{
	if (p->key.protocol == IPPROTO_TCP)
		return stage_of_tcp(p, f);
	if (p->key.protocol == IPPROTO_SCTP)
		return stage_of_sctp(p, f);
	return f->direction == REPLY ? STAGE_OPEN : f->stage;
}

// other_row makes the row of the other direction, and its key.
static __always_inline void other_row(const struct flow_key *key, const struct flow *f, struct flow_key *other, struct flow *row)
{
	*other = *key;
	other->tuple = reversed(&f->to);
	*row = *f;
	row->to = reversed(&key->tuple);
	row->direction = !f->direction;
	row->check = check_of(&other->tuple);
}

// make_told makes what others are told of a row.
__noinline int make_told(const struct flow_key *key, const struct flow *f, struct told_key *k, struct told *row)
{
	if (!key || !f || !k || !row)
		return NEVER;
	k->tuple = key->tuple;
	k->protocol = key->protocol;
	row->to = f->to;
	row->tag = f->tag;
	row->seen = f->seen;
	row->direction = f->direction;
	row->stage = f->stage;
	row->ended_by = f->ended_by;
	row->class = f->class;
	row->check = f->check;
	return 0;
}

// tell_flow tells other versions of a new flow, whose rows are there.
__noinline int tell_flow(const struct flow_key *key, const struct flow *f)
{
	void *table = told_flows();
	if (!key || !f || !table)
		return NEVER;
	struct flow_key other = {};
	struct flow back = {};
	struct told_key k = {};
	struct told row = {};
	other_row(key, f, &other, &back);
	make_told(&other, &back, &k, &row);
	bpf_map_update_elem(table, &k, &row, BPF_ANY);
	make_told(key, f, &k, &row);
	bpf_map_update_elem(table, &k, &row, BPF_ANY);
	return 0;
}

// follow keeps both rows up to date. Mostly there is nothing to do: packets that
// say nothing of the stage write once a tick.
__noinline int follow(const struct packet *p, struct flow *f)
{
	if (!p || !f)
		return NEVER;
	__u32 now = ticks();
	__u8 stage = p->fragment == LATER ? f->stage : stage_after(p, f);
	__be32 tag = p->tag ? p->tag : f->tag; // INIT has none (RFC 9260, section 8.5.1)
	if (stage == f->stage && now == f->seen && tag == f->tag)
		return 0;
	if (stage == STAGE_ENDING && f->stage < STAGE_ENDING)
		f->ended_by = f->direction;
	f->stage = stage;
	f->seen = now;
	f->tag = tag;
	// Before kernel 6.2 a map takes nothing but what is on the stack.
	struct flow_key other = p->key;
	struct flow row = *f;
	bpf_map_update_elem(&flows, &other, &row, BPF_ANY);
	other_row(&p->key, f, &other, &row);
	const struct flow *there = bpf_map_lookup_elem(&flows, &other);
	row.tag = there ? there->tag : 0;
	if (!there || same_tuple(&there->to, &row.to))
		bpf_map_update_elem(&flows, &other, &row, BPF_ANY);
	return 0;
}

// may_go_on says whether a packet belongs to the flow whose row was found. One
// with which a flow may begin does not if the flow is over, or if its backend
// serves no more. With FLOW_RESETS the latter is true of all.
__noinline int may_go_on(const struct packet *p, const struct flow *f)
{
	if (!p || !f)
		return NEVER;
	if (is_over(f, p->key.protocol, ticks()))
		return false;
	if (f->direction == REPLY)
		return true;
	if (!p->begins && (!(f->class & FLOW_RESETS) || p->told & TCP_RST))
		return true;
	if (p->begins && f->stage >= STAGE_ENDED)
		return false;
	if (handed_over())
		return true;
	__u8 class = f->class & ~FLOW_RESETS;
	struct frontend_key key = {.addr = p->key.tuple.dst.addr, .port = p->key.tuple.dst.port, .protocol = p->key.protocol};
	struct frontend frontend;
	if (!find_frontend(&key, p->own, &frontend) || class >= CLASSES)
		return false;
	struct path path = frontend.paths[class];
	const struct pool *pool = bpf_map_lookup_elem(&pools, &path.pool);
	if (path.verdict != VERDICT_FORWARD || !pool)
		return false;
	return !(pool->flags & POOL_MEMBERS) || is_member(read_generation(pool), &f->to.dst, MEMBER_SERVES);
}

// forget removes both rows of a flow.
__noinline int forget(const struct flow_key *key, const struct flow *f)
{
	if (!key || !f)
		return NEVER;
	struct flow_key other;
	struct flow row;
	other_row(key, f, &other, &row);
	const struct flow *there = bpf_map_lookup_elem(&flows, &other);
	if (there && same_tuple(&there->to, &row.to))
		bpf_map_delete_elem(&flows, &other);
	other = *key;
	return bpf_map_delete_elem(&flows, &other);
}

// remember_ports keeps the ports of a first fragment for the later ones.
static __always_inline void remember_ports(const struct packet *p)
{
	struct fragments_key key = {.src = p->key.tuple.src.addr, .dst = p->key.tuple.dst.addr, .id = p->id, .protocol = p->key.protocol};
	struct ports ports = {p->key.tuple.src.port, p->key.tuple.dst.port};
	bpf_map_update_elem(&fragments, &key, &ports, BPF_ANY);
}

__noinline int recall_ports(struct packet *p)
{
	if (!p)
		return NEVER;
	struct fragments_key key = {.src = p->key.tuple.src.addr, .dst = p->key.tuple.dst.addr, .id = p->id, .protocol = p->key.protocol};
	const struct ports *ports = bpf_map_lookup_elem(&fragments, &key);
	if (!ports)
		return false;
	p->key.tuple.src.port = ports->src;
	p->key.tuple.dst.port = ports->dst;
	return true;
}
