// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * What a container receives, judged by tc at the egress of the host-side veth; and what it sends, at its ingress,
 * where XDP is not the hook or not enough.
 */

#include "checksum.h"
#include "limit.h"
#include "neighbor.h"
#include "stamp.h"

#define TC_PASS -1 /* TC_ACT_UNSPEC: what is attached after us has its say */
#define TC_DROP 2 /* TC_ACT_SHOT */

/* A bit that no packet has that comes from another network namespace (skb_scrub_packet); the rule that looks for it takes it away. */
#define GUARD_MARK 0x80000000

/* Ethernet, IPv4 and TCP without options: what the stack builds has its headers in one piece, and these at least. */
#define LEAST_HEADERS 54
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
 * ring leaves none of the IP header in it). What TCP sends is linear up to its payload, and a clone of what it keeps: to pull
 * one byte more copies the head, half a microsecond. So what is there is read first, and where that was not enough, all is pulled.
 */
static __always_inline void read_skb(struct __sk_buff *skb, enum direction d, struct packet *p)
{
	int whole;

	if (skb->data_end - skb->data < LEAST_HEADERS)
		pull(skb, USUAL_HEADERS);
	whole = read_linear(skb, d, p);
	/* Of ICMP more has to be read than what tells what it is: what it quotes or claims. */
	if (whole || (p->reason == REASON_PASS && !p->quotes && p->proto != IPPROTO_ICMPV6))
		return;
	pull(skb, MAX_OFFSET);
	__builtin_memset(p, 0, sizeof(*p));
	read_linear(skb, d, p);
}

/* How many packets it is on the wire, and how long they are together: each segment repeats the headers. */
static __always_inline void measure(struct __sk_buff *skb, struct packet *p)
{
	__u32 size = skb->gso_size;

	p->segments = 1;
	p->bytes = skb->len;
	if (!size || skb->len <= p->headers)
		return;
	/* What a sender of raw frames need not set, and cannot set for SCTP and tunnels, which size does not tell. */
	if (!p->headers && skb->gso_segs) {
		p->segments = skb->gso_segs;
		return;
	}
	p->segments = (skb->len - p->headers + size - 1) / size;
	p->bytes += (p->segments - 1) * p->headers;
}

static __always_inline struct verdict limit_skb(struct __sk_buff *skb, const struct policy *policy,
						const struct device *device, struct packet *p,
						enum direction d, struct verdict v)
{
	struct verdict limited;

	measure(skb, p);
	limited = verdict_of(
		hold_to_limits(policy, p, device->counters, d, find_limits(policy, p, d)), 0);
	return passes(limited) && v.reason != REASON_PASS ? v : limited;
}

static __always_inline struct verdict judge_skb(struct __sk_buff *skb, const struct policy *policy,
						const struct device *device, struct packet *p,
						enum direction d)
{
	__u32 cell = d == EGRESS ? take_stamp(skb) : 0;
	struct verdict v = verdict_of(cell, 0);
	__u32 limits = policy->flags & POLICY_LIMITS << d;
	__u32 checksum = d == EGRESS ? find_checksum(skb) : 0;

	if (checksum && is_usual_checksum(skb, checksum))
		checksum = 0;
	if (!checksum && cell && v.reason == REASON_PASS && !limits &&
	    !(policy->flags & POLICY_LOG_PASSES))
		return v;
	read_skb(skb, d, p);
	if (checksum && !is_checksum_of(p, checksum))
		return verdict_of(cell_for(policy, REASON_BAD_HEADER), 0);
	if (!cell && d == EGRESS)
		v = verdict_of(cell_for(policy, antispoof(find_identity(device), p)), 0);
	else if (d == INGRESS)
		v = verdict_of(cell_for(policy, judge_neighbor(skb, device, p)), 0);
	if (v.reason == REASON_PASS && p->quotes && !turn_skb(skb, p))
		unknown_proto(p, REASON_BAD_QUOTE);
	if (!cell && v.reason == REASON_PASS)
		v = judge_packet(policy, device, p, d);
	if (limits && passes(v) && !p->builtin)
		v = limit_skb(skb, policy, device, p, d, v);
	return v;
}

static __always_inline int filter_skb(struct __sk_buff *skb, enum direction d)
{
	struct device device = find_device(skb->ifindex);
	struct packet p = { .direction = d };
	struct verdict v = {};
	struct policy *policy = find_policy(&device, &v);

	if (policy)
		v = judge_skb(skb, policy, &device, &p, d);
	else
		read_skb(skb, d, &p);
	if (d == EGRESS && passes(v) && find_identity(&device).own & GUARDED)
		skb->mark |= GUARD_MARK;
	device.ifindex = skb->ifindex; /* without a policy it is 0 */
	tell(&device, policy, &p, d, v, skb->len);
	return passes(v) ? TC_PASS : TC_DROP;
}

SEC("tc")
int vethwall_received(struct __sk_buff *skb)
{
	return filter_skb(skb, INGRESS);
}

SEC("tc")
int vethwall_sent(struct __sk_buff *skb)
{
	return filter_skb(skb, EGRESS);
}
