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
 * Processes at work. The end of its outermost work removes one; that of a process that was killed
 * is the first to go when there is no room. User space sets the size.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct work_process);
	__type(value, struct work);
} works SEC(".maps");

/* The row of the innermost work of a process; of what began at another value of the gate none. */
static __always_inline __u64 work_of(__u32 tgid, __u64 pid, __u64 gate)
{
	struct work_process key = {.tgid = tgid, .pid = pid};
	struct work *work = pid ? bpf_map_lookup_elem(&works, &key) : NULL;

	if (!work || work->gate != gate || !work->depth)
		return WORK_OUTSIDE;
	return work->row[(work->depth - 1) & (WORK_DEPTH - 1)];
}

#endif
