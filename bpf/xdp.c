// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* What a container sends, judged by XDP on the host-side veth. */

#include "judge.h"

#define EGRESS 0

SEC("xdp")
int vethwall_xdp(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	__u32 ifindex = ctx->ingress_ifindex;
	struct policy *policy = bpf_map_lookup_elem(&devices, &ifindex);
	struct verdict v = { .reason = REASON_NO_POLICY };

	if (policy)
		v = judge_frame(&policy->table[EGRESS], data, end);
	count(ifindex, EGRESS, v, end - data);
	return v.reason == REASON_PASS ? XDP_PASS : XDP_DROP;
}

char _license[] SEC("license") = "Dual MIT/GPL";
