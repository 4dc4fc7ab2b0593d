/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "reason.h"

/* Defaults; user space may make the maps larger. */
#define MAX_DEVICES 2048 /* with a filter, at one time; at most 65,535 */
#define MAX_POLICIES 4096 /* distinct ones; at most 65,535 */
#define MAX_NODES 32768
#define MAX_RECORDS 65536
#define MAX_STATES 2048 /* containers with state; 0 is none */
/* Conversations of one container: that nobody has answered, and answered. */
#define MAX_UNANSWERED 4096
#define MAX_ANSWERED 16384
#define MAX_FRAGMENTED 128
#define MAX_NEIGHBORS 32768 /* addresses and ports of all bridges together */
/* Limits of one direction of one policy. */
#define MAX_LIMITS 16
/* A power of two. */
#define MAX_EVENTS 16384

/* A power of two, so that an ifindex finds its slot by its low bits. */
#define DEVICE_SLOTS 16384

/* Room for reasons in a counter block; more than there are, so that the layout stays. */
#define REASON_SLOTS 16
/* Rules that are counted each for itself; the last slot counts all others. */
#define RULE_SLOTS 32

/*
 * A node of a search tree over 32-bit numbers: 15 sorted separators part 16 intervals. An interval
 * ends with its separator: x is in interval i if exactly i separators are smaller than x. Separators
 * that are not used are 0xffffffff, which is smaller than nothing.
 * child is the index of the first of up to 16 consecutive children, or 0 in a leaf, whose val[i]
 * then is the result.
 */
struct node {
	__u32 key[15];
	__u32 child;
	__u32 val[16];
};

/*
 * What the rules say for one direction: roots of trees in nodes, 0 for none.
 * services maps a service key (packet.h) to a cell, or to a class of services. Only then the others
 * matter: peers4 and peers6 map an address to a cell or to a class of peers, cells both classes to a cell.
 * No services at all is a quarantine: nothing passes, not even ARP.
 */
struct table {
	__u32 services;
	__u32 peers4;
	__u32 peers6;
	__u32 cells;
};

/*
 * A policy. It and the nodes that it points to are complete before any device refers to it, and never
 * change while one does. Policy 0 is all zero: the quarantine.
 */
struct policy {
	/* Its part of nodes; user space finds free room by these. */
	__u32 first_node;
	__u32 num_nodes;
	/* What the rules say, by direction: egress, ingress; then which limits hold, likewise. */
	struct table table[4];
	__u32 rates[2]; /* by direction: a node that is MAX_LIMITS rates (limit.h) */
	/* Never the same for two policies: a conversation that carries another is judged anew. */
	__u32 generation;
	__u32 flags; /* POLICY_, and AUDIT and QUIET of judge.h for reasons that no source gives */
	/* A number for what its counter slots are called; user space knows the names by it. */
	__u32 names;
	/* SHA-256 of nodes, tables and names, for sharing between equal policies. */
	__u8 digest[32];
};

#define POLICY_STATEFUL 1 /* it takes to know who opened a conversation */
#define POLICY_LOG_PASSES 2
#define POLICY_LIMITS 4 /* << direction: it has limits */

/*
 * Which policy a device has. Read and written as one 64-bit number, so that a reader sees the old
 * or the new and never a mixture.
 */
struct device {
	__u32 ifindex;
	__u16 policy;
	__u16 counters; /* its block */
};

/*
 * Who a device's container is (antispoof): its MAC, and the policy whose peers are its own addresses, 0 where
 * addresses are not judged. Read and written as one 64-bit number.
 */
struct identity {
	__u8 mac[6];
	__u16 own; /* OWN_POLICY, TWO_HOOKS and GUARDED */
};

#define OWN_POLICY 0x3fff
/* What the container sends is judged by XDP, and again at tc ingress where it came past that. */
#define TWO_HOOKS 0x8000
/* And its bridge takes from it only what tc ingress has marked. */
#define GUARDED 0x4000

