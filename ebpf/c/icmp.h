// SPDX-License-Identifier: Apache-2.0
// ICMP errors about translated packets. Somebody on the way, or the receiver, quotes
// the packet as it was when it went on; whoever sent it must see it as it was when
// it came. Without that path MTU discovery finds black holes.
#pragma once

#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_helpers.h>

#include "conn.h"
#include "csum.h"
#include "nat.h"
#include "parse.h"
#include "types.h"
#include "way.h"

// find_quoted reads the packet that an ICMP error is about, and finds its flow: the
// row of the direction that the error itself goes.
__noinline int find_quoted(struct __sk_buff *skb, struct packet *quoted, struct flow *f)
{
	if (!quoted || !f)
		return NEVER;
	if (!parse_ip(skb, quoted) || quoted->fragment == LATER || !has_ports(quoted->key.protocol) || !parse_ports(skb, quoted))
		return false;
	struct flow_key key = {.tuple = reversed(&quoted->key.tuple), .protocol = quoted->key.protocol};
	return read_flow(&key, f) && !is_over(f, key.protocol, ticks());
}

// rewrite_error translates the error and what it quotes. The checksum of the quoted
// transport header, of which the rest of its packet is missing, nobody can check.
__noinline int rewrite_error(struct __sk_buff *skb, const struct packet *p, const struct packet *quoted, const struct flow *f, __u8 hops)
{
	if (!p || !quoted || !f)
		return NEVER;
	struct tuple outer = {.src = p->key.tuple.src, .dst = f->to.dst};
	if (same_addr(&outer.src.addr, &quoted->key.tuple.dst.addr))
		outer.src.addr = f->to.src.addr; // from the receiver, whom the sender does not know
	struct tuple inner = reversed(&f->to);
	const struct tuple *had = &p->key.tuple, *quotes = &quoted->key.tuple;
	__u64 outside = replace_addr(replace_addr(0, &had->src.addr, &outer.src.addr), &had->dst.addr, &outer.dst.addr);
	__u64 inside = replace_addr(replace_addr(0, &quotes->src.addr, &inner.src.addr), &quotes->dst.addr, &inner.dst.addr);
	if (!rewrite_ip(skb, p, &outer, outside, hops))
		return false;
	if (!(p->v6 ? write_v6(skb, quoted, &inner, 0) : write_v4(skb, quoted, &inner, inside, 0)))
		return false;
	__u32 *ports = at(skb, quoted->l4, sizeof(*ports));
	if (!ports)
		return false;
	*ports = ports_of(&inner);

	// An IPv4 header sums up to the same with any addresses, and is no part of the
	// checksum outside of the quote.
	__u64 change = replace(p->v6 ? inside : 0, ports_of(quotes), ports_of(&inner));
	__u32 checksum = p->l4 + offsetof(struct icmp_header, checksum);
	if (bpf_l4_csum_replace(skb, checksum, 0, fold32(change), 0))
		return false;
	return !p->v6 || fix_transport(skb, checksum, false, outside, 0);
}
