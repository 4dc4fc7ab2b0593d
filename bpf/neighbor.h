/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
#pragma once

#include "flow.h"

/*
 * Who has sent what a container receives is told by the port of the bridge that it came in by, which the kernel notes
 * and nobody can forge, where any MAC and any address can be. from is that port; or of what the host routes the
 * device that it had it from, which is the bridge where a neighbour has sent it to be routed back.
 */
static __always_inline int is_anothers(struct neighbor_key *k, __u32 from)
{
	__u32 *port = bpf_map_lookup_elem(&neighbors, k), *known;
	__u32 bridge = k->bridge, owner;
	int back = from == bridge;

	if (!port || *port == from)
		return 0;
	owner = *port;
	if (!back)
		k->bridge = 0;
	k->family = 0;
	k->address[0] = from;
	k->address[1] = k->address[2] = k->address[3] = 0;
	/*
	 * Of a port that is new it is not known yet what is its own. While an agent runs it is held, but for ARP and its
	 * like. And there are bridges to which the host sends back what neighbours send to its addresses.
	 */
	known = bpf_map_lookup_elem(&neighbors, k);
	if (back)
		return !known;
	/* What the host routes here from elsewhere its own NAT may have given an address of the host. */
	return known && (owner != bridge || *known == bridge);
}

/* A neighbour advertisement diverts what the container sends to its target. Antispoof reads it in read_claims6. */
static __always_inline int is_advertisement(const struct packet *p)
{
	return p->family == 6 && p->proto == IPPROTO_ICMPV6 && p->reason == REASON_PASS &&
	       !p->fragment && p->dport == ND_NEIGHBOR_ADVERT;
}

/* Whether the target of an advertisement is another's. */
__noinline int advertises_anothers(struct __sk_buff *skb, const struct packet *p, __u32 bridge,
				   __u32 from)
{
	struct neighbor_key k = { bridge, 6 };
	__u32 at;

	if (!p)
		return 0;
	at = p->quote + (p->builtin ? 8 : 0);
	if (at + sizeof(k.address) > p->limit ||
	    bpf_skb_load_bytes(skb, at, k.address, sizeof(k.address)))
		return 0;
	for (int i = 0; i < 4; i++)
		k.address[i] = bpf_ntohl(k.address[i]);
	return is_anothers(&k, from);
}

/* Whether a packet is a router's. The host is the network's router, and from elsewhere none comes: routers do not forward them. */
static __always_inline int is_routers(const struct packet *p)
{
	return ((p->family == 6 && p->proto == IPPROTO_ICMPV6) ||
		(p->family == 4 && p->proto == IPPROTO_ICMP)) &&
	       is_routers_type(p, p->dport);
}

/*
 * Whether it could not be read whose name a packet bears, so that a kernel which reads further may find somebody else's. Of
 * a fragment the source is known, and neighbour discovery in fragments nobody heeds (RFC 6980).
 */
static __always_inline int may_bear_anything(const struct packet *p)
{
	return p->reason != REASON_PASS && p->service >= PROTO_UNKNOWN4 && !p->fragment;
}

/* Whether a packet is a fragment, or the only one (RFC 6946): the kernel cuts a whole packet into one part, too. */
static __always_inline int is_part(const struct packet *p)
{
	return p->fragment || (p->family == 6 && p->part_to);
}

/* Whether a device is a port of a bridge that is known. */
static __always_inline int is_port_of(__u32 bridge, __u32 from)
{
	struct neighbor_key k = { .address = { from } };
	const __u32 *known = bpf_map_lookup_elem(&neighbors, &k);

	return from != bridge && known && *known == bridge;
}

/* Whether what a container receives has a source, or claims an address, that is another neighbour's than who sent it. */
static __always_inline enum reason
judge_neighbor(struct __sk_buff *skb, const struct device *device, const struct packet *p)
{
	__u32 block = device->counters, from = skb->ingress_ifindex;
	const __u32 *bridge = bpf_map_lookup_elem(&bridges, &block);
	struct neighbor_key k = {};

	if (!bridge || !*bridge)
		return REASON_PASS;
	/*
	 * Of the host itself nothing has come in. But where br_netfilter puts a packet together and cuts it anew the parts have lost
	 * by which port it came: they are judged as what comes back.
	 */
	if (!from && !is_part(p))
		return REASON_PASS;
	if (!from)
		from = *bridge;
	if (from != *bridge && is_routers(p))
		return REASON_NEIGHBOR_SPOOF;
	if (may_bear_anything(p) && is_port_of(*bridge, from))
		return p->reason;
	if (!(p->family | p->claims))
		return REASON_PASS;
	k.bridge = *bridge;
	k.family = p->claims ? p->claims : p->family;
	for (int i = 0; i < 4; i++)
		k.address[i] = p->claims ? p->claim[i] : p->src[i];
	if (is_anothers(&k, from) ||
	    (is_advertisement(p) && advertises_anothers(skb, p, *bridge, from)))
		return REASON_NEIGHBOR_SPOOF;
	return REASON_PASS;
}
