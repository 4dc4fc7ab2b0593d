/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
#pragma once

#include "flow.h"

/* A rate is a count a second in the low 40 bits, the slot of its counter << 48, and flags. */
#define RATE_COUNT ((1ULL << 40) - 1)
#define RATE_SLOT_SHIFT 48
#define RATE_BITS (1ULL << 63) /* bits, else packets */
#define RATE_AUDIT (1ULL << 62)
#define RATE_QUIET (1ULL << 61)

/*
 * How far a bucket may be filled ahead of its rate. TCP whose window was dropped waits 200 ms at least before it sends
 * again: a bucket that holds less than that comes to half its rate.
 */
#define BURST (SECOND / 4)

struct rates {
	__u64 rate[MAX_LIMITS];
};

/* What a packet takes of a rate, in ns. */
static __always_inline __u64 cost(__u64 rate, const struct packet *p)
{
	__u64 units = rate & RATE_BITS ? (__u64)p->bytes * 8 : p->segments;

	return rate & RATE_COUNT ? units * SECOND / (rate & RATE_COUNT) : 0;
}

/* Concurrent packets may meet: the loser's time is added to the winner's. */
static __always_inline void fill(__u64 *empty, __u64 now, __u64 cost)
{
	__u64 before = *(volatile __u64 *)empty;
	__u64 after = (before > now ? before : now) + cost;

	if (__sync_val_compare_and_swap(empty, before, after) != before)
		__sync_fetch_and_add(empty, cost);
}

/* Which limits a packet counts against, one bit each: those of what it is for, and of what it answers. */
__noinline __u32 find_limits(const struct policy *policy, const struct packet *p, __u32 d)
{
	struct flow_key k = {};
	__u32 found;

	if (!policy || !p || d > INGRESS)
		return 0;
	flow_key(p, d, &k);
	found = find_cell_called(policy, d + 2, p->service, &k);
	if (p->reverse && p->reverse != p->service)
		found |= find_cell_called(policy, d + 2, p->reverse, &k);
	return found;
}

/*
 * Holds a packet to the rates of all limits found for it: a cell, REASON_LIMIT for the first that is over its
 * rate. A packet passes while the bucket is not full, so that one larger than the burst passes too, and
 * pays for it afterwards (the generic cell rate algorithm, ITU-T I.371). What is dropped fills no bucket.
 */
__noinline __u32 hold_to_limits(const struct policy *policy, const struct packet *p, __u32 block,
				__u32 d, __u32 found)
{
	__u64 now = bpf_ktime_get_ns();
	__u32 over = CELL, *shared, node;
	struct bucket_set *b;
	struct rates *r;

	if (!policy || !p || d > INGRESS)
		return CELL_NO_POLICY;
	shared = bpf_map_lookup_elem(&states, &block);
	if (!shared)
		return CELL_NO_POLICY;
	b = bpf_map_lookup_elem(&buckets, &shared[1]);
	node = d == EGRESS ? policy->rates[EGRESS] : policy->rates[INGRESS];
	r = bpf_map_lookup_elem(&nodes, &node);
	if (!b || !r)
		return CELL_NO_POLICY;
	for (int i = 0; i < MAX_LIMITS; i++) {
		__u64 rate = r->rate[i];
		__u32 cell;

		if (!(found >> i & 1) || b->empty[d][i] <= now + BURST)
			continue;
		cell = CELL | REASON_LIMIT |
		       (d * RULE_SLOTS + (rate >> RATE_SLOT_SHIFT & (RULE_SLOTS - 1))) << 8 |
		       (rate & RATE_QUIET ? QUIET : 0);
		if (!(rate & RATE_AUDIT))
			return cell;
		if (over == CELL)
			over = cell | AUDIT;
	}
	for (int i = 0; i < MAX_LIMITS; i++)
		if (found >> i & 1 && b->empty[d][i] <= now + BURST)
			fill(&b->empty[d][i], now, cost(r->rate[i], p));
	return over;
}
