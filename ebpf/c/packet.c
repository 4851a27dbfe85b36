// SPDX-License-Identifier: Apache-2.0
// The packet path: where there is no socket to see, each packet is translated when
// it comes in by a link, and goes out by another at once. Packets of the node's own
// are seen when they go out.
//
//	                 its flow's row ──────────────────────┐
//	packet ── parse ─┤                                    ├─ way ─ rewrite ─▶
//	                 none: frontend ─ backend ─ new rows ─┘
//
// Answers go the same way backwards: their flow has a row for either direction.
#include <linux/bpf.h>
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

#include "answer.h"
#include "conn.h"
#include "icmp.h"
#include "lb.h"
#include "nat.h"
#include "parse.h"
#include "types.h"
#include "way.h"

// carry takes a packet on to where its flow goes.
__noinline int carry(struct __sk_buff *skb, struct packet *p, struct flow *f, __u32 outcome)
{
	if (!p || !f)
		return NEVER;
	struct way way = {};
	int where = find_way(skb, p, &f->to.dst.addr, &way);
	__u8 hops = where == WAY_LINK && !p->own;
	if (hops && p->ttl <= 1)
		return tell(skb, p, PACKET_EXPIRED, HOPS_EXCEEDED, 0);
	if (where == WAY_NONE)
		return tell(skb, p, PACKET_UNREACHABLE, HOST_UNREACHABLE, 0);
	if (where == WAY_TOO_BIG) {
		if (p->v6 || p->df)
			return tell(skb, p, PACKET_TOO_BIG, TOO_BIG, way.mtu);
		where = WAY_STACK; // which cuts it in fragments
	}
	if (p->fragment == FIRST) {
		if (p->key.protocol == IPPROTO_SCTP && ports_of(&p->key.tuple) != ports_of(&f->to))
			return ends(p, PACKET_SCTP_FRAGMENT, TC_ACT_SHOT);
		remember_ports(p);
	}
	follow(p, f);
	if (!rewrite(skb, p, &f->to, hops))
		return ends(p, PACKET_NO_MEMORY, TC_ACT_SHOT);
	return ends(p, outcome, depart(skb, p, where, &way));
}

static __always_inline enum class class_of(const struct packet *p)
{
	struct prefix_key key = {.prefixlen = 128, .addr = p->key.tuple.src.addr};
	__u32 link = p->link;
	if (p->own || bpf_map_lookup_elem(&node_addrs, &key.addr))
		return CLASS_NODE;
	if (bpf_map_lookup_elem(&pod_cidrs, &key) || bpf_map_lookup_elem(&pod_links, &link))
		return CLASS_POD;
	return CLASS_OUTSIDE;
}

// resets is FLOW_RESETS for flows of a pool that wants it.
static __always_inline __u8 resets(__u32 protocol, __u32 number)
{
	const struct pool *pool = bpf_map_lookup_elem(&pools, &number);
	return protocol == IPPROTO_TCP && pool && pool->flags & POOL_RESET ? FLOW_RESETS : 0;
}

// decide looks whether a packet is for a Service, and where its flow is to go.
__noinline int choose_path(struct packet *p, struct flow *f)
{
	if (!p || !f)
		return NEVER;
	struct frontend_key key = {.addr = p->key.tuple.dst.addr, .port = p->key.tuple.dst.port, .protocol = p->key.protocol};
	struct frontend frontend;
	if (!find_frontend(&key, p->own, &frontend))
		return PACKET_PASSED;

	enum class class = class_of(p);
	struct path path = frontend.paths[class];
	if (frontend.flags & FRONTEND_SOURCES && !admits(&frontend, &p->key.tuple.src.addr))
		return PACKET_NOT_ADMITTED;
	if (path.verdict == VERDICT_REJECT)
		return PACKET_REFUSED;
	if (path.verdict == VERDICT_DROP)
		return PACKET_DROPPED;
	if (path.verdict == VERDICT_PASS)
		return PACKET_PASSED;

	struct affinity_key sender = {.sender = p->key.tuple.src.addr};
	int chosen = choose_backend(path.pool, &sender, &f->to.dst);
	if (chosen == SOCK_LOST)
		return PACKET_LOST;
	f->class = class | resets(p->key.protocol, path.pool);
	key.addr = f->to.dst.addr; // before kernel 6.2 a map is asked for nothing but what is on the stack
	p->masquerade = path.masquerade || same_addr(&key.addr, &p->key.tuple.src.addr) ||
			(class == CLASS_POD && bpf_map_lookup_elem(&leaving, &key.addr));
	return chosen == SOCK_KEPT ? PACKET_KEPT : PACKET_BEGUN;
}

// begin makes the rows of a new flow. Who is masqueraded gets an address of the
// node instead of its own; the node itself has one already.
__noinline int begin(struct __sk_buff *skb, struct packet *p, struct flow *f)
{
	if (!p || !f)
		return NEVER;
	bool change_port = p->masquerade && (f->class & ~FLOW_RESETS) != CLASS_NODE;
	f->to.src = p->key.tuple.src;
	f->seen = ticks();
	f->check = check_of(&p->key.tuple);
	if (change_port || (p->masquerade && is_loopback(&f->to.src.addr))) {
		struct way way = {};
		find_way(skb, p, &f->to.dst.addr, &way);
		if (!masquerade_addr(way.ifindex, p->v6, &f->to.src.addr))
			return PACKET_NO_PORT;
	}
	return claim(&p->key, f, change_port);
}

