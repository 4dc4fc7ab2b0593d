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

	return !t || t->closed == bpf_jiffies64();
}

/* Whether a device may have another event; a packet more or less does not matter here. */
static __always_inline int event_room(__u32 block, __u64 now)
{
	struct event_time *t = bpf_map_lookup_elem(&event_times, &block);

	if (!t)
		return 0;
	if (t->empty > now + EVENT_BURST * EVENT_TIME) {
		t->closed = bpf_jiffies64();
		return 0;
	}
	t->empty = (t->empty > now ? t->empty : now) + EVENT_TIME;
	return 1;
}

/* Writes an event, unless the device has had its share. cell is the verdict. */
__noinline int note_event(const struct packet *p, const struct device *device, __u32 cell,
			  __u32 bytes)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	__u32 zero = 0, slot;
	struct global *c;
	struct event *e;
	__u64 number;

	if (!p || !device || !event_room(device->counters, now))
		return 0;
	c = bpf_map_lookup_elem(&globals, &zero);
	if (!c)
		return 0;
	number = __sync_fetch_and_add(&c->num_events, 1);
	slot = number & (MAX_EVENTS - 1);
	e = bpf_map_lookup_elem(&events, &slot);
	if (!e)
		return 0;
	/* An exchange is a barrier, and BPF has no other. */
	__sync_lock_test_and_set(&e->number, 0);
	e->time = now;
	e->ifindex = device->ifindex;
	e->bytes = bytes;
	for (int i = 0; i < 4; i++) {
		e->src[i] = p->src[i];
		e->dst[i] = p->dst[i];
	}
	e->sport = p->sport;
	e->dport = p->dport;
	e->family = p->family;
	e->proto = p->proto;
	e->direction = p->direction;
	e->reason = cell;
	e->rule = cell >> 8 & (2 * RULE_SLOTS - 1);
	e->audited = !!(cell & AUDIT);
	__sync_lock_test_and_set(&e->number, number + 1);
	return 0;
}
