// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * What a container receives, judged by tc at the egress of the host-side veth; and what it sends, at its ingress,
 * where XDP is not the hook or not enough.
 */

#include "flow.h"

#define TC_PASS -1 /* TC_ACT_UNSPEC: what is attached after us has its say */
#define TC_DROP 2 /* TC_ACT_SHOT */

/* All headers of nearly every packet. */
#define USUAL_HEADERS 128

__noinline int turn_skb(struct __sk_buff *skb, struct packet *p)
{
	return p && turn_quote((void *)(long)skb->data, (void *)(long)skb->data_end, p);
}

/*
 * At tc only the linear part of a packet can be read, and a sender decides how much that is (an AF_PACKET
 * ring leaves none of the IP header in it). So pull what is usual, and where that was not enough, all.
 */
__noinline int read_skb(struct __sk_buff *skb, __u32 d, struct packet *p)
{
	__u32 wanted = USUAL_HEADERS;

	if (!p)
		return 0;
	for (int i = 0; i < 2; i++) {
		struct packet fresh = {};
		void *data, *end;

		if (wanted > skb->len)
			wanted = skb->len;
		if (skb->data_end - skb->data < wanted)
			bpf_skb_pull_data(skb, wanted);
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		read_frame(data, end, skb->len, d, &fresh);
		if (fresh.quotes && !turn_skb(skb, &fresh))
			unknown_proto(&fresh, REASON_BAD_QUOTE);
		*p = fresh;
		if (fresh.reason == REASON_PASS || end - data >= skb->len)
			break;
		wanted = MAX_OFFSET;
	}
	return 0;
}

static __always_inline int judge_skb(struct __sk_buff *skb, enum direction direction)
{
	struct device device = find_device(skb->ifindex);
	struct verdict v = {};
	struct policy *policy = find_policy(&device, &v);

	if (policy) {
		struct packet p = {};

		read_skb(skb, direction, &p);
		v = judge_packet(policy, &device, &p, direction);
	}
	count(&device, direction, v, skb->len);
	return v.reason == REASON_PASS ? TC_PASS : TC_DROP;
}

SEC("tc")
int vethwall_received(struct __sk_buff *skb)
{
	return judge_skb(skb, INGRESS);
}

SEC("tc")
int vethwall_sent(struct __sk_buff *skb)
{
	return judge_skb(skb, EGRESS);
}
