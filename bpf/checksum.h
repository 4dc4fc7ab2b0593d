/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
#pragma once

#include <bpf/bpf_core_read.h>

#include "packet.h"

/*
 * A checksum that is still to be written. Whoever sends raw frames says where: PACKET_VNET_HDR, the metadata of AF_XDP, a tap. The
 * kernel or a network card writes it when the packet leaves the host, behind all that has judged it (skb_checksum_help), and nothing
 * has looked whether it is a checksum that stands there: two bytes of the sender's choice, in a port, in an address.
 */

#define CHECKSUM_PARTIAL 3

/* linux/skbuff.h */
struct sk_buff {
	unsigned char *head, *data;
	__u8 ip_summed : 2;
	__u16 csum_start, csum_offset;
} __attribute__((preserve_access_index));

/* Where a checksum will be written, in bytes from the begin of the frame; 0 where none will, or the kernel does not say how its structures are laid out. */
static __always_inline __u32 find_checksum(struct __sk_buff *skb)
{
	/* What was read as memory is a number to the verifier, and so can be followed. */
	struct __sk_buff *volatile slot = skb;
	struct sk_buff *k;

	if (!bpf_core_field_exists(struct sk_buff, ip_summed))
		return 0;
	bpf_probe_read_kernel(&k, sizeof(k), (void *)&slot);
	if (BPF_CORE_READ_BITFIELD_PROBED(k, ip_summed) != CHECKSUM_PARTIAL)
		return 0;
	return BPF_CORE_READ(k, csum_start) + BPF_CORE_READ(k, csum_offset) -
	       (BPF_CORE_READ(k, data) - BPF_CORE_READ(k, head));
}

/* Whether it is that of TCP or UDP in nearly every packet, to be told from the others without reading those. */
static __always_inline int is_usual_checksum(struct __sk_buff *skb, __u32 at)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct ipv6hdr *ip6 = (void *)(eth + 1);
	struct iphdr *ip = (void *)(eth + 1);
	__u32 transport;
	__u8 proto;

	if ((void *)(ip6 + 1) > end)
		return 0;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		if (*(__u8 *)ip != 0x45 || ip->frag_off & bpf_htons(0x3fff))
			return 0;
		transport = sizeof(*eth) + sizeof(*ip);
		proto = ip->protocol;
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		transport = sizeof(*eth) + sizeof(*ip6);
		proto = ip6->nexthdr;
	} else {
		return 0;
	}
	return (proto == IPPROTO_TCP && at == transport + TCP_CHECKSUM) ||
	       (proto == IPPROTO_UDP && at == transport + UDP_CHECKSUM);
}

/* Whether it is that of the packet's own transport, or of what is in its payload, as in a tunnel: no rule has looked at that. */
static __always_inline int is_checksum_of(const struct packet *p, __u32 at)
{
	__u32 transport = p->transport;

	if (!transport || p->reason != REASON_PASS || p->fragment)
		return 0;
	if (p->proto == IPPROTO_TCP)
		return at == transport + TCP_CHECKSUM || at >= p->headers;
	if (p->proto == IPPROTO_UDP)
		return at == transport + UDP_CHECKSUM || at >= p->headers;
	if (p->proto == PROTO_SCTP)
		return at == transport + SCTP_CHECKSUM || at >= transport + SCTP_HEADER;
	return p->proto != IPPROTO_ICMP && p->proto != IPPROTO_ICMPV6 && at >= transport;
}