/*
 * An address that a port of a bridge has; or, where bridge and family are 0, a port or another device of which it is
 * known which addresses it has. Where only family is 0 it is a bridge itself, to which the host routes back what came from it.
 */
struct neighbor_key {
	__u32 bridge; /* its ifindex */
	__u32 family; /* 4 or 6 */
	__u32 address[4]; /* as in struct packet; of a device its ifindex */
};

struct counter {
	__u64 packets;
	__u64 bytes; /* layer 2, without FCS */
};

struct counter_block {
	/* By direction; those of REASON_RULE and REASON_LIMIT stay 0. */
	struct counter reason[2][REASON_SLOTS];
	struct counter audited[2][REASON_SLOTS]; /* would have been dropped for it */
	struct counter rule[2][RULE_SLOTS]; /* by the direction that the rules are of */
};

/* Key of a record: container id, part number. */
struct record_key {
	__u8 container[32];
	__u32 part;
};

struct record_part {
	__u8 data[1024];
};

/*
 * ifindex -> device. Slots are found by the low bits of the ifindex and say whose they are; where two
 * devices want one, the later stands in device_overflow. A look-up in an array is part of the program, one in
 * a hash is a call, and on processors that guard every return (Spectre's kin) costs more than all the rest.
 * A device that is in neither drops everything: REASON_NO_POLICY.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, DEVICE_SLOTS);
	__type(key, __u32);
	__type(value, struct device);
} devices SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_DEVICES);
	__type(key, __u32);
	__type(value, struct device);
} device_overflow SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_POLICIES);
	__type(key, __u32);
	__type(value, struct policy);
} policies SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_NODES);
	__type(key, __u32);
	__type(value, struct node);
} nodes SEC(".maps");

/* Block 0 belongs to nobody: it counts for devices without a policy. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_DEVICES);
	__type(key, __u32);
	__type(value, struct counter_block);
} counters SEC(".maps");

/*
 * A conversation, seen from the container: who opened it does not matter to the key, so packets both ways
 * find the same entry.
 */
struct flow_key {
	__u32 local[4]; /* the container's; host byte order, IPv4 in [0] */
	__u32 peer[4];
	__u16 local_port; /* host byte order; of an ICMP echo the identifier, of other ICMP 0 */
	__u16 peer_port; /* of an ICMP echo 0x100 and whether the container asked, of other ICMP the type */
	__u8 proto;
	__u8 family; /* 4 or 6 */
	__u16 zero;
};

struct flow {
	__u64 seen; /* ns since boot, coarse */
	__u32 service; /* what was judged when it was opened */
	__u32 generation; /* of the policy that it was judged by */
	__u8 opener; /* direction of the packet that opened it */
	__u8 closing; /* 1 << direction of each TCP FIN that has passed, 4 << that of a RST after which nothing has */
	__u8 guessed; /* it is older than its entry, so that this may not be who opened it */
	__u8 forbidden; /* TCP that the policy does not let go on */
	/* What acknowledges the SYN that answers the opener's, host byte order; 0 while there is none. */
	__u32 awaited;
};

/*
 * The first fragment of a packet has passed: later ones may, unless they overlap it and could put other headers in the
 * place of its own (RFC 1858, RFC 5722).
 */
struct first_fragment {
	__u64 seen; /* ns since boot, coarse */
	__u32 end; /* of what it has, in bytes */
	__u32 generation; /* of the policy that let it pass */
};

struct fragment_key {
	__u32 src[4];
	__u32 dst[4];
	__u32 id;
	__u8 proto;
	__u8 family;
	__u16 zero;
};

/* By size: of the types in an inner map clang keeps no more than the names. */

/* Where the kernel gives up the oldest entry for a new one. */
struct unanswered_map {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_UNANSWERED);
	__uint(key_size, sizeof(struct flow_key));
	__uint(value_size, sizeof(struct flow));
};

/* Where a full table takes no new entry. */
struct answered_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_ANSWERED);
	__uint(key_size, sizeof(struct flow_key));
	__uint(value_size, sizeof(struct flow));
};

