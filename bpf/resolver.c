// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * What a container asks the engine's own resolver, judged by XDP on the lo of its network namespace. Where the engine asks
 * the host's resolver from the host, no veth sees the query.
 */

#include "resolver.h"

/* One program for each namespace, because nothing else tells a program on lo whose it is. */
const volatile __u32 whose; /* ifindex of a veth of the container's */
const volatile __u16 whose_counters;
const volatile __u8 closed_udp;
const volatile __u8 closed_tcp;

SEC("xdp")
int vethwall_resolver(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct device device = { .ifindex = whose, .counters = whose_counters };
	struct cursor c = { data, end, data, end - data };
	struct ethhdr *eth = take(&c, sizeof(*eth));
	struct packet p = {};
	struct iphdr *ip;

	if (!eth)
		return XDP_PASS;
	ip = c.pos;
	/* The kernel takes a tag without a number off (priority, 802.1Q) after this; nobody sends tags on lo but to get past. */
	if (eth->h_proto == bpf_htons(ETH_P_8021Q) || eth->h_proto == bpf_htons(ETH_P_8021AD)) {
		p.mac = read_mac(eth->h_source);
		refuse(&device, &p, end - data);
		return XDP_DROP;
	}
	/* Nothing else is read: the kernel verifies this program anew for each namespace, while a container starts. */
	if (eth->h_proto != bpf_htons(ETH_P_IP))
		return XDP_PASS;
	/* Whatever its length says: of a packet that is to be cut the kernel believes a total length of 0. */
	if ((void *)(ip + 1) > end || ip->daddr != bpf_htonl(RESOLVER) ||
	    !closes(ip->protocol, closed_udp, closed_tcp))
		return XDP_PASS;
	p.mac = read_mac(eth->h_source);
	read_ipv4(&c, &p, READ_FRAME);
	refuse(&device, &p, end - data);
	return XDP_DROP;
}

char _license[] SEC("license") = "Dual MIT/GPL";
