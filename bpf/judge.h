/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
#pragma once

#include "maps.h"
#include "packet.h"
#include "tree.h"

/*
 * A cell is a verdict: bit 31, the direction and slot of the rule's counter << 8, the reason. Trees leave the direction
 * out, so that both can share them. AUDIT where it passes although there is a reason against it; QUIET where that is not
 * to be logged. One that passes has the sources << ALLOWED_SHIFT, a bit for each, of which an allow rule says so, and
 * not a default; one that does not those << REFUSED_SHIFT that are against it. In the trees of limits it is bit 31 and one bit for each limit.
 * REASON_UNREADABLE stands for the reason for which the packet could not be read.
 *
 * Without bit 31, what a services tree holds is a class, or the first node of a table of what each of
 * the 65,536 services of a protocol has (TABLE). What a peers tree holds is a cell where all services that
 * ask for the peer agree on it, else a class; and in peers6 also the root of the tree for the next 32
 * bits of the address (SUBTREE), or a rest: its node * RESTS + its place there (REST).
 */
#define CELL (1u << 31)
#define SUBTREE (1u << 30)
#define TABLE (1u << 30)
#define REST (1u << 29)
#define RESTS 4
#define MAX_SOURCES 4
#define ALLOWED_SHIFT 20
#define REFUSED_SHIFT 24
#define ALL_SOURCES ((1u << MAX_SOURCES) - 1)
#define AUDIT (1u << 17)
#define QUIET (1u << 18)
#define REASON_UNREADABLE 0xff
#define CELL_NO_POLICY (CELL | ALL_SOURCES << REFUSED_SHIFT | REASON_NO_POLICY)

/*
 * What addresses that share their first 32 bits or more have, where one range of them, inclusive at both ends, has
 * one value and all others another: most often a single address or CIDR. The last 96 bits tell
 * them apart, in three numbers, the most significant first. It takes the place of up to three trees.
 */
struct rest {
	__u32 from[3];
	__u32 to[3];
	__u32 val[2]; /* inside, outside */
};

struct verdict {
	__u8 reason;
	__u8 rule; /* direction * RULE_SLOTS + slot, where reason is REASON_RULE or REASON_LIMIT */
	__u8 audited;
	__u8 quiet;
};

static __always_inline int passes(struct verdict v)
{
	return v.reason == REASON_PASS || v.audited;
}

static __always_inline int cell_passes(__u32 cell)
{
	return (cell & 0xff) == REASON_PASS || cell & AUDIT;
}

static __always_inline __u32 find_service(const struct table *t, __u32 service)
{
	__u32 found = find(t->services, service, CELL_NO_POLICY);
	const __u32 *row;
	__u32 index;

	if ((found & (CELL | TABLE)) != TABLE)
		return found;
	/* A node of such a table is 32 numbers. */
	index = (found & ~TABLE) + ((service & 0xffff) >> 5);
	row = bpf_map_lookup_elem(&nodes, &index);
	return row ? row[service & 31] : CELL_NO_POLICY;
}

/* 1 if a < b, numbers of three words: the borrow of a - b. No branch, for the same reasons as in find. */
static __always_inline __u64 less(const __u32 *a, const __u32 *b)
{
	__u64 difference = (__u64)a[2] - b[2];

	difference = (__u64)a[1] - b[1] - (difference >> 63);
	difference = (__u64)a[0] - b[0] - (difference >> 63);
	asm("" : "+r"(difference));
	return difference >> 63;
}

static __always_inline __u32 find_rest(__u32 number, const __u32 *words)
{
	__u32 index = number / RESTS;
	const struct rest *rest = bpf_map_lookup_elem(&nodes, &index);

	if (!rest)
		return CELL_NO_POLICY;
	rest += number % RESTS;
	return rest->val[less(words, rest->from) | less(rest->to, words)];
}

static __always_inline __u32 find_peer(const struct table *t, __u8 family, const __u32 *peer)
{
	__u32 found = SUBTREE | (family == 4 ? t->peers4 : t->peers6);

	/* One body for every tree: a call of it costs more than the search. */
#pragma clang loop unroll(disable)
	for (int i = 0; i < 4 && found & SUBTREE; i++)
		found = find(found & ~SUBTREE, peer[i], CELL_NO_POLICY);
	return found & REST ? find_rest(found & ~REST, &peer[1]) : found;
}

/* What the rules of one direction say of a service and a peer. No tree, or a broken one: nothing passes. */
static __always_inline __u32 find_cell(const struct table *t, __u32 service, __u8 family,
				       const __u32 *peer)
{
	__u32 cell = find_service(t, service);
	__u32 class;

	if (cell & CELL)
		return cell;
	class = find_peer(t, family, peer);
	return class & CELL ? class : find(t->cells, cell << 16 | class, CELL_NO_POLICY);
}

/* A cell out of a tree, as one of the rules of a direction. */
static __always_inline __u32 of_direction(__u32 cell, __u32 d)
{
	return cell | d * RULE_SLOTS << 8;
}

/* why is the reason of what could not be read. */
static __always_inline struct verdict verdict_of(__u32 cell, __u8 why)
{
	struct verdict v;

	v.reason = cell & 0xff;
	v.rule = cell >> 8 & (2 * RULE_SLOTS - 1);
	v.audited = !!(cell & AUDIT);
	v.quiet = !!(cell & QUIET);
	if (v.reason == REASON_UNREADABLE)
		v.reason = why;
	return v;
}

static __always_inline __u32 cell_of(struct verdict v)
{
	return CELL | v.rule << 8 | v.reason | (v.audited ? AUDIT : 0) | (v.quiet ? QUIET : 0);
}

/* For a reason that lies in no rule, so that the flags of the whole policy hold. */
static __always_inline __u32 cell_for(const struct policy *policy, enum reason reason)
{
	return CELL | reason | (policy->flags & (AUDIT | QUIET));
}

/* The device's entry, zero where it has none. */
static __always_inline struct device find_device(__u32 ifindex)
{
	__u32 slot = ifindex & (DEVICE_SLOTS - 1);
	__u64 *entry = bpf_map_lookup_elem(&devices, &slot);
	union {
		__u64 all;
		struct device device;
	} d = {};

	if (entry)
		d.all = *(volatile __u64 *)entry;
	if (d.device.ifindex == ifindex)
		return d.device;
	entry = bpf_map_lookup_elem(&device_overflow, &ifindex);
	d.all = entry ? *(volatile __u64 *)entry : 0;
	return d.device;
}

static __always_inline void count(const struct device *d, enum direction direction,
				  struct verdict v, __u64 bytes)
{
	__u32 index = d->counters;
	struct counter_block *block = bpf_map_lookup_elem(&counters, &index);
	struct counter *c;

	if (!block)
		return;
	if (v.reason == REASON_RULE || v.reason == REASON_LIMIT)
		c = &block->rule[v.rule / RULE_SLOTS & 1][v.rule & (RULE_SLOTS - 1)];
	else if (v.audited)
		c = &block->audited[direction][v.reason & (REASON_SLOTS - 1)];
	else
		c = &block->reason[direction][v.reason & (REASON_SLOTS - 1)];
	c->packets++;
	c->bytes += bytes;
}
