/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
#pragma once

#include "judge.h"

/* Of one device: so many at once, and so many a second. */
#define EVENT_BURST 64
#define EVENTS_PER_SECOND 32
#define EVENT_TIME (1000000000ULL / EVENTS_PER_SECOND)

/*
 * Whether a device has had its share of events in this very tick: a flood asks no further. The kernel reads its ticks in
 * the program itself, where any other clock is a call.
 */
static __always_inline int events_are_closed(__u32 block)
{
	struct event_time *t = bpf_map_lookup_elem(&event_times, &block);

	if (t && t->closed != bpf_jiffies64())
		return 0;
	if (t)
		t->skipped++;
	return 1;
}

/* Whether a device may have another event; a packet more or less does not matter here. */
static __always_inline int event_room(struct event_time *t, __u64 now)
{
	if (t->empty > now + EVENT_BURST * EVENT_TIME) {
		t->closed = bpf_jiffies64();
		t->skipped++;
		return 0;
	}
	t->empty = (t->empty > now ? t->empty : now) + EVENT_TIME;
	return 1;
}

/* What could be read of a packet. */
static __always_inline void describe(struct event *e, const struct packet *p)
{
	e->mac = p->mac;
	for (int i = 0; i < 4; i++) {
		e->src[i] = p->src[i];
		e->dst[i] = p->dst[i];
	}
	e->service = p->service;
	e->sport = p->sport;
	e->dport = p->dport;
	e->family = p->family;
	e->proto = p->proto;
	e->direction = p->direction;
	e->kind = (p->builtin ? EVENT_BUILTIN : 0) | (p->claims ? EVENT_CLAIMS : 0) |
		  (p->quotes == TURNED ? EVENT_TURNED : 0);
}

/* Writes an event, unless the device has had its share. cell is the verdict. */
__noinline int note_event(const struct packet *p, const struct device *device,
			  const struct policy *policy, __u32 cell, __u32 bytes)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	__u32 zero = 0, slot, block;
	struct event_time *t;
	struct global *c;
	struct event *e;
	__u64 number;

	if (!p || !device)
		return 0;
	block = device->counters;
	t = bpf_map_lookup_elem(&event_times, &block);
	c = bpf_map_lookup_elem(&globals, &zero);
	if (!t || !c || !event_room(t, now))
		return 0;
	number = __sync_fetch_and_add(&c->num_events, 1);
	slot = number & (MAX_EVENTS - 1);
	e = bpf_map_lookup_elem(&events, &slot);
	if (!e)
		return 0;
	/* An exchange is a barrier, and BPF has no other. */
	__sync_lock_test_and_set(&e->number, 0);
	describe(e, p);
	e->time = now;
	e->ifindex = device->ifindex;
	e->bytes = bytes;
	e->names = policy ? policy->names : 0;
	e->skipped = t->skipped;
	t->skipped = 0;
	e->reason = cell;
	e->rule = cell >> 8 & (2 * RULE_SLOTS - 1);
	e->audited = !!(cell & AUDIT);
	__sync_lock_test_and_set(&e->number, number + 1);
	return 0;
}
