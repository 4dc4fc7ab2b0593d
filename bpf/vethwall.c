// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* All programs in one object, so that they share one set of maps. */

#include "xdp.c"
#include "tc.c"

char _license[] SEC("license") = "Dual MIT/GPL";
