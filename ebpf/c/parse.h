// SPDX-License-Identifier: Apache-2.0
// What a packet says, as far as it matters to us.
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "lb.h"
#include "types.h"

#define IP_MORE 0x2000   // more fragments
#define IP_DONT 0x4000   // don't fragment
#define IP_OFFSET 0x1fff // of a fragment, in units of eight bytes

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define SCTP_INIT 1
#define SCTP_INIT_ACK 2
#define SCTP_ABORT 6
#define SCTP_SHUTDOWN 7
#define SCTP_ERROR 9
#define SCTP_SHUTDOWN_COMPLETE 14

// The header of ICMP (RFC 792) and ICMPv6 (RFC 4443).
struct icmp_header {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__be32 rest;
};

#define ICMP_UNREACHABLE 3
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETER_PROBLEM 12

#define ICMPV6_PARAMETER_PROBLEM 4

// The start of an SCTP packet (RFC 9260, section 3.1), and of each of its chunks (3.2).
struct sctphdr {
	__be16 source;
	__be16 dest;
	__be32 tag;
	__le32 checksum;
};

struct sctp_chunk {
	__u8 type;
	__u8 flags;
	__be16 length;
};

// The gso_size of what is several SCTP packets: behind one header each is a fragment, and
// goes as it is.
#define GSO_BY_FRAGS 0xffff

// Functions that are not static are verified once, and not again for each way that
// leads to them; in return each must do without its pointers, which all have.
#define NEVER 0

enum fragment {
	WHOLE,
	FIRST, // has the ports
	LATER,
};

struct packet {
	struct flow_key key;
	__u32 id; // of the fragments of one packet
	__be32 tag; // SCTP: the verification tag
	__u32 link; // by which it comes in or goes out
	__u16 l3; // where the IP header starts
	__u16 l4; // where the transport header starts
	__u16 l4_len;
	__u8 l2; // length of the link's header: ETH_HLEN or 0
	__u8 own; // the node itself sends it
	__u8 v6;
	__u8 fragment;
	__u8 df; // IPv4: it must not be fragmented
	__u8 ttl;
	__u8 tos;
	__u8 told; // TCP: the flags. SCTP: the type of the first chunk. ICMP: the type
	__u8 begins; // a flow may begin with it
	__u8 masquerade; // the flow that begins
	__u8 outcome;
};

// No header that we look at starts further in: an IPv6 header, extension headers,
// and the like quoted in an ICMP error.
#define FAR 0x1ff

// at is len bytes of the packet, NULL if it has not that many there.
static __always_inline void *at(const struct __sk_buff *skb, __u32 offset, __u32 len)
{
	if (offset > FAR)
		return NULL;
	void *start = (void *)(long)skb->data + offset;
	if (start + len > (void *)(long)skb->data_end)
		return NULL;
	return start;
}

// put writes to the packet. A program that wrote through a pointer would have the
// kernel copy every packet whose sender keeps it, as TCP does, before it begins.
static __always_inline bool put(struct __sk_buff *skb, __u32 offset, const void *from, __u32 len)
{
	return !bpf_skb_store_bytes(skb, offset, from, len, 0);
}

static __always_inline bool parse_v4(const struct __sk_buff *skb, struct packet *p)
{
	const struct iphdr *ip = at(skb, p->l3, sizeof(*ip));
	if (!ip || ip->version != 4)
		return false;
	__u32 header = ip->ihl * 4;
	__u32 total = bpf_ntohs(ip->tot_len);
	if (!total && skb->gso_size)
		total = skb->len - p->l3; // more than 16 bits can say (BIG TCP)
	if (header < sizeof(*ip) || total < header)
		return false;
	__u16 fragment = bpf_ntohs(ip->frag_off);
	if (fragment & IP_OFFSET)
		p->fragment = LATER;
	else if (fragment & IP_MORE)
		p->fragment = FIRST;
	p->v6 = 0;
	p->df = (fragment & IP_DONT) != 0;
	p->id = ip->id;
	p->ttl = ip->ttl;
	p->tos = ip->tos;
	p->key.protocol = ip->protocol;
	set_v4(&p->key.tuple.src.addr, ip->saddr);
	set_v4(&p->key.tuple.dst.addr, ip->daddr);
	p->l4 = p->l3 + header;
	p->l4_len = total - header;
	return true;
}

