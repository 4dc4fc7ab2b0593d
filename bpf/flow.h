/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
#pragma once

#include "antispoof.h"
#include "event.h"

#define SECOND 1000000000ULL
#define UNANSWERED_TIMEOUT (30 * SECOND)
#define CLOSING_TIMEOUT (30 * SECOND)
#define TCP_TIMEOUT (24 * 3600 * SECOND)
#define UDP_TIMEOUT (180 * SECOND)
#define OTHER_TIMEOUT (30 * SECOND)
#define FRAGMENT_TIMEOUT (30 * SECOND)
/* How old seen may get before it is written again: a write takes the line from other processors. */
#define SEEN_STEP (SECOND / 8)

/*
 * A cell for an address, as a function that the verifier reads once: what is known of its caller's packet
 * would otherwise make it many. The same for converse. d is a direction, or one + 2 for its limits.
 */
__noinline __u32 find_cell_called(const struct policy *policy, __u32 d, __u32 service,
				  const struct flow_key *k)
{
	if (!policy || !k)
		return CELL_NO_POLICY;
	return find_cell(&policy->table[d & 3], service, k->family, k->peer);
}

/* The direction is added out here: the stack of that function is the last that there is room for. */
static __always_inline __u32 find_rule(const struct policy *policy, __u32 d, __u32 service,
				       const struct flow_key *k)
{
	return of_direction(find_cell_called(policy, d, service, k), d);
}

/* The number of a container's tables in the maps of maps; 0, which has none, where it has no state. */
static __always_inline __u32 find_state(__u32 block)
{
	struct shared *shared = bpf_map_lookup_elem(&states, &block);

	return shared ? shared->state : 0;
}

static __always_inline void flow_key(const struct packet *p, enum direction d, struct flow_key *k)
{
	for (int i = 0; i < 4; i++) {
		k->local[i] = d == EGRESS ? p->src[i] : p->dst[i];
		k->peer[i] = d == EGRESS ? p->dst[i] : p->src[i];
	}
	k->local_port = d == EGRESS ? p->sport : p->dport;
	k->peer_port = d == EGRESS ? p->dport : p->sport;
	k->proto = p->proto;
	k->family = p->family;
	if (p->echo) {
		/* A request the other way is another conversation, although it may have the same number. */
		k->local_port = p->sport;
		k->peer_port = 0x100 | ((p->echo == ECHO_REQUEST) == (d == EGRESS));
	} else if (p->proto == IPPROTO_ICMP || p->proto == IPPROTO_ICMPV6) {
		k->local_port = 0;
		k->peer_port = p->dport;
	}
}

static __always_inline __u64 idle_time(const struct flow *f, __u8 proto)
{
	if (f->closing)
		return CLOSING_TIMEOUT;
	return proto == IPPROTO_TCP ? TCP_TIMEOUT :
	       proto == IPPROTO_UDP ? UDP_TIMEOUT :
				      OTHER_TIMEOUT;
}

/*
 * Whether a conversation may go on: always under the policy that it was opened under; under another if that would
 * let it be opened.
 */
static __always_inline struct verdict may_go_on(const struct policy *policy, struct flow *f,
						const struct flow_key *k)
{
	struct verdict v = {};

	if (f->generation == policy->generation)
		return v;
	v = verdict_of(find_rule(policy, f->opener, f->service, k), REASON_NO_POLICY);
	if (passes(v))
		f->generation = policy->generation;
	return v;
}

/*
 * What a changed policy forbids stays in its table, forbidden, until neither side has sent for the idle time: of any
 * protocol but TCP (judge_midstream) who sends next would else open it anew, and that may be the other side, which may.
 */
static __always_inline void end(void *table, struct flow *f, const struct flow_key *k,
				const struct packet *p, __u64 now)
{
	if (k->proto == IPPROTO_TCP)
		bpf_map_delete_elem(table, k);
	else if (!p->quotes)
		f->seen = now;
}

static __always_inline void note_tcp(struct flow *f, const struct packet *p)
{
	if (p->tcp_flags & (TCP_FIN | TCP_RST))
		f->closing = 1;
}

