// SPDX-License-Identifier: Apache-2.0
// The checksum of SCTP (RFC 9260, appendix A) when ports change.
//
// It is a CRC over the whole packet, and no helper updates it. But a CRC is linear
// over GF(2): that of two packets of one length differ by what the difference of
// the packets, D, makes alone,
//
//	crc(M) ^ crc(M ^ D) = D * x^32 mod P
//
// as polynomials. Ports are the first four bytes: D is their difference d, followed
// by zeros up to the end, so that D * x^32 = d * x^(8 * length). With x^(8 * n) mod
// P in a table this is one multiplication, whatever the length.
//
// Bits stand in reverse: bit 31 of a word is x^0.
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "parse.h"
#include "types.h"

#define CRC32C_P 0x82f63b78 // x^32 + x^28 + x^27 + …, without x^32

// by_length[n] is x^(8 * n) mod P. User space fills it.
struct shifts {
	__u32 by_length[65536];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct shifts);
} sctp_shifts SEC(".maps");

// lowest_bit is hidden from the compiler, which would like to make a choice of a
// product with it; the verifier would then go both ways, 64 times in a row.
static __always_inline __u32 lowest_bit(__u32 a)
{
	a &= 1;
	asm volatile("" : "+r"(a));
	return a;
}

// multiply is a * b mod P.
static __always_inline __u32 multiply(__u32 a, __u32 b)
{
	__u32 product = 0;
#pragma unroll
	for (int i = 31; i >= 0; i--) {
		product ^= b * lowest_bit(a >> i);
		b = (b >> 1) ^ (CRC32C_P * lowest_bit(b));
	}
	return product;
}

// crc_change is what a change of 32 bits does to the CRC if so many bytes, these
// four included, are between them and the end.
static __always_inline __le32 crc_change(__u32 change, __u16 length)
{
	__u32 zero = 0;
	const struct shifts *shifts = bpf_map_lookup_elem(&sctp_shifts, &zero);
	if (!shifts)
		return 0;
	return multiply(change, shifts->by_length[length]);
}
