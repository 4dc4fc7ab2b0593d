/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
#pragma once

#include "judge.h"

/*
 * What XDP writes in front of a packet (its metadata) where tc ingress follows it: the verdict, and a number that no
 * container can know. What comes to tc without it came past XDP: a redirect of a container with CAP_NET_ADMIN.
 */
struct stamp {
	__u64 secret;
	__u64 cell;
};

static __always_inline __u64 find_secret(void)
{
	__u32 zero = 0;
	struct global *c = bpf_map_lookup_elem(&globals, &zero);

	return c ? c->stamp : 0;
}

static __always_inline int stamp(struct xdp_md *ctx, __u32 cell)
{
	__u64 secret = find_secret();
	struct stamp *s;

	if (!secret || bpf_xdp_adjust_meta(ctx, -(int)sizeof(*s)))
		return 0;
	s = (void *)(long)ctx->data_meta;
	if ((void *)(s + 1) > (void *)(long)ctx->data)
		return 0;
	s->secret = secret;
	s->cell = cell;
	return 1;
}

/* The cell of a stamp, 0 without one. It is wiped out, so that nobody meets it a second time. */
static __always_inline __u32 take_stamp(struct __sk_buff *skb)
{
	struct stamp *s = (void *)(long)skb->data_meta;
	__u64 secret;

	if ((void *)(s + 1) > (void *)(long)skb->data)
		return 0;
	secret = find_secret();
	if (!secret || s->secret != secret)
		return 0;
	s->secret = 0;
	return s->cell;
}
