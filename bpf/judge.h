/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
#pragma once

#include "maps.h"
#include "packet.h"
#include "tree.h"

/*
 * A cell is a verdict: bit 31, the rule's slot of the counter block << 8, the reason.
 * REASON_UNREADABLE stands for the reason for which the packet could not be read.
 * Without bit 31, what a services tree holds is a class, or the first node of a table of what
 * each of the 65,536 services of a protocol has (TABLE); what a peers6 tree holds is a class, or the
 * root of the tree for the next 32 bits of the address (SUBTREE).
 */
#define CELL (1u << 31)
#define SUBTREE (1u << 30)
#define TABLE (1u << 30)
#define REASON_UNREADABLE 0xff
#define CELL_NO_POLICY (CELL | REASON_NO_POLICY)

struct verdict {
	__u8 reason;
	__u8 rule; /* slot, where reason is REASON_RULE */
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

static __always_inline __u32 find_peer(const struct table *t, const struct packet *p)
{
	__u32 class;

	if (p->family == 4)
		return find(t->peers4, p->peer[0], CELL_NO_POLICY);
	class = find(t->peers6, p->peer[0], CELL_NO_POLICY);
	for (int i = 1; i < 4 && (class & (CELL | SUBTREE)) == SUBTREE; i++)
		class = find_called(class & ~SUBTREE, p->peer[i], CELL_NO_POLICY);
	return class;
}

/* What the policy says of a packet that was read. No tree, or a broken one: nothing passes. */
static __always_inline struct verdict judge(const struct table *t, const struct packet *p)
{
	struct verdict v = {};
	__u32 cell;

	if (p->builtin)
		return v;
	cell = find_service(t, p->service);
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

static __always_inline void count(const struct device *d, __u32 direction, struct verdict v,
				  __u64 bytes)
{
	__u32 index = d->counters;
	struct counter_block *block = bpf_map_lookup_elem(&counters, &index);
	struct counter *c;

	if (!block)
		return;
	c = v.reason == REASON_RULE ? &block->rule[v.rule & (RULE_SLOTS - 1)] :
				      &block->reason[direction & 1][v.reason & (REASON_SLOTS - 1)];
	c->packets++;
	c->bytes += bytes;
}

/* The verdict on a frame, counted. */
static __always_inline enum reason judge_frame(__u32 ifindex, __u32 direction, void *data,
					       void *end)
{
	struct device d = find_device(ifindex);
	struct verdict v = { .reason = REASON_NO_POLICY };

	if (d.ifindex) {
		__u32 id = d.policy;
		struct policy *policy = bpf_map_lookup_elem(&policies, &id);

		v.reason = REASON_QUARANTINE;
		if (policy && policy->table[direction].services) {
			struct packet p = {};

			read_frame(data, end, &p);
			v = judge(&policy->table[direction], &p);
		}
	}
	count(&d, direction, v, end - data);
	return v.reason;
}
