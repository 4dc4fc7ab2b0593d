// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* What a container sends, judged by XDP on the host-side veth. */

#include "flow.h"

/* Functions that are not static are read by the verifier once, whatever their caller knows. */
__noinline int turn_xdp(struct xdp_md *ctx, struct packet *p)
{
	return p && turn_quote((void *)(long)ctx->data, (void *)(long)ctx->data_end, p);
}

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
		if (p.quotes && !turn_xdp(ctx, &p))
			unknown_proto(&p, REASON_BAD_QUOTE);
		v = judge_packet(policy, &device, &p, EGRESS);
	}
	count(&device, EGRESS, v, end - data);
	return v.reason == REASON_PASS ? XDP_PASS : XDP_DROP;
}