struct fragment_header {
	__u8 next;
	__u8 reserved;
	__be16 offset; // in bits 3 to 15, in units of eight bytes
	__be32 id;
};

struct extension_header {
	__u8 next;
	__u8 length; // in units of eight bytes, without the first; AH: of four, without the first two
};

#define EXTENSIONS 6

static __always_inline bool parse_v6(const struct __sk_buff *skb, struct packet *p)
{
	const struct ipv6hdr *ip = at(skb, p->l3, sizeof(*ip));
	if (!ip || ip->version != 6)
		return false;
	__u32 total = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	if (!ip->payload_len && skb->gso_size)
		total = skb->len - p->l3; // a jumbogram (RFC 2675)
	p->v6 = 1;
	p->ttl = ip->hop_limit;
	p->tos = (bpf_ntohs(*(const __be16 *)ip) >> 4) & 0xff;
	__builtin_memcpy(&p->key.tuple.src.addr, &ip->saddr, sizeof(struct addr));
	__builtin_memcpy(&p->key.tuple.dst.addr, &ip->daddr, sizeof(struct addr));

	__u8 next = ip->nexthdr;
	__u32 offset = p->l3 + sizeof(*ip);
	for (int i = 0; i < EXTENSIONS; i++) {
		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS &&
		    next != IPPROTO_AH && next != IPPROTO_FRAGMENT)
			break;
		const struct fragment_header *h = at(skb, offset, sizeof(*h));
		if (!h)
			return false;
		__u32 length = ((const struct extension_header *)h)->length;
		if (next == IPPROTO_FRAGMENT) {
			__u16 fragment = bpf_ntohs(h->offset);
			if (fragment >> 3)
				p->fragment = LATER;
			else if (fragment & 1)
				p->fragment = FIRST;
			p->id = h->id;
			offset += sizeof(*h);
		} else if (next == IPPROTO_AH) {
			offset += (length + 2) * 4;
		} else {
			offset += (length + 1) * 8;
		}
		next = h->next;
	}
	p->key.protocol = next;
	if (offset > FAR || p->l3 + total < offset)
		return false;
	p->l4 = offset;
	p->l4_len = p->l3 + total - offset;
	return true;
}

// parse_ip reads the IP header at p->l3, which may be one that an ICMP error
// quotes: what is behind it need not be whole.
__noinline int parse_ip(struct __sk_buff *skb, struct packet *p)
{
	if (!p)
		return NEVER;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return parse_v4(skb, p);
	return parse_v6(skb, p);
}

static __always_inline bool has_ports(__u32 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP;
}

#define QUOTED 8 // bytes of a transport header that are in every ICMP error (RFC 792)

// parse_ports reads what all three transport protocols start with.
static __always_inline bool parse_ports(const struct __sk_buff *skb, struct packet *p)
{
	const __be16 *ports = at(skb, p->l4, QUOTED);
	if (!ports)
		return false;
	p->key.tuple.src.port = ports[0];
	p->key.tuple.dst.port = ports[1];
	return true;
}

