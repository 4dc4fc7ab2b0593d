/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
#pragma once

#include "maps.h"

/* Four levels hold 65,536 intervals; user space refuses more. */
#define MAX_LEVELS 4

/*
 * The value of the interval that x is in, or def where the tree is broken, which only a bug of user
 * space can make it. The comparisons have no branch: a branch that goes either way costs more than
 * all fifteen, and the verifier would walk each.
 */
static __always_inline __u32 find(__u32 root, __u32 x, __u32 def)
{
	__u32 index = root;

	for (int level = 0; level < MAX_LEVELS; level++) {
		struct node *n = bpf_map_lookup_elem(&nodes, &index);
		__u64 i = 0;

		if (!n)
			return def;
#pragma unroll
		for (int k = 0; k < 15; k++) {
			__u64 difference = (__u64)n->key[k] - x;

			asm("" : "+r"(difference)); /* else clang makes it a branch again */
			i += difference >> 63;
		}
		i &= 15;
		if (!n->child)
			return n->val[i];
		index = n->child + i;
	}
	return def;
}
