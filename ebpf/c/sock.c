// SPDX-License-Identifier: Apache-2.0
// The socket path: TCP and UDP are translated once, when an application connects
// (or sends a datagram without), and no packet is touched after that. It sees every
// socket below the cgroup that it is attached to, in whatever network namespace.
#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/in.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "lb.h"
#include "maps.h"
#include "settings.h"
#include "types.h"

#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_MULTIPATH_TCP 262 // linux/in.h: it does not fit into a packet

#define GO_ON 1
#define FAIL 0

// asked is where an application wants to go.
struct asked {
	struct endpoint to;
	struct frontend frontend;
	__u64 netns;
	__u8 protocol;
};

static __always_inline struct endpoint read_addr(const struct bpf_sock_addr *ctx, bool v6)
{
	struct endpoint e = {.port = ctx->user_port};
	if (v6) {
		e.addr.w[0] = ctx->user_ip6[0];
		e.addr.w[1] = ctx->user_ip6[1];
		e.addr.w[2] = ctx->user_ip6[2];
		e.addr.w[3] = ctx->user_ip6[3];
	} else {
		set_v4(&e.addr, ctx->user_ip4);
	}
	return e;
}

static __always_inline void write_addr(struct bpf_sock_addr *ctx, bool v6, const struct endpoint *e)
{
	if (v6) {
		ctx->user_ip6[0] = e->addr.w[0];
		ctx->user_ip6[1] = e->addr.w[1];
		ctx->user_ip6[2] = e->addr.w[2];
		ctx->user_ip6[3] = e->addr.w[3];
	} else {
		ctx->user_ip4 = e->addr.w[3];
	}
	ctx->user_port = e->port;
}

static __always_inline __u8 protocol_of(const struct bpf_sock_addr *ctx)
{
	return ctx->protocol == IPPROTO_MULTIPATH_TCP ? IPPROTO_TCP : ctx->protocol;
}

// bound_to is the address that the socket is bound to, the unspecified one if to
// none: the kernel chooses after us.
static __always_inline struct addr bound_to(struct bpf_sock_addr *ctx, bool v6, bool *bound)
{
	struct addr a = {};
	struct bpf_sock *sk = ctx->sk;
	*bound = false;
	if (!sk)
		return a;
	if (v6) {
		a.w[0] = sk->src_ip6[0];
		a.w[1] = sk->src_ip6[1];
		a.w[2] = sk->src_ip6[2];
		a.w[3] = sk->src_ip6[3];
		*bound = a.w[3] != 0;
	} else {
		__u32 ip = sk->src_ip4;
		set_v4(&a, ip);
		*bound = ip != 0;
	}
	return a;
}

// decide finds the path of a flow: its verdict is VERDICT_PASS if there is no
// frontend.
static __always_inline struct path decide(struct bpf_sock_addr *ctx, bool v6, struct asked *ask)
{
	struct path path = {};
	struct frontend_key key = {.addr = ask->to.addr, .port = ask->to.port, .protocol = ask->protocol};
	ask->netns = bpf_get_netns_cookie(ctx);
	bool own = ask->netns == node_netns;
	if (!find_frontend(&key, own, &ask->frontend))
		return path;
	path = own ? ask->frontend.paths[CLASS_NODE] : ask->frontend.paths[CLASS_POD];
	if (ask->frontend.flags & FRONTEND_SOURCES) {
		bool bound;
		struct addr sender = bound_to(ctx, v6, &bound);
		if (!bound || !admits(&ask->frontend, &sender))
			path.verdict = VERDICT_DROP; // or is looked at when the packet comes
	}
	return path;
}

static __always_inline int choose(const struct asked *ask, __u32 pool, struct endpoint *backend)
{
	struct affinity_key sender = {.by_socket = 1};
	sender.sender.w[0] = ask->netns >> 32;
	sender.sender.w[1] = ask->netns;
	return choose_backend(pool, &sender, backend);
}

// ends_socket notes how it ends with a socket: backend is whom it goes to, if to anybody.
static __always_inline void ends_socket(const struct asked *ask, const struct endpoint *backend, __u32 outcome)
{
	if (!count(outcome))
		return;
	struct report *r = new_report(outcome, ask->protocol);
	if (!r)
		return;
	r->asked.dst = ask->to;
	r->backend = *backend;
	r->process = bpf_get_current_pid_tgid() >> 32;
	bpf_ringbuf_submit(r, 0);
}

static __always_inline int refuse(const struct asked *ask, __u32 outcome)
{
	struct endpoint nobody = {};
	ends_socket(ask, &nobody, outcome);
	bpf_set_retval(-ECONNREFUSED);
	return FAIL;
}

// leave lets a socket go where it wants to.
static __always_inline int leave(const struct asked *ask, __u8 verdict)
{
	struct endpoint nobody = {};
	ends_socket(ask, &nobody, verdict == VERDICT_PASS ? SOCK_PASSED : SOCK_LEFT);
	return GO_ON;
}

static __always_inline void forget_peer(struct bpf_sock_addr *ctx)
{
	if (!ctx->sk || !bpf_sk_storage_get(&peers, ctx->sk, NULL, 0))
		return;
	__u64 cookie = bpf_get_socket_cookie(ctx);
	bpf_map_delete_elem(&connected, &cookie);
	bpf_sk_storage_delete(&peers, ctx->sk);
}

