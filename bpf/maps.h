/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "reason.h"

#define MAX_DEVICES 16384
/* A setting of user space; what stands here is the default. */
#define MAX_NODES 32768
#define MAX_RECORDS 65536

/* Room for reasons in a counter block; more than there are, so that the layout stays. */
#define REASON_SLOTS 32
/* Rules that are counted each for itself; the last slot counts all others. */
#define RULE_SLOTS 64

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
 * matter: peers4 and peers6 map an address to a class of peers, cells both classes to a cell.
 * No services at all is a quarantine: nothing passes, not even ARP.
 */
struct table {
	__u32 services;
	__u32 peers4;
	__u32 peers6;
	__u32 cells;
};

/*
 * The policy of one device. It is replaced as a whole (an element of a hash: old or new, never a
 * mixture); the nodes that it points to are complete before it is written and never change while
 * any device refers to them.
 */
struct policy {
	/* Its part of nodes; user space finds free room by these. */
	__u32 first_node;
	__u32 num_nodes;
	struct table table[2]; /* by direction: egress, ingress */
	/* SHA-256 of the nodes and tables, for sharing between equal policies. */
	__u8 digest[32];
};

struct counter {
	__u64 packets;
	__u64 bytes; /* layer 2, without FCS */
};

struct counter_block {
	struct counter reason[2][REASON_SLOTS]; /* by direction; [.][REASON_RULE] stays 0 */
	struct counter rule[RULE_SLOTS];
};

/* Key of a record: container id, part number. */
struct record_key {
	__u8 container[32];
	__u32 part;
};

struct record_part {
	__u8 data[1024];
};

/* ifindex -> policy. A device without one drops everything: REASON_NO_POLICY. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_DEVICES);
	__type(key, __u32);
	__type(value, struct policy);
} devices SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_NODES);
	__type(key, __u32);
	__type(value, struct node);
} nodes SEC(".maps");

/* ifindex -> counters, made by user space before the device gets its policy. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_DEVICES);
	__type(key, __u32);
	__type(value, struct counter_block);
} counters SEC(".maps");

/* What user space says of each container, for status without an agent; no program reads it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_RECORDS);
	__type(key, struct record_key);
	__type(value, struct record_part);
} containers SEC(".maps");
