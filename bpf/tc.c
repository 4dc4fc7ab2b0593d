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

/* Reads what is linear of a packet; whether that is all that there is. */
__noinline int read_linear(struct __sk_buff *skb, __u32 d, struct packet *p)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;

	if (!p)
		return 1;
	read_frame(data, end, skb->len, d, p);
	return end - data >= skb->len;
}

/* At least so many bytes of a packet, or all of it, are linear afterwards. */
static __always_inline void pull(struct __sk_buff *skb, __u32 bytes)
{
	if (bytes > skb->len)
		bytes = skb->len;
	if (skb->data_end - skb->data < bytes)
		bpf_skb_pull_data(skb, bytes);
}

/*
 * At tc only the linear part of a packet can be read, and a sender decides how much that is (an AF_PACKET
 * ring leaves none of the IP header in it). So pull what is usual, and where that was not enough, all.
 */
static __always_inline void read_skb(struct __sk_buff *skb, enum direction d, struct packet *p)
{
	int whole;

	pull(skb, USUAL_HEADERS);
	whole = read_linear(skb, d, p);
	if (p->quotes && !turn_skb(skb, p))
		unknown_proto(p, REASON_BAD_QUOTE);
	if (p->reason == REASON_PASS || whole)
		return;
	pull(skb, MAX_OFFSET);
	__builtin_memset(p, 0, sizeof(*p));
	read_linear(skb, d, p);
	if (p->quotes && !turn_skb(skb, p))
		unknown_proto(p, REASON_BAD_QUOTE);
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
