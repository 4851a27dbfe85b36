// SPDX-License-Identifier: Apache-2.0
// What a sender is told whose packet goes nowhere: TCP RST, SCTP ABORT, or an ICMP
// error. The packet itself is made into the answer.
//
// Whether the packet's checksum is there, or for a device to make when the packet
// leaves (CHECKSUM_PARTIAL), no program can see or change; the device would then
// sum up what the answer has in that place, and write the result over the field.
// So the answers are such that both come to the same.
#pragma once

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "csum.h"
#include "parse.h"
#include "nat.h"
#include "sctp.h"
#include "types.h"
#include "way.h"

#define ANSWER_HOPS 64

// turn_round cuts the packet to l4_len bytes behind the IP header, and makes it one
// from the receiver to the sender.
static __always_inline bool turn_round(struct __sk_buff *skb, const struct packet *p, __u16 l4_len)
{
	if (bpf_skb_change_tail(skb, p->l4 + l4_len, 0))
		return false;
	struct tuple back = reversed(&p->key.tuple);
	__be16 length = bpf_htons(p->l4 + l4_len - p->l3 - (p->v6 ? sizeof(struct ipv6hdr) : 0));
	if (p->v6)
		return put(skb, p->l3 + offsetof(struct ipv6hdr, payload_len), &length, sizeof(length)) &&
		       write_v6(skb, p, &back, p->ttl - ANSWER_HOPS);
	const struct iphdr *ip = at(skb, p->l3, sizeof(*ip));
	if (!ip)
		return false;
	struct {
		__be16 length, id, fragment;
	} middle = {length, 0, bpf_htons(IP_DONT)};
	__u64 sum = replace(replace(replace(0, ip->tot_len, length), ip->id, 0), ip->frag_off, middle.fragment);
	return put(skb, p->l3 + offsetof(struct iphdr, tot_len), &middle, sizeof(middle)) &&
	       write_v4(skb, p, &back, sum, p->ttl - ANSWER_HOPS);
}

// The pseudo header (RFC 9293, section 3.1; RFC 8200, section 8.1) of a packet with
// these addresses, whichever way it goes.
static __always_inline __u64 pseudo_header(const struct packet *p, __u8 protocol, __u32 length)
{
	__u64 sum = bpf_htons(protocol) + (__u64)bpf_htonl(length);
	if (p->v6)
		return add_addr(add_addr(sum, &p->key.tuple.src.addr), &p->key.tuple.dst.addr);
	return sum + p->key.tuple.src.addr.w[3] + p->key.tuple.dst.addr.w[3];
}

// reset answers a segment by RST (RFC 9293, section 3.10.7.1). With p the sum of the
// pseudo header and h that of the TCP header, the field has to be -(p+h), or p if
// the device is to make that of it. The window, which means nothing in a RST, makes
// h = -2p, and both are p.
__noinline int reset(struct __sk_buff *skb, const struct packet *p)
{
	if (!p)
		return NEVER;
	const struct tcphdr *tcp = at(skb, p->l4, sizeof(*tcp));
	if (!tcp || tcp->doff * 4U > p->l4_len)
		return false;
	bool has_ack = p->told & TCP_ACK;
	__be32 seq = has_ack ? tcp->ack_seq : 0;
	__u32 length = p->l4_len - tcp->doff * 4U + !!(p->told & TCP_SYN) + !!(p->told & TCP_FIN);
	__be32 ack = has_ack ? 0 : bpf_htonl(bpf_ntohl(tcp->seq) + length);
	if (!turn_round(skb, p, sizeof(struct tcphdr)))
		return false;
	__u16 pseudo = fold16(pseudo_header(p, IPPROTO_TCP, sizeof(struct tcphdr)));
	__be32 flags = bpf_htonl((sizeof(struct tcphdr) / 4) << 28 | (has_ack ? TCP_RST : TCP_RST | TCP_ACK) << 16);
	__u32 ports = p->key.tuple.dst.port | (__u32)p->key.tuple.src.port << 16;
	__u16 window = ~fold16((__u64)ports + seq + ack + flags + pseudo + pseudo);
	__be32 rst[] = {ports, seq, ack, flags | (__u32)window << 16, pseudo}; // and no urgent pointer
	return put(skb, p->l4, rst, sizeof(rst));
}

