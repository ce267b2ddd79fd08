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

/* Samples: user space removes those of a target with it. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, MAX_WORKS);
	__type(key, struct work_key);
	__type(value, __u64);
} work_samples SEC(".maps");

static __always_inline void sample_work(struct thread *thread, struct thread_totals *totals)
{
	__u32 target = thread->target, tgid = bpf_get_current_pid_tgid() >> 32;
	__u64 *gate = bpf_map_lookup_elem(&work_gates, &target), *count;
	struct work_key key = {.target = target};
	__u64 process = 0, pid = 0, one = 1;

	if (!gate || !*gate)
		return;
	if (bpf_probe_read_user(&process, sizeof(process),
				(void *)(thread->scheduler + thread->at_process)) ||
	    (process && bpf_probe_read_user(&pid, sizeof(pid), (void *)process))) {
		totals->refused++;
		return;
	}
	if (!pid)
		return; /* the scheduler works for itself */
	key.row = work_of(tgid, pid, *gate);
	count = bpf_map_lookup_elem(&work_samples, &key);
	if (count)
		(*count)++;
	else if (bpf_map_update_elem(&work_samples, &key, &one, BPF_NOEXIST))
		totals->refused++;
}

#endif