static __always_inline int is_syn(const struct packet *p)
{
	return p->proto == IPPROTO_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/*
 * A packet of a conversation in table that was answered: 1 and the verdict, or 0 where there is none.
 */
static __always_inline int goes_on(const struct policy *policy, void *table, const struct packet *p,
				   const struct flow_key *k, __u64 now, struct verdict *v)
{
	struct flow *f = bpf_map_lookup_elem(table, k);

	if (!f)
		return 0;
	/* After its end the same ports open another. */
	if ((f->closing && is_syn(p)) || now - f->seen >= idle_time(f, k->proto)) {
		bpf_map_delete_elem(table, k);
		return 0;
	}
	*v = may_go_on(policy, f, k);
	if (!passes(*v)) {
		end(table, f, k, p, now);
		return 1;
	}
	if (p->quotes)
		return 1;
	if (now - f->seen > SEEN_STEP)
		f->seen = now;
	note_tcp(f, p);
	return 1;
}

/*
 * The same of one in table that nobody had answered. A packet of the other side moves it to answers.
 */
static __always_inline int is_awaited(const struct policy *policy, void *table, void *answers,
				      const struct packet *p, enum direction d,
				      const struct flow_key *k, __u64 now, struct verdict *v)
{
	struct flow *f = bpf_map_lookup_elem(table, k);
	struct flow answer = {};

	if (!f || now - f->seen >= UNANSWERED_TIMEOUT)
		return 0;
	if (f->closing && is_syn(p)) {
		bpf_map_delete_elem(table, k);
		return 0;
	}
	*v = may_go_on(policy, f, k);
	if (!passes(*v)) {
		end(table, f, k, p, now);
		return 1;
	}
	if (p->quotes)
		return 1;
	if (f->opener == d || p->tcp_flags & TCP_RST) {
		f->seen = now;
		note_tcp(f, p);
		return 1;
	}
	answer = *f;
	answer.seen = now;
	note_tcp(&answer, p);
	if (bpf_map_update_elem(answers, k, &answer, BPF_ANY))
		*v = verdict_of(cell_for(policy, REASON_TABLE_FULL), 0);
	else
		bpf_map_delete_elem(table, k);
	return 1;
}

/*
 * A TCP packet that opens nothing and belongs to no conversation that we know: one of before the filter came, or
 * whose entry was given up. It passes where an allow rule says so, or where the conversation would be allowed
 * whoever had opened it.
 */
static __always_inline struct verdict judge_midstream(const struct policy *policy,
						      const struct packet *p, enum direction d,
						      const struct flow_key *k, struct verdict own)
{
	struct verdict other;

	if (!passes(own) || own.allowed)
		return own;
	other = verdict_of(find_rule(policy, !d, p->reverse, k), p->reason);
	return passes(other) && own.reason != REASON_PASS ? own : other;
}

static __always_inline int is_multicast(const struct packet *p)
{
	if (p->family == 4)
		return p->dst[0] >> 28 == 0xe || p->dst[0] == 0xffffffff;
	return p->dst[0] >> 24 == 0xff;
}

static __always_inline void fragment_key(const struct packet *p, struct fragment_key *k)
{
	for (int i = 0; i < 4; i++) {
		k->src[i] = p->src[i];
		k->dst[i] = p->dst[i];
	}
	k->id = p->id;
	k->proto = p->part_proto;
	k->family = p->family;
}

/* Functions of their own, as find_cell_called is, for the room on the stack. */
__noinline int follows_first(const struct policy *policy, const struct packet *p, __u32 block,
			     __u64 now)
{
	struct fragment_key k = {};
	struct first_fragment *first;
	__u32 state = find_state(block);
	void *table = bpf_map_lookup_elem(&fragments, &state);

	if (!policy || !p || !table)
		return 0;
	fragment_key(p, &k);
	first = bpf_map_lookup_elem(table, &k);
	return first && first->generation == policy->generation &&
	       now - first->seen < FRAGMENT_TIMEOUT && p->part_from >= first->end;
}

__noinline int note_first(const struct policy *policy, const struct packet *p, __u32 block,
			  __u64 now)
{
	struct first_fragment first = { now };
	struct fragment_key k = {};
	__u32 state = find_state(block);
	void *table = bpf_map_lookup_elem(&fragments, &state);

	if (!policy || !p || !table)
		return 0;
	first.end = p->part_to;
	first.generation = policy->generation;
	fragment_key(p, &k);
	bpf_map_update_elem(table, &k, &first, BPF_ANY);
	return 0;
}

/* A packet of no conversation: if it passes it opens one, in table. */
static __always_inline struct verdict opens(const struct policy *policy, void *table,
					    const struct packet *p, enum direction d,
					    const struct flow_key *k, __u64 now)
{
	struct flow f = {};
	struct verdict v;

	if (p->quotes)
		return verdict_of(cell_for(policy, REASON_BAD_QUOTE), 0);
	v = verdict_of(find_rule(policy, d, p->service, k), 0);
	if (p->proto == IPPROTO_TCP && !is_syn(p))
		v = judge_midstream(policy, p, d, k, v);
	if (!passes(v))
		return v;
	f.seen = now;
	f.service = p->service;
	f.generation = policy->generation;
	f.opener = d;
	note_tcp(&f, p);
	if (bpf_map_update_elem(table, k, &f, BPF_ANY))
		v = verdict_of(cell_for(policy, REASON_TABLE_FULL), 0);
	return v;
}

/*
 * The verdict of a policy with state on a packet, as a cell. block is the counter block of the device, which tells
 * whose state it is.
 */
__noinline __u32 converse(const struct policy *policy, const struct packet *p, __u32 block, __u32 d)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	__u32 state = find_state(block);
	void *answers = bpf_map_lookup_elem(&answered, &state);
	struct flow_key k = {};
	struct verdict v = {};

	if (!policy || !p || d > INGRESS || !answers)
		return CELL_NO_POLICY;
	if (p->fragment == LATER_FRAGMENT && follows_first(policy, p, block, now))
		return CELL;
	flow_key(p, d, &k);
	/* What could not be read, is not IP, or goes to many is judged alone. */
	if (p->reason != REASON_PASS || !p->family || is_multicast(p))
		return find_rule(policy, d, p->service, &k);
	if (!goes_on(policy, answers, p, &k, now, &v)) {
		void *table = bpf_map_lookup_elem(&unanswered, &state);

		if (!table)
			return CELL_NO_POLICY;
		if (!is_awaited(policy, table, answers, p, d, &k, now, &v))
			v = opens(policy, table, p, d, &k, now);
	}
	if (passes(v) && p->fragment == FIRST_FRAGMENT && !p->quotes)
		note_first(policy, p, block, now);
	return cell_of(v);
}