struct fragments_map {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_FRAGMENTED);
	__uint(key_size, sizeof(struct fragment_key));
	__uint(value_size, sizeof(struct first_fragment));
};

/*
 * Which state and which buckets a counter block's device has, 0 for none: the devices of one container share
 * theirs.
 */
struct shared {
	__u32 state;
	__u32 buckets;
	__u64 reclaimed; /* ns since boot: when room was last made in the table of answered conversations */
};

/* When each bucket of limits is empty again: ns since boot. The buckets with number 0 are nobody's. */
struct bucket_set {
	__u64 empty[2][MAX_LIMITS]; /* by direction */
};

/*
 * A packet that was dropped, or passed where that is logged: a sample. number is its place in the order of all plus one,
 * and 0 while the rest is being written, so that readers notice; the slot is the low bits of the place.
 */
struct event {
	__u64 number;
	__u64 time; /* ns since boot, coarse */
	__u64 mac; /* as in struct packet, like all that follows but for what is said of it */
	__u32 src[4];
	__u32 dst[4]; /* or claim */
	__u32 ifindex;
	__u32 bytes; /* layer 2 */
	__u32 service;
	__u32 names; /* of the policy */
	__u32 skipped; /* about how many of the device's before it had no room in its share */
	__u16 sport;
	__u16 dport;
	__u8 family;
	__u8 proto;
	__u8 direction;
	__u8 reason; /* of the verdict */
	__u8 rule; /* direction * RULE_SLOTS + slot, where reason is REASON_RULE or REASON_LIMIT */
	__u8 audited; /* it passed all the same */
	__u8 kind; /* EVENT_ */
	__u8 zero;
};

#define EVENT_BUILTIN 1
#define EVENT_CLAIMS 2 /* dst is a claim */
#define EVENT_TURNED                                                                               \
	4 /* an ICMP error, and all else is of the packet that it quotes, turned round */

/* The bucket of a device's events. */
struct event_time {
	__u64 empty; /* when it is empty again: ns since boot */
	__u64 closed; /* the tick (jiffies) in which it was last found full */
	__u64 skipped; /* packets that had no room in it since the last event */
};

/* Who a counter block's device is. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_DEVICES);
	__type(key, __u32);
	__type(value, struct identity);
} identities SEC(".maps");

/* By counter block: the bridge that the device is a port of, 0 where it does not matter who has sent what is received. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_DEVICES);
	__type(key, __u32);
	__type(value, __u32);
} bridges SEC(".maps");

/* The ifindex of the port that has an address, 0 for none: who had it is gone. Of a port its bridge, of another device its own. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_NEIGHBORS);
	__type(key, struct neighbor_key);
	__type(value, __u32);
} neighbors SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_DEVICES);
	__type(key, __u32);
	__type(value, struct bucket_set);
} buckets SEC(".maps");

/* A ring that any number of readers look at and nobody empties, so that the last events outlive every reader. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_EVENTS);
	__type(key, __u32);
	__type(value, struct event);
} events SEC(".maps");

/* By counter block. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_DEVICES);
	__type(key, __u32);
	__type(value, struct event_time);
} event_times SEC(".maps");

/* Single numbers. */
struct global {
	__u64 num_events; /* so far */
	/* What XDP writes in front of a packet for tc ingress to know it by: random, user space makes it. */
	__u64 stamp;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct global);
} globals SEC(".maps");

/* By counter block. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_DEVICES);
	__type(key, __u32);
	__type(value, struct shared);
} states SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_STATES);
	__type(key, __u32);
	__array(values, struct unanswered_map);
} unanswered SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_STATES);
	__type(key, __u32);
	__array(values, struct answered_map);
} answered SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_STATES);
	__type(key, __u32);
	__array(values, struct fragments_map);
} fragments SEC(".maps");

/* What user space says of each container, for status without an agent; no program reads it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_RECORDS);
	__type(key, struct record_key);
	__type(value, struct record_part);
} containers SEC(".maps");
