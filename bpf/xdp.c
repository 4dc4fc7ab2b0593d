// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* What a container sends, judged by XDP on the host-side veth. */

#include "flow.h"
#include "stamp.h"

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
	__u32 bytes = end - data;
	struct device device = find_device(ctx->ingress_ifindex);
	struct packet p = { .direction = EGRESS };
	struct identity id = {};
	struct verdict v = {};
	struct policy *policy = find_policy(&device, &v);

	/* Without a policy for the sake of the event. */
	read_frame(data, end, bytes, EGRESS, &p);
	if (policy) {
		id = find_identity(&device);
		v = verdict_of(cell_for(policy, antispoof(id, &p)), 0);
		if (v.reason == REASON_PASS) {
			if (p.quotes && !turn_xdp(ctx, &p))
				unknown_proto(&p, REASON_BAD_QUOTE);
			v = judge_packet(policy, &device, &p, EGRESS);
		}
	}
	/* Who judges last counts. */
	if (id.own & TWO_HOOKS && passes(v) && stamp(ctx, cell_of(v)))
		return XDP_PASS;
	device.ifindex = ctx->ingress_ifindex; /* without a policy it is 0 */
	tell(&device, policy, &p, EGRESS, v, bytes);
	return passes(v) ? XDP_PASS : XDP_DROP;
}
