/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Samples of what Erlang processes work on, for targets whose telemetry events count.
 */
#ifndef WORK_SAMPLE_BPF_H
#define WORK_SAMPLE_BPF_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "events.generated.h"
#include "work.bpf.h"

/* By target: the value of the gate at which its work begins now; 0 while nothing counts. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_TARGETS);
	__type(key, __u32);
	__type(value, __u64);
} work_gates SEC(".maps");

/* By target: its maps, so that no target takes the room of another. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_TARGETS);
	__type(key, __u32);
	__array(values, struct works);
} target_works SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_TARGETS);
	__type(key, __u32);
	__array(values, struct work_samples);
} target_samples SEC(".maps");

static __always_inline void sample_work(struct thread *thread, struct thread_totals *totals)
{
	__u32 target = thread->target;
	__u64 *gate = bpf_map_lookup_elem(&work_gates, &target), *count;
	__u64 process = 0, pid = 0, number;
	void *works, *samples;

	if (!gate || !*gate)
		return;
	works = bpf_map_lookup_elem(&target_works, &target);
	samples = bpf_map_lookup_elem(&target_samples, &target);
	if (!works || !samples)
		return;
	if (bpf_probe_read_user(&process, sizeof(process),
				(void *)(thread->scheduler + thread->at_process)) ||
	    (process && bpf_probe_read_user(&pid, sizeof(pid), (void *)process))) {
		totals->refused++;
		return;
	}
	if (!pid)
		return; /* the scheduler works for itself */
	number = work_of(works, pid, *gate);
	count = bpf_map_lookup_elem(samples, &number);
	if (!count) { /* it was removed, because it was idle for long */
		number = WORK_OTHER;
		count = bpf_map_lookup_elem(samples, &number);
	}
	if (count)
		__sync_fetch_and_add(count, 1);
	else
		totals->refused++;
}

#endif