// parse_start reads whether a flow may begin with the packet, and whether one ends.
static __always_inline bool parse_start(struct __sk_buff *skb, struct packet *p)
{
	if (p->key.protocol == IPPROTO_TCP) {
		const struct tcphdr *tcp = at(skb, p->l4, sizeof(*tcp));
		if (!tcp || p->l4_len < sizeof(*tcp))
			return false;
		p->told = ((const __u8 *)tcp)[13];
		p->begins = (p->told & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
	} else if (p->key.protocol == IPPROTO_SCTP) {
		const struct sctphdr *sctp = at(skb, p->l4, sizeof(*sctp));
		if (!sctp || p->l4_len < sizeof(*sctp) + sizeof(struct sctp_chunk))
			return false;
		p->tag = sctp->tag;
		if (bpf_skb_load_bytes(skb, p->l4 + sizeof(*sctp), &p->told, sizeof(p->told))) // in place or in a fragment
			return false;
		p->begins = p->told == SCTP_INIT;
	} else {
		p->begins = p->l4_len >= 8;
	}
	return true;
}

// is_mid_tcp says of most packets at one glance that nothing can begin with them.
static __always_inline bool is_mid_tcp(const struct __sk_buff *skb, __u32 l3)
{
	const struct tcphdr *tcp = NULL;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		const struct iphdr *ip = at(skb, l3, sizeof(*ip) + sizeof(*tcp));
		if (ip && *(const __u8 *)ip == 0x45 && ip->protocol == IPPROTO_TCP && !(ip->frag_off & bpf_htons(IP_MORE | IP_OFFSET)))
			tcp = (const void *)(ip + 1);
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		const struct ipv6hdr *ip = at(skb, l3, sizeof(*ip) + sizeof(*tcp));
		if (ip && ip->version == 6 && ip->nexthdr == IPPROTO_TCP)
			tcp = (const void *)(ip + 1);
	}
	return tcp && (((const __u8 *)tcp)[13] & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) != TCP_SYN;
}

static __always_inline bool is_icmp_error(const struct packet *p)
{
	if (p->key.protocol == IPPROTO_ICMP && !p->v6)
		return p->told == ICMP_UNREACHABLE || p->told == ICMP_TIME_EXCEEDED || p->told == ICMP_PARAMETER_PROBLEM;
	return p->key.protocol == IPPROTO_ICMPV6 && p->v6 && p->told && p->told <= ICMPV6_PARAMETER_PROBLEM;
}

enum parsed {
	PARSED_FLOW,  // TCP, UDP or SCTP
	PARSED_ERROR, // an ICMP error
	PARSED_OTHER,
	PARSED_BROKEN,
};

// parse_headers reads the headers of a packet, as far as they can be read.
__noinline int parse_headers(struct __sk_buff *skb, struct packet *p)
{
	if (!p)
		return NEVER;
	p->l3 = p->l2;
	if (!parse_ip(skb, p) || p->l4 + p->l4_len > skb->len)
		return PARSED_BROKEN;
	if (has_ports(p->key.protocol)) {
		if (p->fragment == LATER)
			return PARSED_FLOW;
		return parse_ports(skb, p) && parse_start(skb, p) ? PARSED_FLOW : PARSED_BROKEN;
	}
	if (p->fragment != WHOLE || (p->key.protocol != IPPROTO_ICMP && p->key.protocol != IPPROTO_ICMPV6))
		return PARSED_OTHER;
	const struct icmp_header *icmp = at(skb, p->l4, sizeof(*icmp));
	if (!icmp)
		return PARSED_BROKEN;
	p->told = icmp->type;
	return is_icmp_error(p) ? PARSED_ERROR : PARSED_OTHER;
}

// parse reads the headers of a packet. Only where they are not together is the packet
// pulled together: that copies what its sender keeps, as TCP does, and would take from the
// first of several packets of SCTP what is its own.
static __always_inline int parse(struct __sk_buff *skb, struct packet *p)
{
	if (skb->vlan_present)
		return PARSED_OTHER; // the VLAN's own link sees it
	if (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6))
		return PARSED_OTHER;
	int parsed = parse_headers(skb, p);
	if (parsed == PARSED_FLOW || parsed == PARSED_OTHER || skb->gso_size == GSO_BY_FRAGS)
		return parsed;
	p->fragment = WHOLE;
	bpf_skb_pull_data(skb, skb->len < FAR ? skb->len : FAR); // an ICMP error with what it quotes
	return parse_headers(skb, p);
}
