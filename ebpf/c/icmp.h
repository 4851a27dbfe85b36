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

// rewrite_quote translates what an error quotes. The checksum of the quoted transport
// header, of which the rest of its packet is missing, nobody can check.
__noinline int rewrite_quote(struct __sk_buff *skb, const struct packet *p, const struct packet *quoted, const struct flow *f)
{
	if (!p || !quoted || !f)
		return NEVER;
	struct tuple to = reversed(&f->to);
	const struct tuple *had = &quoted->key.tuple;
	__u64 addrs = replace_addr(replace_addr(0, &had->src.addr, &to.src.addr), &had->dst.addr, &to.dst.addr);
	if (!(p->v6 ? write_v6(skb, quoted, &to, 0) : write_v4(skb, quoted, &to, addrs, 0)))
		return false;
	__u32 ports = ports_of(&to);
	if (!put(skb, quoted->l4, &ports, sizeof(ports)))
		return false;
	// An IPv4 header sums up to the same with any addresses.
	__u64 change = replace(p->v6 ? addrs : 0, ports_of(had), ports);
	return !bpf_l4_csum_replace(skb, p->l4 + offsetof(struct icmp_header, checksum), 0, fold32(change), 0);
}

// rewrite_error translates the error itself. The receiver of the packet that it is
// about, whom the sender does not know, is shown as whom the sender does.
__noinline int rewrite_error(struct __sk_buff *skb, const struct packet *p, const struct packet *quoted, const struct flow *f, __u8 hops)
{
	if (!p || !quoted || !f)
		return NEVER;
	const struct tuple *had = &p->key.tuple;
	struct tuple to = {.src = had->src, .dst = f->to.dst};
	if (same_addr(&to.src.addr, &quoted->key.tuple.dst.addr))
		to.src.addr = f->to.src.addr;
	__u64 addrs = replace_addr(replace_addr(0, &had->src.addr, &to.src.addr), &had->dst.addr, &to.dst.addr);
	if (!rewrite_ip(skb, p, &to, addrs, hops))
		return false;
	return !p->v6 || fix_transport(skb, p->l4 + offsetof(struct icmp_header, checksum), false, addrs, 0);
}