// start leads the first packet of a flow.
static __always_inline int start(struct __sk_buff *skb, struct packet *p, struct flow *f)
{
	int outcome = choose_path(p, f);
	switch (outcome) {
	case PACKET_PASSED:
		return ends(p, outcome, GOES_ON);
	case PACKET_REFUSED:
		return refuse_packet(skb, p, PACKET_REFUSED);
	case PACKET_BEGUN:
	case PACKET_KEPT:
		break;
	default:
		return ends(p, outcome, TC_ACT_SHOT);
	}
	int failed = begin(skb, p, f);
	if (failed)
		return ends(p, failed, TC_ACT_SHOT);
	tell_flow(&p->key, f);
	return carry(skb, p, f, outcome);
}

// carry_error takes an ICMP error to who sent the packet that it is about.
__noinline int carry_error(struct __sk_buff *skb, struct packet *p)
{
	if (!p)
		return NEVER;
	struct packet quoted = {.l3 = p->l4 + sizeof(struct icmp_header)};
	struct flow f = {};
	if (!find_quoted(skb, &quoted, &f) || quoted.l4 + QUOTED > p->l4 + p->l4_len)
		return ends(p, PACKET_PASSED, GOES_ON);
	struct way way = {};
	int where = find_way(skb, p, &f.to.dst.addr, &way);
	__u8 hops = where == WAY_LINK && !p->own;
	if (where == WAY_NONE || where == WAY_TOO_BIG || (hops && p->ttl <= 1))
		return ends(p, PACKET_MUTE, TC_ACT_SHOT); // nobody is told of a lost error
	if (!rewrite_error(skb, p, &quoted, &f, hops) || !rewrite_quote(skb, p, &quoted, &f))
		return ends(p, PACKET_NO_MEMORY, TC_ACT_SHOT);
	return ends(p, PACKET_ERROR, depart(skb, p, where, &way));
}

// lead is the story of a packet.
static __always_inline int lead(struct __sk_buff *skb, struct packet *p, struct flow *f)
{
	switch (parse(skb, p)) {
	case PARSED_OTHER:
		return ends(p, PACKET_PASSED, GOES_ON);
	case PARSED_BROKEN:
		return ends(p, PACKET_MALFORMED, GOES_ON);
	case PARSED_ERROR:
		return carry_error(skb, p);
	}
	if (p->fragment == LATER && !recall_ports(p))
		return ends(p, PACKET_PASSED, GOES_ON);
	if (has_begun() && read_flow(&p->key, f)) {
		if (may_go_on(p, f))
			return carry(skb, p, f, f->direction == REPLY ? PACKET_REPLIED : PACKET_FORWARDED);
		if (!p->begins && f->class & FLOW_RESETS)
			return refuse_packet(skb, p, PACKET_RESET); // again and again, until it is heard
		forget(&p->key, f);
	}
	if (!p->begins)
		return ends(p, PACKET_PASSED, GOES_ON);
	__builtin_memset(f, 0, sizeof(*f));
	return start(skb, p, f);
}

// report_packet tells who looks on.
__noinline int report_packet(const struct packet *p, const struct flow *f)
{
	if (!p || !f)
		return NEVER;
	struct report *r = new_report(p->outcome, p->key.protocol);
	if (!r)
		return false;
	r->asked = p->key.tuple;
	r->link = p->link;
	if (p->outcome == PACKET_BEGUN || p->outcome == PACKET_KEPT || p->outcome == PACKET_RESET)
		r->backend = f->to.dst;
	bpf_ringbuf_submit(r, 0);
	return true;
}

__noinline int handle(struct __sk_buff *skb, __u32 l2, bool own)
{
	if (stands_by)
		return GOES_ON;
	if (!has_begun() && is_mid_tcp(skb, l2)) {
		count(PACKET_PASSED);
		return GOES_ON;
	}
	struct packet p = {.l2 = l2, .own = own, .link = skb->ifindex};
	struct flow f = {};
	int action = lead(skb, &p, &f);
	if (count(p.outcome))
		report_packet(&p, &f);
	return action;
}

// Of links with a route: of pods that have one of their own, and of all others.
SEC("tc")
int packet_in(struct __sk_buff *skb)
{
	if (skb->pkt_type != PACKET_HOST)
		return GOES_ON; // for another host, that a switch did not know
	return handle(skb, ETH_HLEN, false);
}

// Of the ports of a bridge that pods are behind. To the pods the bridge is the
// router, and what they send to it the port takes for another host's.
SEC("tc")
int packet_port_in(struct __sk_buff *skb)
{
	return handle(skb, ETH_HLEN, false);
}

// Of links without link headers: tunnels.
SEC("tc")
int packet_tunnel_in(struct __sk_buff *skb)
{
	return handle(skb, 0, false);
}

SEC("tc")
int packet_out(struct __sk_buff *skb)
{
	if (skb->ingress_ifindex)
		return GOES_ON; // it came in by another link
	return handle(skb, ETH_HLEN, true);
}

SEC("tc")
int packet_tunnel_out(struct __sk_buff *skb)
{
	if (skb->ingress_ifindex)
		return GOES_ON;
	return handle(skb, 0, true);
}
