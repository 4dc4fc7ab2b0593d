// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * What a container asks the engine's own resolver, judged as its socket sends it. A cgroup bears the container's id, which is known
 * from when the container was created: so this holds its first instruction, too, before anybody could find its network
 * namespace for the program in resolver.c.
 */

#include <bpf/bpf_core_read.h>

#include "resolver.h"

#define CONTAINER_ID 64 /* hexadecimal digits */
#define SYSTEMD_PREFIX 7 /* of docker-ID.scope */
#define SYSTEMD_SUFFIX 6
#define MAX_CGROUPS 32 /* the container's own, with those that it makes below it */

/* What is read of the kernel's own (linux/cgroup-defs.h, linux/kernfs.h, net/sock.h). */
struct kernfs_node {
	const char *name;
} __attribute__((preserve_access_index));

struct cgroup;

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
} __attribute__((preserve_access_index));

struct cgroup {
	struct cgroup_subsys_state self;
	struct kernfs_node *kn;
} __attribute__((preserve_access_index));

struct sock_cgroup_data {
	struct cgroup *cgroup;
} __attribute__((preserve_access_index));

struct sock {
	struct sock_cgroup_data sk_cgrp_data;
} __attribute__((preserve_access_index));

struct container_id {
	char digits[CONTAINER_ID];
};

/* What a container may not ask. */
struct asker {
	__u32 ifindex; /* of one of its veths, by which it counts; 0 while there is none */
	__u16 counters;
	__u8 closed_udp;
	__u8 closed_tcp;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct container_id);
	__type(value, struct asker);
} askers SEC(".maps");

/* Who the socket's container is, as far as it may not ask everything. */
static __always_inline struct asker *find_asker(struct bpf_sock *sk)
{
	/* What was read as memory is a number to the verifier, and so can be followed. */
	struct bpf_sock *volatile slot = sk;
	struct cgroup_subsys_state *css;
	struct cgroup *cgroup;
	struct sock *sock;
	char id[CONTAINER_ID + SYSTEMD_SUFFIX + 2]; /* with room to see that a name goes on */

	bpf_probe_read_kernel(&sock, sizeof(sock), (void *)&slot);
	cgroup = BPF_CORE_READ(sock, sk_cgrp_data.cgroup);
	for (int i = 0; i < MAX_CGROUPS && cgroup; i++) {
		const char *name = BPF_CORE_READ(cgroup, kn, name);
		char prefix[SYSTEMD_PREFIX + 1] = {};
		long length = CONTAINER_ID + 1; /* with its end */
		struct asker *asker;

		bpf_probe_read_kernel_str(prefix, sizeof(prefix), name);
		if (prefix[SYSTEMD_PREFIX - 1] == '-') {
			name += SYSTEMD_PREFIX;
			length += SYSTEMD_SUFFIX;
		}
		length -= bpf_probe_read_kernel_str(id, sizeof(id), name);
		asker = bpf_map_lookup_elem(&askers, id);
		/* Another container, as of an engine in a container, has a resolver of its own, whatever is above it. */
		if (asker || !length)
			return asker;
		css = BPF_CORE_READ(cgroup, self.parent);
		cgroup = css ? BPF_CORE_READ(css, cgroup) : NULL;
	}
	return NULL;
}

SEC("cgroup_skb/egress")
int vethwall_asker(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct iphdr *ip = data;
	/* A sender decides how much of it is linear. */
	struct cursor c = { data, end, data, skb->len };
	struct bpf_sock *sk = skb->sk;
	struct device device = {};
	struct asker *asker;
	struct packet p = {};

	/* Every packet of every socket of the host comes here. */
	if (skb->protocol != bpf_htons(ETH_P_IP) || (void *)(ip + 1) > end ||
	    ip->daddr != bpf_htonl(RESOLVER))
		return 1;
	sk = sk ? bpf_sk_fullsock(sk) : NULL;
	asker = sk ? find_asker(sk) : NULL;
	if (!asker)
		return 1;
	if (!closes(ip->protocol, asker->closed_udp, asker->closed_tcp))
		return 1;
	device.ifindex = asker->ifindex;
	device.counters = asker->counters;
	read_ipv4(&c, &p, READ_FRAME);
	refuse(&device, &p, skb->len + ETH_HLEN);
	return 0;
}

char _license[] SEC("license") = "Dual MIT/GPL";
