/* SPDX-License-Identifier: GPL-2.0-only */
/* Arithmetic that several probes share. */
#ifndef SCOPE_BITS_BPF_H
#define SCOPE_BITS_BPF_H

#include <linux/types.h>
#include "events.generated.h"

/* The slot of a histogram for *value*: slot N counts 2^N up to 2^(N+1), the last is open. */
static __always_inline __u32 log2_slot(__u64 value)
{
	__u32 slot = 0;

	/* Six steps instead of a loop over 64 bits. */
	if (value >> 32) {
		value >>= 32;
		slot += 32;
	}
	if (value >> 16) {
		value >>= 16;
		slot += 16;
	}
	if (value >> 8) {
		value >>= 8;
		slot += 8;
	}
	if (value >> 4) {
		value >>= 4;
		slot += 4;
	}
	if (value >> 2) {
		value >>= 2;
		slot += 2;
	}
	if (value >> 1)
		slot += 1;
	return slot < HISTOGRAM_SLOTS ? slot : HISTOGRAM_SLOTS - 1;
}

#endif