static __always_inline void remember_peer(struct bpf_sock_addr *ctx, const struct asked *ask, __u32 number, const struct endpoint *backend)
{
	if (!ctx->sk)
		return;
	struct peer *peer = bpf_sk_storage_get(&peers, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!peer)
		return; // no memory: the application sees the backend as peer
	peer->frontend = ask->to;
	peer->backend = *backend;
	peer->netns = ask->netns;
	peer->protocol = ask->protocol;
	const struct pool *pool = bpf_map_lookup_elem(&pools, &number);
	if (ask->protocol == IPPROTO_UDP || (pool && pool->flags & POOL_RESET)) {
		__u64 cookie = bpf_get_socket_cookie(ctx);
		bpf_map_update_elem(&connected, &cookie, peer, BPF_ANY);
	}
}

static __always_inline int connect(struct bpf_sock_addr *ctx, bool v6)
{
	struct asked ask = {.to = read_addr(ctx, v6), .protocol = protocol_of(ctx)};
	struct path path = decide(ctx, v6, &ask);
	switch (path.verdict) {
	case VERDICT_FORWARD:
		break;
	case VERDICT_REJECT:
		return refuse(&ask, SOCK_REFUSED);
	default:
		if (ask.protocol == IPPROTO_UDP)
			forget_peer(ctx); // such a socket connects again and again
		return leave(&ask, path.verdict);
	}
	struct endpoint backend = {};
	int outcome = choose(&ask, path.pool, &backend);
	if (outcome == SOCK_LOST)
		return refuse(&ask, SOCK_LOST);
	write_addr(ctx, v6, &backend);
	remember_peer(ctx, &ask, path.pool, &backend);
	ends_socket(&ask, &backend, outcome);
	return GO_ON;
}

// keep_datagrams gives a socket the backend that it had for a destination, as long
// as that serves.
static __always_inline bool keep_datagrams(const struct datagram_key *key, __u32 number, struct endpoint *backend)
{
	const struct endpoint *had = bpf_map_lookup_elem(&datagrams, key);
	const struct pool *pool = bpf_map_lookup_elem(&pools, &number);
	if (!had || !pool)
		return false;
	*backend = *had;
	return is_member(read_generation(pool), backend, MEMBER_SERVES);
}

static __always_inline int sendmsg(struct bpf_sock_addr *ctx, bool v6)
{
	struct asked ask = {.to = read_addr(ctx, v6), .protocol = protocol_of(ctx)};
	struct path path = decide(ctx, v6, &ask);
	switch (path.verdict) {
	case VERDICT_FORWARD:
		break;
	case VERDICT_REJECT:
		return refuse(&ask, SOCK_REFUSED);
	default:
		return leave(&ask, path.verdict);
	}
	struct endpoint backend = {};
	struct datagram_key key = {.cookie = bpf_get_socket_cookie(ctx), .to = ask.to};
	int outcome = SOCK_SENT;
	if (!keep_datagrams(&key, path.pool, &backend)) {
		outcome = choose(&ask, path.pool, &backend);
		if (outcome == SOCK_LOST)
			return refuse(&ask, SOCK_LOST);
		bpf_map_update_elem(&datagrams, &key, &backend, BPF_ANY);
	}
	key.to = backend;
	const struct endpoint *known = bpf_map_lookup_elem(&replies, &key);
	if (!known || !same_endpoint(known, &ask.to))
		bpf_map_update_elem(&replies, &key, &ask.to, BPF_ANY);
	write_addr(ctx, v6, &backend);
	ends_socket(&ask, &backend, outcome);
	return GO_ON;
}

// restore shows the application the frontend where the kernel says the backend.
static __always_inline void restore(struct bpf_sock_addr *ctx, bool v6, bool datagram)
{
	struct endpoint from = read_addr(ctx, v6);
	if (ctx->sk) {
		const struct peer *peer = bpf_sk_storage_get(&peers, ctx->sk, NULL, 0);
		if (peer && same_endpoint(&peer->backend, &from)) {
			from = peer->frontend;
			write_addr(ctx, v6, &from);
			return;
		}
	}
	if (!datagram)
		return;
	struct datagram_key key = {.cookie = bpf_get_socket_cookie(ctx), .to = from};
	const struct endpoint *frontend = bpf_map_lookup_elem(&replies, &key);
	if (frontend) {
		from = *frontend;
		write_addr(ctx, v6, &from);
	}
}

SEC("cgroup/connect4")
int sock_connect4(struct bpf_sock_addr *ctx)
{
	return connect(ctx, false);
}

SEC("cgroup/connect6")
int sock_connect6(struct bpf_sock_addr *ctx)
{
	return connect(ctx, true);
}

SEC("cgroup/sendmsg4")
int sock_sendmsg4(struct bpf_sock_addr *ctx)
{
	return sendmsg(ctx, false);
}

SEC("cgroup/sendmsg6")
int sock_sendmsg6(struct bpf_sock_addr *ctx)
{
	return sendmsg(ctx, true);
}

SEC("cgroup/recvmsg4")
int sock_recvmsg4(struct bpf_sock_addr *ctx)
{
	restore(ctx, false, true);
	return GO_ON;
}

SEC("cgroup/recvmsg6")
int sock_recvmsg6(struct bpf_sock_addr *ctx)
{
	restore(ctx, true, true);
	return GO_ON;
}

SEC("cgroup/getpeername4")
int sock_getpeername4(struct bpf_sock_addr *ctx)
{
	restore(ctx, false, false);
	return GO_ON;
}

SEC("cgroup/getpeername6")
int sock_getpeername6(struct bpf_sock_addr *ctx)
{
	restore(ctx, true, false);
	return GO_ON;
}

SEC("cgroup/sock_release")
int sock_release(struct bpf_sock *sk)
{
	if (bpf_sk_storage_get(&peers, sk, NULL, 0)) {
		__u64 cookie = bpf_get_socket_cookie(sk);
		bpf_map_delete_elem(&connected, &cookie);
	}
	return GO_ON;
}
