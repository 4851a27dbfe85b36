// SPDX-License-Identifier: Apache-2.0
// What becomes of a new flow: Table.Lookup of proxy/service in C.
#pragma once

#include <linux/bpf.h>
#include <linux/errno.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"
#include "report.h"
#include "types.h"

#define NSEC_PER_SEC 1000000000ULL

static __always_inline bool same_addr(const struct addr *a, const struct addr *b)
{
	return a->w[0] == b->w[0] && a->w[1] == b->w[1] && a->w[2] == b->w[2] && a->w[3] == b->w[3];
}

static __always_inline bool same_endpoint(const struct endpoint *a, const struct endpoint *b)
{
	return a->port == b->port && same_addr(&a->addr, &b->addr);
}

static __always_inline bool is_v4(const struct addr *a)
{
	return a->w[0] == 0 && a->w[1] == 0 && a->w[2] == bpf_htonl(0xffff);
}

static __always_inline bool is_loopback(const struct addr *a)
{
	if (is_v4(a))
		return (a->w[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return a->w[0] == 0 && a->w[1] == 0 && a->w[2] == 0 && a->w[3] == bpf_htonl(1);
}

static __always_inline void set_v4(struct addr *a, __be32 ip)
{
	a->w[0] = 0;
	a->w[1] = 0;
	a->w[2] = bpf_htonl(0xffff);
	a->w[3] = ip;
}

// read_frontend copies a row. It is false if the row is none or went just now.
static __always_inline bool read_frontend(const struct frontend_key *key, struct frontend *out)
{
	const struct frontend *f = bpf_map_lookup_elem(&frontends, key);
	if (!f)
		return false;
	__builtin_memcpy(out->paths, f->paths, sizeof(out->paths));
	out->id = f->id;
	out->origin = f->origin;
	out->flags = f->flags;
	barrier();
	return f->key.port == key->port && f->key.protocol == key->protocol && same_addr(&f->key.addr, &key->addr);
}

// find_frontend looks for the frontend of the destination in key: of the address
// itself, else of node ports. own says that the sender is the node, which alone
// can mean the node by a loopback address.
static __always_inline bool find_frontend(struct frontend_key *key, bool own, struct frontend *out)
{
	if (read_frontend(key, out))
		return true;
	struct addr addr = key->addr;
	if (is_v4(&addr) && is_loopback(&addr))
		addr.w[3] = bpf_htonl(0x7f000001); // stands for all
	const struct node_addr *here = bpf_map_lookup_elem(&node_addrs, &addr);
	if (!here || !here->node_ports || (!own && is_loopback(&addr)))
		return false;
	if (!is_v4(&key->addr))
		key->addr.w[2] = 0;
	key->addr.w[0] = 0;
	key->addr.w[1] = 0;
	key->addr.w[3] = 0;
	return read_frontend(key, out);
}

// admits says whether a frontend with FRONTEND_SOURCES allows a sender.
static __always_inline bool admits(const struct frontend *f, const struct addr *sender)
{
	struct source_key key = {.prefixlen = 32 + 128, .frontend = bpf_htonl(f->id), .addr = *sender};
	return bpf_map_lookup_elem(&sources, &key) != NULL;
}

// is_member says whether a backend is one of a pool's that have all of want.
static __always_inline bool is_member(struct generation now, const struct endpoint *backend, __u32 want)
{
	struct member_key key = {.generation = now.id, .backend = *backend};
	const __u32 *has = bpf_map_lookup_elem(&members, &key);
	return has && (*has & want) == want;
}

static __always_inline bool read_backend(__u32 generation, __u32 index, struct endpoint *out)
{
	struct backend_key key = {.generation = generation, .index = index};
	const struct backend *b = bpf_map_lookup_elem(&backends, &key);
	if (!b)
		return false;
	out->addr = b->addr;
	out->port = b->port;
	out->pad = 0;
	barrier();
	return b->generation == generation;
}

static __always_inline struct generation read_generation(const struct pool *pool)
{
	struct generation now;
	*(__u64 *)&now = *(const volatile __u64 *)&pool->now;
	return now;
}

// take_turn gives a new flow the pool's next backend. A generation that goes while
// it is read is tried once more as the one that took its place.
static __always_inline bool take_turn(__u32 number, const struct pool *pool, struct endpoint *out)
{
	struct turn *t = bpf_map_lookup_elem(&turns, &number);
	if (!t)
		return false;
	__u64 turn = __sync_fetch_and_add(&t->taken, 1);
	for (int i = 0; i < 2; i++) {
		struct generation now = read_generation(pool);
		if (now.count && read_backend(now.id, turn % now.count, out))
			return true;
	}
	return false;
}

// choose_backend gives a new flow of a sender its backend: with affinity the one
// that it had, else the next in turn. It returns an outcome of the socket path.
static __always_inline int choose_backend(__u32 number, struct affinity_key *sender, struct endpoint *out)
{
	const struct pool *pool = bpf_map_lookup_elem(&pools, &number);
	if (!pool)
		return SOCK_LOST;
	__u64 lasts = pool->affinity * NSEC_PER_SEC;
	if (!lasts)
		return take_turn(number, pool, out) ? SOCK_FORWARDED : SOCK_LOST;

	sender->pool = number;
	__u64 now = bpf_ktime_get_ns();
	struct affinity *had = bpf_map_lookup_elem(&affinities, sender);
	if (had && now - had->last <= lasts) {
		*out = had->backend;
		if (is_member(read_generation(pool), out, MEMBER_TURNS)) {
			had->last = now;
			struct turn *t = bpf_map_lookup_elem(&turns, &number);
			if (t)
				__sync_fetch_and_add(&t->kept, 1);
			return SOCK_KEPT;
		}
	}
	if (!take_turn(number, pool, out))
		return SOCK_LOST;
	struct affinity has = {.backend = *out, .last = now};
	bpf_map_update_elem(&affinities, sender, &has, BPF_ANY);
	return SOCK_FORWARDED;
}
