/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
#pragma once

#include "antispoof.h"
#include "event.h"

#define SECOND 1000000000ULL
/* Of flow.closing, by direction: a FIN has passed, a RST. */
#define FIN(d) (1 << (d))
#define RST(d) (4 << (d))
#define UNANSWERED_TIMEOUT (30 * SECOND)
#define CLOSING_TIMEOUT (30 * SECOND)
/* Where there is no room: Linux gives a FIN up that nobody acknowledges after some 100 s, and then says no more. */
#define HALF_CLOSED_TIMEOUT (120 * SECOND)
#define TCP_TIMEOUT (24 * 3600 * SECOND)
#define UDP_TIMEOUT (180 * SECOND)
#define OTHER_TIMEOUT (30 * SECOND)
#define FRAGMENT_TIMEOUT (30 * SECOND)
/* Longer than any pause of a TCP that is not answered (RFC 6298: 60 s at the least). */
#define FORBIDDEN_TIMEOUT (180 * SECOND)
/* More than anybody sends before the handshake is over (RFC 7413): 10 segments of 64 KiB (RFC 6928). */
#define FIRST_WINDOW (1 << 20)
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

static __always_inline void *table_of(void *tables, __u32 block)
{
	__u32 state = find_state(block);

	return bpf_map_lookup_elem(tables, &state);
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

static __always_inline int is_syn(const struct packet *p)
{
	return p->proto == IPPROTO_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* Whether both sides have ended it, or one of them at once. */
static __always_inline int is_over(const struct flow *f)
{
	return f->closing & (RST(EGRESS) | RST(INGRESS)) ||
	       f->closing == (FIN(EGRESS) | FIN(INGRESS));
}

/* Of a conversation that has been answered, or is forbidden. */
static __always_inline __u64 idle_time(const struct flow *f, __u8 proto)
{
	if (f->forbidden)
		return FORBIDDEN_TIMEOUT;
	if (is_over(f))
		return CLOSING_TIMEOUT;
	return proto == IPPROTO_TCP ? TCP_TIMEOUT :
	       proto == IPPROTO_UDP ? UDP_TIMEOUT :
				      OTHER_TIMEOUT;
}

/* Whoever goes on after a RST of his own has not sent it, or not so that it counts. A SYN begins anew. */
static __always_inline void note_tcp(struct flow *f, const struct packet *p, enum direction d)
{
	if (p->tcp_flags & TCP_RST) {
		f->closing |= RST(d);
		return;
	}
	f->closing &= ~RST(d);
	if (p->tcp_flags & TCP_FIN)
		f->closing |= FIN(d);
	else if (is_syn(p))
		f->closing = 0;
}

static __always_inline int is_midstream(const struct packet *p)
{
	return p->proto == IPPROTO_TCP && !is_syn(p);
}

/*
 * Whether something was seen so long ago. Another processor may have seen it since this one looked at its clock: that is
 * no long time.
 */
static __always_inline int is_past(__u64 now, __u64 seen, __u64 idle)
{
	return (__s64)(now - seen) >= (__s64)idle;
}

/* A conversation of a table that has not been idle for too long. */
static __always_inline struct flow *find_flow(void *table, const struct flow_key *k, __u64 now,
					      int is_answered)
{
	struct flow *f = bpf_map_lookup_elem(table, k);

	if (!f)
		return NULL;
	if (!is_past(now, f->seen,
		     is_answered || f->forbidden ? idle_time(f, k->proto) : UNANSWERED_TIMEOUT))
		return f;
	bpf_map_delete_elem(table, k);
	return NULL;
}

/* Whether of each source an allow rule says that a conversation may be opened so, or it may be opened either way. */
static __always_inline int lets_open(__u32 so, __u32 the_other_way)
{
	__u32 allowed = so >> ALLOWED_SHIFT & ALL_SOURCES;

	return cell_passes(so) && (cell_passes(the_other_way) ||
				   !(the_other_way >> REFUSED_SHIFT & ALL_SOURCES & ~allowed));
}

/* The verdict where own is that of the sender's direction, other that of the other. For the room on the stack no part of its caller. */
static __noinline __u32 judge_midstream(__u32 own, __u32 other, int either)
{
	if (lets_open(own, other))
		return own >> ALLOWED_SHIFT & ALL_SOURCES || (own & 0xff) != REASON_PASS ? own :
											   other;
	return cell_passes(own) || (either && lets_open(other, own)) ? other : own;
}

/*
 * The verdict on a packet that opens a conversation. A TCP packet other than a SYN is one of before the filter came, or whose
 * entry was given up, and who opened that is a guess. It passes if its sender may have. Where both have been heard, either may.
 */
static __always_inline __u32 judge_opening(const struct policy *policy, const struct packet *p,
					   enum direction d, const struct flow_key *k, int either)
{
	__u32 own = find_rule(policy, d, p->service, k);

	if (!is_midstream(p) || (!cell_passes(own) && !either))
		return own;
	return judge_midstream(own, find_rule(policy, !d, p->reverse, k), either);
}

/*
 * Whether a packet of a conversation that nobody has answered answers it. A TCP SYN is answered when who sent it goes
 * on, and knows the number of the SYN that came back: before that it may be one of a flood, from an address that is
 * none of the sender's.
 */
static __always_inline int answers(struct flow *f, const struct packet *p, enum direction d)
{
	if (p->tcp_flags & TCP_RST)
		return 0; /* it says that nobody is there */
	if (f->opener == d)
		return f->awaited && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_ACK &&
		       p->tcp_number - f->awaited < FIRST_WINDOW;
	if (p->tcp_flags & TCP_SYN)
		f->awaited = p->tcp_number + 1;
	return !f->awaited;
}

struct reclaiming {
	__u64 now;
	__u64 half_closed; /* whether those give way, too */
};

static long reclaim_flow(void *table, const struct flow_key *k, const struct flow *f,
			 const struct reclaiming *r)
{
	if (is_past(r->now, f->seen, idle_time(f, k->proto)) ||
	    (r->half_closed && f->closing && is_past(r->now, f->seen, HALF_CLOSED_TIMEOUT)))
		bpf_map_delete_elem(table, k);
	return 0;
}

/*
 * Makes a conversation one of those that were answered. Where there is no room what has been idle for too long is
 * forgotten, and if that is not enough what one side has closed long ago, once a second at most. An agent does the
 * former now and then, but there need not be one.
 */
static __noinline int keep(const struct flow_key *k, const struct flow *f, __u32 block)
{
	struct shared *shared = bpf_map_lookup_elem(&states, &block);
	struct reclaiming r = { f->seen };
	void *table;

	if (!shared)
		return 0;
	table = bpf_map_lookup_elem(&answered, &shared->state);
	if (!table)
		return 0;
	if (!bpf_map_update_elem(table, k, f, BPF_ANY))
		return 1;
	if (!is_past(r.now, shared->reclaimed, SECOND))
		return 0;
	shared->reclaimed = r.now;
	bpf_for_each_map_elem(table, reclaim_flow, &r, 0);
	if (!bpf_map_update_elem(table, k, f, BPF_ANY))
		return 1;
	r.half_closed = 1;
	bpf_for_each_map_elem(table, reclaim_flow, &r, 0);
	return !bpf_map_update_elem(table, k, f, BPF_ANY);
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
	void *table = table_of(&fragments, block);

	if (!policy || !p || !table)
		return 0;
	fragment_key(p, &k);
	first = bpf_map_lookup_elem(table, &k);
	return first && first->generation == policy->generation &&
	       !is_past(now, first->seen, FRAGMENT_TIMEOUT) && p->part_from >= first->end;
}

__noinline int note_first(const struct policy *policy, const struct packet *p, __u32 block,
			  __u64 now)
{
	struct first_fragment first = { now };
	struct fragment_key k = {};
	void *table = table_of(&fragments, block);

	if (!policy || !p || !table)
		return 0;
	first.end = p->part_to;
	first.generation = policy->generation;
	fragment_key(p, &k);
	bpf_map_update_elem(table, &k, &first, BPF_ANY);
	return 0;
}

/*
 * The verdict of a policy with state on a packet, as a cell. block is the counter block of the device, which tells
 * whose state it is.
 */
__noinline __u32 converse(const struct policy *policy, const struct packet *p, __u32 block, __u32 d)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	void *table = table_of(&answered, block);
	int is_answered = 1;
	struct flow_key k = {};
	struct flow *f;
	__u32 cell;

	if (!policy || !p || d > INGRESS || !table)
		return CELL_NO_POLICY;
	if (p->fragment == LATER_FRAGMENT && follows_first(policy, p, block, now))
		return CELL;
	flow_key(p, d, &k);
	/* What could not be read, is not IP, or goes to many is judged alone. */
	if (p->reason != REASON_PASS || !p->family || is_multicast(p))
		return find_rule(policy, d, p->service, &k);

	f = find_flow(table, &k, now, 1);
	if (!f) {
		is_answered = 0;
		table = table_of(&unanswered, block);
		if (!table)
			return CELL_NO_POLICY;
		f = find_flow(table, &k, now, 0);
	}
	if (!f && p->quotes)
		return cell_for(policy, REASON_BAD_QUOTE);

	/* Under the policy that it was opened under a conversation goes on. Another has to let it be opened. */
	if (f && f->generation == policy->generation)
		cell = CELL;
	else if (f && !f->guessed)
		cell = find_rule(policy, f->opener, f->service, &k);
	else
		cell = judge_opening(policy, p, d, &k, f && is_answered);
	/*
	 * On the ports of one that is over, may not go on, or whose opener is a guess, a SYN may open another. Nor does who
	 * was asked open one on those of one that goes on.
	 */
	if (f && is_syn(p)) {
		int replaces = is_over(f) || f->guessed || !cell_passes(cell);

		if (replaces || (is_answered && d != f->opener)) {
			cell = find_rule(policy, d, p->service, &k);
			if (!cell_passes(cell))
				return cell;
		}
		if (replaces) {
			bpf_map_delete_elem(table, &k);
			f = NULL;
		}
	}
	if (!cell_passes(cell)) {
		/*
		 * It stays known as long as anybody sends: who sends next would else open it anew, as one that is older
		 * than its entry, and that may be the other side, which may.
		 */
		if (f && k.proto == IPPROTO_TCP) {
			f->forbidden = 1;
			f->seen = now;
		}
		return cell;
	}
	if (!f) {
		struct flow fresh = {
			.seen = now,
			.service = p->service,
			.generation = policy->generation,
			.opener = d,
			.guessed = is_midstream(p),
		};

		note_tcp(&fresh, p, d);
		table = table_of(&unanswered, block);
		if (!table || bpf_map_update_elem(table, &k, &fresh, BPF_ANY))
			cell = cell_for(policy, REASON_TABLE_FULL);
	} else {
		f->generation = policy->generation;
		f->forbidden = 0;
		if (p->quotes)
			return cell;
		note_tcp(f, p, d);
		if (!is_answered || now - f->seen > SEEN_STEP)
			f->seen = now;
		if (!is_answered && answers(f, p, d)) {
			if (keep(&k, f, block))
				bpf_map_delete_elem(table, &k);
			else
				cell = cell_for(policy, REASON_TABLE_FULL);
		}
	}
	if (p->fragment == FIRST_FRAGMENT && cell_passes(cell))
		note_first(policy, p, block, now);
	return cell;
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
