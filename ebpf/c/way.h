// SPDX-License-Identifier: Apache-2.0
// Where a translated packet goes: the routes decide, and it goes there at once.
//
// It does not go up through the kernel's own forwarding. There its source would be
// looked at, and a virtual IP does not come from a pod's link (rp_filter), nor the
// node's address from outside (a martian); and connection tracking, which saw one
// direction of the flow only, would take the other one for an attack.
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

#include "parse.h"
#include "settings.h"
#include "types.h"

#ifndef AF_INET
#define AF_INET 2
#define AF_INET6 10
#endif

#define LOOPBACK 1 // the interface index of lo, in every network namespace

// Other programs of the link, and then the kernel, go on with the packet.
#define GOES_ON TC_ACT_UNSPEC

enum ways {
	WAY_LINK,  // to next by the link ifindex
	WAY_NODE,  // to the node itself
	WAY_STACK, // the kernel can do what we cannot
	WAY_TOO_BIG,
	WAY_NONE,
};

struct way {
	__u32 ifindex;
	__u32 mtu; // with WAY_TOO_BIG
	struct bpf_redir_neigh next;
};

// size is the length that must fit: of a packet that the device will cut in
// segments, one segment's. How long the packets of SCTP are that come together cannot be
// asked: one that does not fit is told of when it is sent again, alone.
static __always_inline __u16 size(const struct __sk_buff *skb, const struct packet *p)
{
	__u32 headers = p->l4 - p->l3;
	if (!skb->gso_size)
		return headers + p->l4_len;
	if (skb->gso_size == GSO_BY_FRAGS)
		return headers + sizeof(struct sctphdr);
	return headers + skb->gso_size + (p->key.protocol == IPPROTO_TCP ? sizeof(struct tcphdr) : 8);
}

// find_way asks the routes as the kernel does where address translation is its
// own: about the source that the packet came with and the destination that it gets.
__noinline int find_way(struct __sk_buff *skb, const struct packet *p, const struct addr *dst, struct way *way)
{
	if (!p || !dst || !way)
		return NEVER;
	struct bpf_fib_lookup fib = {
		.family = p->v6 ? AF_INET6 : AF_INET,
		.l4_protocol = p->key.protocol,
		.sport = p->key.tuple.src.port,
		.dport = p->key.tuple.dst.port,
		.tot_len = size(skb, p),
		.ifindex = skb->ifindex,
	};
	if (p->v6) {
		__builtin_memcpy(fib.ipv6_src, &p->key.tuple.src.addr, sizeof(fib.ipv6_src));
		__builtin_memcpy(fib.ipv6_dst, dst, sizeof(fib.ipv6_dst));
	} else {
		fib.tos = p->tos;
		fib.ipv4_src = p->key.tuple.src.addr.w[3];
		fib.ipv4_dst = dst->w[3];
	}
	switch (bpf_fib_lookup(skb, &fib, sizeof(fib), fib_flags)) {
	case BPF_FIB_LKUP_RET_SUCCESS:
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		way->ifindex = fib.ifindex;
		way->next.nh_family = fib.family;
		__builtin_memcpy(way->next.ipv6_nh, fib.ipv6_dst, sizeof(fib.ipv6_dst));
		return WAY_LINK;
	case BPF_FIB_LKUP_RET_NOT_FWDED:
		return WAY_NODE;
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		way->mtu = fib.mtu_result;
		return WAY_TOO_BIG;
	case BPF_FIB_LKUP_RET_BLACKHOLE:
	case BPF_FIB_LKUP_RET_UNREACHABLE:
	case BPF_FIB_LKUP_RET_PROHIBIT:
		return WAY_NONE;
	}
	return WAY_STACK;
}

static __always_inline void swap_macs(struct __sk_buff *skb, const struct packet *p)
{
	const struct ethhdr *eth = at(skb, 0, sizeof(*eth));
	if (!p->l2 || !eth)
		return;
	unsigned char swapped[2 * ETH_ALEN];
	__builtin_memcpy(swapped, eth->h_source, ETH_ALEN);
	__builtin_memcpy(swapped + ETH_ALEN, eth->h_dest, ETH_ALEN);
	put(skb, 0, swapped, sizeof(swapped));
}

// to_node gives a packet to a socket of the node. By lo it goes with a route
// already found, as the node's own packets do, and nobody asks where it is from. The
// port of a bridge took it for another host's. IPv6 does not ask anyway.
static __always_inline int to_node(struct __sk_buff *skb, const struct packet *p)
{
	if (!p->v6) {
		bpf_skb_change_type(skb, PACKET_HOST);
		return bpf_redirect_neigh(LOOPBACK, NULL, 0, 0);
	}
	if (!p->own)
		return GOES_ON;
	swap_macs(skb, p);
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

static __always_inline int depart(struct __sk_buff *skb, const struct packet *p, int where, struct way *way)
{
	if (where == WAY_LINK)
		return bpf_redirect_neigh(way->ifindex, &way->next, sizeof(way->next), 0);
	return where == WAY_NODE ? to_node(skb, p) : GOES_ON;
}

// send_back sends the answer that a packet was made into to who sent the packet.
static __always_inline int send_back(struct __sk_buff *skb, const struct packet *p)
{
	if (p->own && !p->v6)
		return bpf_redirect_neigh(LOOPBACK, NULL, 0, 0);
	swap_macs(skb, p);
	return bpf_redirect(skb->ifindex, p->own ? BPF_F_INGRESS : 0);
}