// abort_init answers an INIT (RFC 9260, section 8.4).
__noinline int abort_init(struct __sk_buff *skb, const struct packet *p)
{
	if (!p)
		return NEVER;
	const struct sctphdr *init = at(skb, p->l4, sizeof(*init));
	if (!init)
		return false;
	bool summed = init->checksum;
	__be32 tag; // that the sender wants to see
	if (bpf_skb_load_bytes(skb, p->l4 + sizeof(*init) + sizeof(struct sctp_chunk), &tag, sizeof(tag)))
		return false;
	struct {
		struct sctphdr header;
		struct sctp_chunk chunk;
	} abort = {
		{.source = p->key.tuple.dst.port, .dest = p->key.tuple.src.port, .tag = tag},
		{.type = SCTP_ABORT, .length = bpf_htons(sizeof(struct sctp_chunk))},
	};
	if (!turn_round(skb, p, sizeof(abort)))
		return false;
	if (summed) {
		// The CRC32c of the packet with zeros in place of ports and tag.
		const __u32 bare = 0x41af1f87;
		abort.header.checksum = bare ^ crc_change(abort.header.source | (__u32)abort.header.dest << 16, 16) ^ crc_change(tag, 12);
	}
	return put(skb, p->l4, &abort, sizeof(abort));
}

// QUOTE is how much of the IP headers, and how much behind them, an ICMP error has
// at most: enough for any receiver to find the socket. Longer headers get no answer.
#define QUOTE 64

struct quote {
	__u8 bytes[QUOTE];
};

// sum_quote sums up a part of the packet.
__noinline int sum_quote(struct __sk_buff *skb, __u32 offset, __u32 length)
{
	struct quote quote = {};
	if (length < 8 || length > QUOTE || bpf_skb_load_bytes(skb, offset, &quote, length))
		return -1;
	return fold16((__u32)bpf_csum_diff(NULL, 0, (__be32 *)&quote, sizeof(quote), 0));
}

// quote cuts the packet to what is quoted, and returns its sum, -1 if it cannot be.
// With r the sum behind the IP headers without the checksum, and s in its place,
// it would be -s after a device has put the checksum there: so s is -r/2, and the
// sum is r/2 with a device and without.
static __always_inline int quote(struct __sk_buff *skb, const struct packet *p, __u32 length)
{
	if (bpf_skb_change_tail(skb, p->l4 + length, 0))
		return -1;
	int headers = sum_quote(skb, p->l3, p->l4 - p->l3);
	int rest = sum_quote(skb, p->l4, length);
	if (headers < 0 || rest < 0)
		return -1;
	__u32 field = p->key.protocol == IPPROTO_UDP ? 6 : p->key.protocol == IPPROTO_TCP ? 16 : 0;
	if (!field)
		return fold16((__u32)headers + (__u32)rest);
	const __u16 *had = at(skb, p->l4 + field, sizeof(*had));
	if (!had)
		return -1;
	__u16 r = half(fold16(replace(rest, *had, 0))), check = ~r;
	if (!put(skb, p->l4 + field, &check, sizeof(check)))
		return -1;
	return fold16((__u32)headers + r);
}

struct icmp4 {
	struct iphdr ip;
	struct icmp_header icmp;
};

struct icmp6 {
	struct ipv6hdr ip;
	struct icmp_header icmp;
};

static __always_inline bool write_icmp4(struct __sk_buff *skb, const struct packet *p, struct icmp_header icmp, __u32 quoted, __u16 sum)
{
	struct icmp4 out = {
		.ip = {
			.version = 4,
			.ihl = sizeof(out.ip) / 4,
			.tot_len = bpf_htons(sizeof(out) + quoted),
			.frag_off = bpf_htons(IP_DONT),
			.ttl = ANSWER_HOPS,
			.protocol = IPPROTO_ICMP,
			.saddr = p->key.tuple.dst.addr.w[3],
			.daddr = p->key.tuple.src.addr.w[3],
		},
		.icmp = icmp,
	};
	const __be32 *w = (const __be32 *)&out;
	out.ip.check = ~fold16((__u64)w[0] + w[1] + w[2] + w[3] + w[4]);
	out.icmp.checksum = ~fold16((__u64)sum + w[5] + w[6]);
	return put(skb, p->l3, &out, sizeof(out));
}

