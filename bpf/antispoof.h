/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
#pragma once

#include "judge.h"

#define MAC_BITS 0xffffffffffffULL

/* A container without an address asks for one from 0.0.0.0 (RFC 2131). */
static __always_inline int is_dhcp_request(const struct packet *p)
{
	return p->family == 4 && !p->src[0] && p->service == (IPPROTO_UDP << 16 | DHCP_SERVER);
}

/* Before it knows that its address is free it solicits and joins groups from :: (RFC 4862, RFC 3590). */
static __always_inline int is_nobody_yet(const struct packet *p)
{
	return p->builtin && is_zero(p->src);
}

/*
 * Whether what could not be read may be what no container has to send. A later fragment is not: what it follows
 * has been judged.
 */
static __always_inline int may_be_forged(const struct packet *p)
{
	if (p->reason == REASON_PASS || p->fragment == LATER_FRAGMENT)
		return 0;
	return p->service >= PROTO_UNKNOWN4 || p->proto == IPPROTO_UDP ||
	       p->proto == IPPROTO_ICMP || p->proto == IPPROTO_ICMPV6;
}

static __always_inline int is_own(const struct policy *own, __u8 family, const __u32 *address)
{
	return find_peer(&own->table[EGRESS], family, address) == CELL;
}

/*
 * Whether a packet that a container sends carries its own MAC and addresses: REASON_PASS, or why it must not pass.
 * p is as read, an ICMP error not yet turned round.
 */
static __always_inline enum reason antispoof(struct identity id, const struct packet *p)
{
	__u32 own_id = id.own & OWN_POLICY;
	const struct policy *own;
	__u64 mac = 0;

	if (!own_id)
		return REASON_PASS;
	__builtin_memcpy(&mac, id.mac, sizeof(id.mac));
	if (may_be_forged(p))
		return p->reason;
	if (p->mac != mac || p->forged)
		return REASON_SPOOF;
	own = bpf_map_lookup_elem(&policies, &own_id);
	if (!own)
		return REASON_NO_POLICY;
	if (p->family && !is_dhcp_request(p) && !is_nobody_yet(p) &&
	    !is_own(own, p->family, p->src))
		return REASON_SPOOF;
	if (p->claims && !is_own(own, p->claims, p->claim))
		return REASON_SPOOF;
	return REASON_PASS;
}

/* Who the container of a device is. */
static __always_inline struct identity find_identity(const struct device *d)
{
	__u32 block = d->counters;
	__u64 *entry = bpf_map_lookup_elem(&identities, &block);
	union {
		__u64 all;
		struct identity identity;
	} id = {};

	if (entry)
		id.all = *(volatile __u64 *)entry;
	return id.identity;
}
