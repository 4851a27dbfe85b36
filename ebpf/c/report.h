// SPDX-License-Identifier: Apache-2.0
// How programs end: counted always, and reported to who looks on.
#pragma once

#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"
#include "settings.h"
#include "types.h"

#define TICK_SHIFT 30 // of ns: see struct flow

static __always_inline __u32 ticks(void)
{
	return bpf_ktime_get_coarse_ns() >> TICK_SHIFT;
}

// How many ends of a kind each processor reports in a tick.
#define REPORTS 16

// is_trouble says of an outcome that somebody gets no answer and is not told why.
static __always_inline bool is_trouble(__u32 outcome)
{
	switch (outcome) {
	case SOCK_LOST:
	case PACKET_DROPPED:
	case PACKET_NOT_ADMITTED:
	case PACKET_MUTE:
	case PACKET_SCTP_FRAGMENT:
	case PACKET_LOST:
	case PACKET_NO_PORT:
	case PACKET_NO_MEMORY:
		return true;
	}
	return false;
}

// is_event says of an outcome that it is not one of each packet's.
static __always_inline bool is_event(__u32 outcome)
{
	return outcome < OUTCOMES && outcome != SOCK_PASSED && outcome != SOCK_SENT && outcome != PACKET_PASSED && outcome != PACKET_FORWARDED &&
	       outcome != PACKET_REPLIED && outcome != PACKET_MALFORMED;
}

// is_looked_at says whether somebody wants to see all events.
static __always_inline bool is_looked_at(void)
{
	__u32 until = looked_at_until;
	return until && (__s32)(until - ticks()) >= 0;
}

// count counts an outcome, and says whether it is to be reported.
static __always_inline bool count(__u32 outcome)
{
	struct tally *t = bpf_map_lookup_elem(&outcomes, &outcome);
	if (!t)
		return false;
	t->count++;
	if (!is_trouble(outcome))
		return is_event(outcome) && is_looked_at();
	__u32 now = ticks();
	if (t->tick != now) {
		t->tick = now;
		t->reported = 0;
	}
	return t->reported++ < REPORTS || is_looked_at();
}

// new_report is room for a report, NULL if nobody reads those that there are.
static __always_inline struct report *new_report(__u32 outcome, __u32 protocol)
{
	struct report *r = bpf_ringbuf_reserve(&reports, sizeof(*r), 0);
	if (!r)
		return NULL;
	__builtin_memset(r, 0, sizeof(*r));
	r->at = bpf_ktime_get_ns();
	r->outcome = outcome;
	r->protocol = protocol;
	return r;
}
