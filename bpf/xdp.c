// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* What a container sends, judged by XDP on the host-side veth. */

#include "judge.h"

#define EGRESS 0

SEC("xdp")
int vethwall_xdp(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;

	if (judge_frame(ctx->ingress_ifindex, EGRESS, data, end) == REASON_PASS)
		return XDP_PASS;
	return XDP_DROP;
}

char _license[] SEC("license") = "Dual MIT/GPL";
