/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
#pragma once

#include "event.h"
#include "packet.h"

/* Where Docker's resolver listens, in every namespace that has one. */
#define RESOLVER 0x7f00000b /* 127.0.0.11 */

static __always_inline int closes(__u8 proto, int udp, int tcp)
{
	return proto == IPPROTO_UDP ? udp : proto == IPPROTO_TCP ? tcp : 0;
}

/* xdp.log=none holds here, too. */
static __always_inline int is_quiet(__u32 ifindex)
{
	__u32 id = find_device(ifindex).policy;
	struct policy *policy = bpf_map_lookup_elem(&policies, &id);

	return policy && policy->flags & QUIET;
}

/* Counts what is not let through to the resolver; bytes are those of a frame. A device is 0 before it is known. */
static __always_inline void refuse(const struct device *device, const struct packet *p, __u32 bytes)
{
	__u32 index = device->counters;
	struct counter_block *block = bpf_map_lookup_elem(&counters, &index);
	struct verdict v = { .reason = REASON_RESOLVER };

	if (block) {
		struct counter *c = &block->reason[EGRESS][REASON_RESOLVER];

		/* Who sends may be interrupted by who receives. */
		__sync_fetch_and_add(&c->packets, 1);
		__sync_fetch_and_add(&c->bytes, bytes);
	}
	if (device->ifindex && !is_quiet(device->ifindex) && !events_are_closed(device->counters))
		note_event(p, device, NULL, cell_of(v), bytes);
}
