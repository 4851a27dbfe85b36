// SPDX-License-Identifier: Apache-2.0
// Translation: which addresses and ports a packet gets, and how it gets them.
#pragma once

#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_helpers.h>

#include "conn.h"
#include "csum.h"
#include "parse.h"
#include "sctp.h"
#include "settings.h"
#include "types.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct masquerade_key);
	__type(value, struct addr);
} masquerade_addrs SEC(".maps");

static __always_inline bool masquerade_addr(__u32 ifindex, __u8 v6, struct addr *out)
{
	struct masquerade_key key = {.ifindex = ifindex, .v6 = v6};
	const struct addr *a = bpf_map_lookup_elem(&masquerade_addrs, &key);
	if (!a) {
		key.ifindex = 0;
		a = bpf_map_lookup_elem(&masquerade_addrs, &key);
	}
	if (!a)
		return false;
	*out = *a;
	return true;
}

// write_row makes a row if there is none with its key, or one of a flow that is
// over.
static __always_inline bool write_row(const struct flow_key *key, const struct flow *row)
{
	long err = bpf_map_update_elem(&flows, key, row, BPF_NOEXIST);
	if (err != -EEXIST)
		return !err;
	const struct flow *there = bpf_map_lookup_elem(&flows, key);
	if (there && !is_over(there, key->protocol, row->seen))
		return false;
	bpf_map_delete_elem(&flows, key);
	return !bpf_map_update_elem(&flows, key, row, BPF_NOEXIST);
}

#define PORT_TRIES 16

// claim makes the rows of a new flow. f->to says where it goes; the source port is
// only a wish, and with change_port not even that: a flow to the same backend may
// have it. Nobody needs to give a port back: it is free when the flow is over.
__noinline int claim(const struct flow_key *key, struct flow *f, bool change_port)
{
	if (!key || !f)
		return NEVER;
	note_begun();
	struct flow_key k;
	struct flow row;
	for (int i = 0; i < PORT_TRIES; i++) {
		if (change_port)
			f->to.src.port = bpf_htons(masquerade_ports.first + bpf_get_prandom_u32() % masquerade_ports.count);
		other_row(key, f, &k, &row);
		change_port = true;
		if (!write_row(&k, &row))
			continue;
		k = *key;
		row = *f;
		long err = bpf_map_update_elem(&flows, &k, &row, BPF_NOEXIST);
		if (!err)
			return 0;
		other_row(key, f, &k, &row);
		bpf_map_delete_elem(&flows, &k);
		k = *key;
		// Another processor has the flow's next packet, and was faster.
		return err == -EEXIST && read_own(&k, f) ? 0 : PACKET_NO_MEMORY;
	}
	return PACKET_NO_PORT;
}

// write_v4 gives the IP header its new addresses and takes hops off. Its sum stays
// as it was.
static __always_inline bool write_v4(struct __sk_buff *skb, const struct packet *p, const struct tuple *to, __u64 addrs, __u8 hops)
{
	const struct iphdr *ip = at(skb, p->l3, sizeof(*ip));
	if (!ip)
		return false;
	struct { // the header's end
		__u8 ttl, protocol;
		__u16 check;
		__be32 saddr, daddr;
	} end = {ip->ttl - hops, ip->protocol, 0, to->src.addr.w[3], to->dst.addr.w[3]};
	__u64 sum = replace(addrs + (__u16)~ip->check, bpf_htons(ip->ttl << 8), bpf_htons(end.ttl << 8));
	end.check = ~fold16(sum);
	return put(skb, p->l3 + offsetof(struct iphdr, ttl), &end, sizeof(end));
}

static __always_inline bool write_v6(struct __sk_buff *skb, const struct packet *p, const struct tuple *to, __u8 hops)
{
	const struct ipv6hdr *ip = at(skb, p->l3, sizeof(*ip));
	if (!ip)
		return false;
	struct { // the header's end
		__be16 payload_len;
		__u8 nexthdr, hop_limit;
		struct addr saddr, daddr;
	} end = {ip->payload_len, ip->nexthdr, ip->hop_limit - hops, to->src.addr, to->dst.addr};
	return put(skb, p->l3 + offsetof(struct ipv6hdr, payload_len), &end, sizeof(end));
}

// rewrite_ip rewrites the IP header, and what a device may have found the packet to
// sum up to (CHECKSUM_COMPLETE).
static __always_inline bool rewrite_ip(struct __sk_buff *skb, const struct packet *p, const struct tuple *to, __u64 addrs, __u8 hops)
{
	if (!p->v6)
		return write_v4(skb, p, to, addrs, hops);
	if (!write_v6(skb, p, to, hops))
		return false;
	bpf_csum_update(skb, fold32(replace(addrs, bpf_htons(p->ttl), bpf_htons(p->ttl - hops))));
	return true;
}

static __always_inline __u32 ports_of(const struct tuple *t)
{
	return t->src.port | (__u32)t->dst.port << 16;
}

// rewrite_sctp: a checksum of zero is one that the device makes, or whoever takes
// the packet trusts in. (A real one is zero once in 2^32 packets.)
static __always_inline bool rewrite_sctp(struct __sk_buff *skb, const struct packet *p, __u32 from, __u32 to)
{
	const struct sctphdr *sctp = at(skb, p->l4, sizeof(*sctp));
	if (!sctp)
		return false;
	__le32 had = sctp->checksum, gets = had ? had ^ crc_change(from ^ to, p->l4_len) : 0;
	if (!put(skb, p->l4, &to, sizeof(to)) || !put(skb, p->l4 + offsetof(struct sctphdr, checksum), &gets, sizeof(gets)))
		return false;
	bpf_csum_update(skb, fold32(replace(replace(0, from, to), had, gets)));
	return true;
}

// rewrite translates a packet. False says that nothing can be done with it.
__noinline int rewrite(struct __sk_buff *skb, const struct packet *p, const struct tuple *to, __u8 hops)
{
	if (!p || !to)
		return NEVER;
	__u64 addrs = replace_addr(replace_addr(0, &p->key.tuple.src.addr, &to->src.addr), &p->key.tuple.dst.addr, &to->dst.addr);
	if (!rewrite_ip(skb, p, to, addrs, hops))
		return false;
	if (p->fragment == LATER)
		return true;
	__u32 had = ports_of(&p->key.tuple), gets = ports_of(to);
	if (p->key.protocol == IPPROTO_SCTP)
		return had == gets || rewrite_sctp(skb, p, had, gets);
	if (had != gets && !put(skb, p->l4, &gets, sizeof(gets)))
		return false;
	bool udp = p->key.protocol == IPPROTO_UDP;
	__u32 offset = p->l4 + (udp ? 6 : 16);
	return fix_transport(skb, offset, udp, addrs, had == gets ? 0 : replace(0, had, gets));
}
