// SPDX-License-Identifier: Apache-2.0
// Sums of the Internet checksum (RFC 1071): sums of words modulo 2^16-1. Words of
// 32 bits can be added as they are, for 2^16 is 1 there. Nobody but the packet's
// byte order matters (section 2.B).
#pragma once

#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

#include "types.h"

// replace adds to a sum what it changes by if from becomes to (RFC 1624).
static __always_inline __u64 replace(__u64 sum, __u32 from, __u32 to)
{
	return sum + (__u32)~from + to;
}

static __always_inline __u64 replace_addr(__u64 sum, const struct addr *from, const struct addr *to)
{
	for (int i = 0; i < 4; i++)
		sum = replace(sum, from->w[i], to->w[i]);
	return sum;
}

static __always_inline __u64 add_addr(__u64 sum, const struct addr *a)
{
	for (int i = 0; i < 4; i++)
		sum += a->w[i];
	return sum;
}

static __always_inline __u32 fold32(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	return sum;
}

static __always_inline __u16 fold16(__u64 sum)
{
	__u32 s = fold32(sum);
	s = (s & 0xffff) + (s >> 16);
	s = (s & 0xffff) + (s >> 16);
	return s;
}

// half is the h with h + h = sum.
static __always_inline __u16 half(__u16 sum)
{
	return sum & 1 ? (sum + 0xffff) / 2 : sum / 2;
}

// fix_transport mends the checksum of TCP or UDP at offset after addresses and
// ports changed by so much. The helper knows, other than we, whether the checksum
// is already there or for the device to make (CHECKSUM_PARTIAL): then the field
// has the sum of the pseudo header alone, which has the addresses, not the ports.
static __always_inline bool fix_transport(struct __sk_buff *skb, __u32 offset, bool udp, __u64 addrs, __u64 ports)
{
	__u64 zero = udp ? BPF_F_MARK_MANGLED_0 : 0;
	if (bpf_l4_csum_replace(skb, offset, 0, fold32(addrs), BPF_F_PSEUDO_HDR | zero))
		return false;
	return !ports || !bpf_l4_csum_replace(skb, offset, 0, fold32(ports), zero);
}