/* The verdict of a policy that does not ask who opened what. */
static __always_inline struct verdict judge_alone(const struct policy *policy,
						  const struct packet *p, enum direction d)
{
	__u32 cell =
		find_cell(&policy->table[d], p->service, p->family, d == EGRESS ? p->dst : p->src);

	return verdict_of(of_direction(cell, d), p->reason);
}

static __always_inline struct verdict judge_packet(const struct policy *policy,
						   const struct device *device,
						   const struct packet *p, enum direction d)
{
	if (p->builtin)
		return (struct verdict){};
	if (!(policy->flags & POLICY_STATEFUL))
		return judge_alone(policy, p, d);
	return verdict_of(converse(policy, p, device->counters, d), p->reason);
}

/* Counts a packet, and notes it where that is asked for. */
static __always_inline void tell(const struct device *device, const struct policy *policy,
				 const struct packet *p, enum direction d, struct verdict v,
				 __u32 bytes)
{
	int log = v.reason != REASON_PASS ? !v.quiet : policy && policy->flags & POLICY_LOG_PASSES;

	count(device, d, v, bytes);
	if (log && !events_are_closed(device->counters))
		note_event(p, device, policy, cell_of(v), bytes);
}

/* Where the policy of a device stands, NULL with the verdict where it has none to judge by. */
static __always_inline struct policy *find_policy(const struct device *device, struct verdict *v)
{
	__u32 id = device->policy;
	struct policy *policy;

	v->reason = REASON_NO_POLICY;
	if (!device->ifindex)
		return NULL;
	v->reason = REASON_QUARANTINE;
	policy = bpf_map_lookup_elem(&policies, &id);
	return policy && policy->table[EGRESS].services ? policy : NULL;
}
