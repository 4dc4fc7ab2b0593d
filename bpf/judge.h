/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
#pragma once

#include "maps.h"
#include "packet.h"
#include "tree.h"

/*
 * A cell is a verdict: bit 31, the rule's slot of the counter block << 8, the reason.
 * REASON_UNREADABLE stands for the reason for which the packet could not be read.
 * Without bit 31, what a services tree holds is a class and what a peers6 tree holds is the root
 * of the tree for the next 32 bits of the address (SUBTREE) or a class.
 */
#define CELL (1u << 31)
#define SUBTREE (1u << 30)
#define REASON_UNREADABLE 0xff
#define CELL_NO_POLICY (CELL | REASON_NO_POLICY)

struct verdict {
	__u8 reason;
	__u8 rule; /* slot, where reason is REASON_RULE */
};

static __always_inline __u32 find_peer(const struct table *t, const struct packet *p)
{
	__u32 class;

	if (p->family == 4)
		return find(t->peers4, p->peer[0], CELL_NO_POLICY);
	class = find(t->peers6, p->peer[0], CELL_NO_POLICY);
	for (int i = 1; i < 4 && (class & (CELL | SUBTREE)) == SUBTREE; i++)
		class = find(class & ~SUBTREE, p->peer[i], CELL_NO_POLICY);
	return class;
}

/* What the policy says of a packet that was read. No tree, or a broken one: nothing passes. */
static __always_inline struct verdict judge(const struct table *t, const struct packet *p)
{
	struct verdict v = {};
	__u32 cell;

	if (p->builtin)
		return v;
	cell = find(t->services, p->service, CELL_NO_POLICY);
	if (!(cell & CELL)) {
		__u32 peer = find_peer(t, p);

		cell = peer & CELL ? peer : find(t->cells, cell << 16 | peer, CELL_NO_POLICY);
	}
	v.reason = cell & 0xff;
	v.rule = cell >> 8 & (RULE_SLOTS - 1);
	if (v.reason == REASON_UNREADABLE)
		v.reason = p->reason;
	return v;
}

static __always_inline struct verdict judge_frame(const struct table *t, void *data, void *end)
{
	struct packet p = {};

	if (!t->services)
		return (struct verdict){ .reason = REASON_QUARANTINE };
	read_frame(data, end, &p);
	return judge(t, &p);
}

static __always_inline void count(__u32 ifindex, __u32 direction, struct verdict v, __u64 bytes)
{
	struct counter_block *block = bpf_map_lookup_elem(&counters, &ifindex);
	struct counter *c;

	if (!block)
		return;
	c = v.reason == REASON_RULE ? &block->rule[v.rule & (RULE_SLOTS - 1)] :
				      &block->reason[direction & 1][v.reason & (REASON_SLOTS - 1)];
	c->packets++;
	c->bytes += bytes;
}
