/* SPDX-License-Identifier: GPL-2.0-only */
/* Histograms of durations, and windows in which hits count. */
#ifndef SCOPE_BUCKETS_BPF_H
#define SCOPE_BUCKETS_BPF_H

#include <linux/types.h>
#include <stdbool.h>
#include "events.generated.h"

/* Hits that a CPU takes from a window's at once. */
#define SPENT_AT_ONCE 64

/* Sixteen to each octave, of which the first begins at 2^SERVER_FIRST_OCTAVE ns. */
static __always_inline __u32 bucket_of(__u64 ns)
{
	__u64 rest = ns;
	__u32 octave = 0, bucket;

	if (ns >> SERVER_FIRST_OCTAVE == 0)
		return 0;
	if (rest >> 32) {
		rest >>= 32;
		octave += 32;
	}
	if (rest >> 16) {
		rest >>= 16;
		octave += 16;
	}
	if (rest >> 8) {
		rest >>= 8;
		octave += 8;
	}
	if (rest >> 4) {
		rest >>= 4;
		octave += 4;
	}
	if (rest >> 2) {
		rest >>= 2;
		octave += 2;
	}
	if (rest >> 1)
		octave += 1;
	bucket = (octave - SERVER_FIRST_OCTAVE) * 16 + (ns >> (octave - 4) & 15);
	return bucket < SERVER_BUCKETS ? bucket : SERVER_BUCKETS - 1;
}

/* The time if it is within the window, otherwise 0; *hits* are those of this CPU until now. */
static __always_inline __u64 in_window(struct server_window *window, __u64 hits)
{
	__u64 now;

	if (!window || !window->opened_ns)
		return 0;
	now = bpf_ktime_get_ns();
	if (now < window->opened_ns || now >= window->until_ns)
		return 0;
	if (window->limited && hits % SPENT_AT_ONCE == 0) {
		__sync_fetch_and_add(&window->left, -SPENT_AT_ONCE);
		if (window->left <= 0) {
			window->until_ns = now;
			return 0;
		}
	}
	return now;
}

#endif