static __always_inline bool write_icmp6(struct __sk_buff *skb, const struct packet *p, struct icmp_header icmp, __u32 quoted, __u16 sum)
{
	__u32 payload = sizeof(struct icmp_header) + quoted;
	const __be32 *w = (const __be32 *)&icmp;
	icmp.checksum = ~fold16(sum + pseudo_header(p, IPPROTO_ICMPV6, payload) + w[0] + w[1]);
	struct icmp6 out = {
		.ip = {.version = 6, .payload_len = bpf_htons(payload), .nexthdr = IPPROTO_ICMPV6, .hop_limit = ANSWER_HOPS},
		.icmp = icmp,
	};
	__builtin_memcpy(&out.ip.saddr, &p->key.tuple.dst.addr, sizeof(struct addr));
	__builtin_memcpy(&out.ip.daddr, &p->key.tuple.src.addr, sizeof(struct addr));
	return put(skb, p->l3, &out, sizeof(out));
}

// Types and codes of ICMP and of ICMPv6.
#define NOTICE(TYPE, CODE, TYPE6, CODE6) ((TYPE) << 24 | (CODE) << 16 | (TYPE6) << 8 | (CODE6))

enum notice {
	PORT_UNREACHABLE = NOTICE(3, 3, 1, 4),
	HOST_UNREACHABLE = NOTICE(3, 1, 1, 0), // IPv6: no route
	HOPS_EXCEEDED = NOTICE(11, 0, 3, 0),
	TOO_BIG = NOTICE(3, 4, 2, 0),
};

// notify makes the packet into an ICMP error about itself (RFC 792, RFC 4443).
__noinline int notify(struct __sk_buff *skb, const struct packet *p, __u32 notice, __u32 mtu)
{
	if (!p)
		return NEVER;
	__u32 length = p->l4_len < QUOTE ? p->l4_len : QUOTE;
	int sum = quote(skb, p, length);
	if (sum < 0)
		return false;
	__u32 quoted = p->l4 - p->l3 + length;
	struct icmp_header icmp = {
		.type = p->v6 ? notice >> 8 : notice >> 24,
		.code = p->v6 ? notice : notice >> 16,
		.rest = bpf_htonl(mtu), // IPv4: the lower half alone (RFC 1191)
	};
	__s32 room = p->v6 ? sizeof(struct icmp6) : sizeof(struct icmp4);
	if (bpf_skb_adjust_room(skb, room, BPF_ADJ_ROOM_MAC, 0))
		return false;
	if (p->v6)
		return write_icmp6(skb, p, icmp, quoted, sum);
	return write_icmp4(skb, p, icmp, quoted, sum);
}

// ends notes how it ends with a packet.
static __always_inline int ends(struct packet *p, __u8 outcome, int action)
{
	p->outcome = outcome;
	return action;
}

// tell sends a notice to who sent the packet.
static __always_inline int tell(struct __sk_buff *skb, struct packet *p, __u32 outcome, enum notice notice, __u32 mtu)
{
	if (p->fragment == LATER || !notify(skb, p, notice, mtu))
		return ends(p, PACKET_MUTE, TC_ACT_SHOT);
	return ends(p, outcome, send_back(skb, p));
}

// refuse_packet tells its sender that nobody is there.
static __always_inline int refuse_packet(struct __sk_buff *skb, struct packet *p, __u32 outcome)
{
	if (p->key.protocol == IPPROTO_UDP)
		return tell(skb, p, outcome, PORT_UNREACHABLE, 0);
	bool made = p->fragment == WHOLE && (p->key.protocol == IPPROTO_TCP ? reset(skb, p) : abort_init(skb, p));
	if (!made)
		return ends(p, PACKET_MUTE, TC_ACT_SHOT);
	return ends(p, outcome, send_back(skb, p));
}
