// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* What a container sends, judged by XDP on the host-side veth. */

#include "flow.h"

SEC("xdp")
int vethwall_xdp(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct device device = find_device(ctx->ingress_ifindex);
	struct verdict v = {};
	struct policy *policy = find_policy(&device, &v);

	if (policy) {
		struct packet p = {};

		read_frame(data, end, end - data, EGRESS, &p);
		v = judge_packet(policy, &device, &p, EGRESS);
	}
	count(&device, EGRESS, v, end - data);
	return v.reason == REASON_PASS ? XDP_PASS : XDP_DROP;
}
