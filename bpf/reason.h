/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
#pragma once

/* Why a packet passed or not. The numbers are policy.Reason's; a Go test fails when the two drift. */
enum reason {
	REASON_PASS,
	REASON_RULE,
	REASON_DEFAULT,
	REASON_QUARANTINE,
	REASON_NO_POLICY,
	REASON_TRUNCATED,
	REASON_BAD_HEADER,
	REASON_TOO_MANY_TAGS,
	REASON_TOO_MANY_HEADERS,
	REASON_FRAGMENT,
	REASON_BAD_QUOTE,
	REASON_TABLE_FULL,
	REASON_SPOOF,
	REASON_LIMIT,
	NUM_REASONS,
};
