/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What Erlang processes work on: telemetry events say when it begins and ends, samples ask for it.
 */
#ifndef WORK_BPF_H
#define WORK_BPF_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "events.generated.h"

/*
 * Processes of one target at work, by pid. The end of its outermost work removes one; that of a
 * process that was killed is the first to go when there is no room.
 */
struct works {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_OPEN_WORKS);
	__type(key, __u64);
	__uint(value_size, sizeof(struct work)); /* in a map of maps it has no type */
};

/* Samples of one target's processes, by what they work on. */
struct work_samples {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_WORK_ROWS);
	__type(key, __u64);
	__type(value, __u64);
};

/* The row of the innermost work of a process; of what began at another value of the gate none. */
static __always_inline __u64 work_of(void *works, __u64 pid, __u64 gate)
{
	struct work *work = pid ? bpf_map_lookup_elem(works, &pid) : NULL;

	if (!work || work->gate != gate || !work->depth)
		return WORK_OUTSIDE;
	return work->row[(work->depth - 1) & (WORK_DEPTH - 1)];
}

#endif
