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
	if (p->v6) {
		struct ipv6hdr *ip = at(skb, p->l3, sizeof(*ip));
		if (!ip)
			return false;
		ip->payload_len = bpf_htons(p->l4 + l4_len - p->l3 - sizeof(*ip));
		ip->hop_limit = ANSWER_HOPS;
		return write_v6(skb, p, &back, 0);
	}
	struct iphdr *ip = at(skb, p->l3, sizeof(*ip));
	if (!ip)
		return false;
	__u64 sum = (__u16)~ip->check;
	__be16 total = bpf_htons(p->l4 + l4_len - p->l3), *ttl = (__be16 *)&ip->ttl, had = *ttl;
	sum = replace(sum, ip->tot_len, total);
	sum = replace(sum, ip->id, 0);
	sum = replace(sum, ip->frag_off, bpf_htons(IP_DONT));
	ip->ttl = ANSWER_HOPS;
	ip->check = ~fold16(replace(sum, had, *ttl));
	ip->tot_len = total;
	ip->id = 0;
	ip->frag_off = bpf_htons(IP_DONT);
	return write_v4(skb, p, &back, 0, 0);
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
	struct tcphdr *rst = at(skb, p->l4, sizeof(*rst));
	if (!rst)
		return false;
	__u16 pseudo = fold16(pseudo_header(p, IPPROTO_TCP, sizeof(*rst)));
	__be32 *words = (__be32 *)rst; // ports, sequence, acknowledgement, flags and window, checksum and urgent pointer
	words[0] = p->key.tuple.dst.port | (__u32)p->key.tuple.src.port << 16;
	words[1] = seq;
	words[2] = ack;
	words[3] = bpf_htonl((sizeof(*rst) / 4) << 28 | (has_ack ? TCP_RST : TCP_RST | TCP_ACK) << 16);
	words[4] = 0;
	__u64 sum = (__u64)words[0] + seq + ack + words[3] + pseudo + pseudo;
	rst->window = ~fold16(sum);
	rst->check = pseudo;
	return true;
}

// abort_init answers an INIT (RFC 9260, section 8.4).
__noinline int abort_init(struct __sk_buff *skb, const struct packet *p)
{
	if (!p)
		return NEVER;
	struct {
		struct sctphdr header;
		__be32 tag; // that the sender wants to see
	} *init = at(skb, p->l4, sizeof(*init));
	if (!init)
		return false;
	__be32 tag = init->tag;
	if (!turn_round(skb, p, sizeof(struct sctphdr)))
		return false;
	struct sctphdr *abort = at(skb, p->l4, sizeof(*abort));
	if (!abort)
		return false;
	__u32 ports = p->key.tuple.dst.port | (__u32)p->key.tuple.src.port << 16;
	*(__u32 *)abort = ports;
	abort->tag = tag;
	abort->chunk = SCTP_ABORT;
	abort->flags = 0;
	abort->length = bpf_htons(4);
	if (abort->checksum) {
		// The CRC32c of the packet with zeros in place of ports and tag.
		const __u32 bare = 0x41af1f87;
		abort->checksum = bare ^ crc_change(ports, 16) ^ crc_change(tag, 12);
	}
	return true;
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
	__u16 *check = at(skb, p->l4 + field, sizeof(*check));
	if (!check)
		return -1;
	__u16 r = half(fold16(replace(rest, *check, 0)));
	*check = ~r;
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
	struct icmp4 *out = at(skb, p->l3, sizeof(*out));
	if (!out)
		return false;
	__u32 total = sizeof(*out) + quoted;
	struct iphdr ip = {
		.version = 4,
		.ihl = sizeof(ip) / 4,
		.tot_len = bpf_htons(total),
		.frag_off = bpf_htons(IP_DONT),
		.ttl = ANSWER_HOPS,
		.protocol = IPPROTO_ICMP,
		.saddr = p->key.tuple.dst.addr.w[3],
		.daddr = p->key.tuple.src.addr.w[3],
	};
	const __be32 *w = (const __be32 *)&ip;
	ip.check = ~fold16((__u64)w[0] + w[1] + w[2] + w[3] + w[4]);
	w = (const __be32 *)&icmp;
	icmp.checksum = ~fold16((__u64)sum + w[0] + w[1]);
	out->ip = ip;
	out->icmp = icmp;
	return true;
}

static __always_inline bool write_icmp6(struct __sk_buff *skb, const struct packet *p, struct icmp_header icmp, __u32 quoted, __u16 sum)
{
	struct icmp6 *out = at(skb, p->l3, sizeof(*out));
	if (!out)
		return false;
	__u32 payload = sizeof(out->icmp) + quoted;
	const __be32 *w = (const __be32 *)&icmp;
	icmp.checksum = ~fold16(sum + pseudo_header(p, IPPROTO_ICMPV6, payload) + w[0] + w[1]);
	__builtin_memset(&out->ip, 0, sizeof(out->ip));
	out->ip.version = 6;
	out->ip.payload_len = bpf_htons(payload);
	out->ip.nexthdr = IPPROTO_ICMPV6;
	out->ip.hop_limit = ANSWER_HOPS;
	__builtin_memcpy(&out->ip.saddr, &p->key.tuple.dst.addr, sizeof(struct addr));
	__builtin_memcpy(&out->ip.daddr, &p->key.tuple.src.addr, sizeof(struct addr));
	__builtin_memcpy(&out->icmp, &icmp, sizeof(out->icmp));
	return true;
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
