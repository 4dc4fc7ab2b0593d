/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
#pragma once

#include "maps.h"
#include "packet.h"
#include "tree.h"

/*
 * A cell is a verdict: bit 31, the rule's slot of the counter block << 8, the reason; ALLOWED where an
 * allow rule says that it passes, and not a default.
 * REASON_UNREADABLE stands for the reason for which the packet could not be read.
 * Without bit 31, what a services tree holds is a class, or the first node of a table of what
 * each of the 65,536 services of a protocol has (TABLE); what a peers6 tree holds is a class, or the
 * root of the tree for the next 32 bits of the address (SUBTREE).
 */
#define CELL (1u << 31)
#define SUBTREE (1u << 30)
#define TABLE (1u << 30)
#define ALLOWED (1u << 16)
#define REASON_UNREADABLE 0xff
#define CELL_NO_POLICY (CELL | REASON_NO_POLICY)

enum direction { EGRESS, INGRESS }; /* what the container sends, and what it receives */

struct verdict {
	__u8 reason;
	__u8 rule; /* slot, where reason is REASON_RULE */
	__u8 allowed; /* by an allow rule */
};

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

static __always_inline __u32 find_peer(const struct table *t, __u8 family, const __u32 *peer)
{
	__u32 class;

	if (family == 4)
		return find(t->peers4, peer[0], CELL_NO_POLICY);
	class = find(t->peers6, peer[0], CELL_NO_POLICY);
	for (int i = 1; i < 4 && (class & (CELL | SUBTREE)) == SUBTREE; i++)
		class = find_called(class & ~SUBTREE, peer[i], CELL_NO_POLICY);
	return class;
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


/* why is the reason of what could not be read. */
static __always_inline struct verdict verdict_of(__u32 cell, __u8 why)
{
	struct verdict v;

	v.reason = cell & 0xff;
	v.rule = cell >> 8 & (RULE_SLOTS - 1);
	v.allowed = !!(cell & ALLOWED);
	if (v.reason == REASON_UNREADABLE)
		v.reason = why;
	return v;
}

static __always_inline __u32 cell_of(struct verdict v)
{
	return CELL | v.rule << 8 | v.reason;
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
	c = v.reason == REASON_RULE ? &block->rule[direction][v.rule & (RULE_SLOTS - 1)] :
				      &block->reason[direction][v.reason & (REASON_SLOTS - 1)];
	c->packets++;
	c->bytes += bytes;
}
