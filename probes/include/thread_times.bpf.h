/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Accounting of threads: the state of each watched thread, and the time that threads of each type
 * spend on their CPUs, off them by reason, and waiting for them.
 *
 * User space reads threads and thread_rows every second. They are mapped into its memory, so that a
 * read takes no system call; it may happen in the middle of an update. Therefore since_ns is
 * written first, so that the new state has lasted for no time yet, and totals last, so that no time
 * is counted in both.
 */
#ifndef THREAD_TIMES_BPF_H
#define THREAD_TIMES_BPF_H

#include <stdbool.h>
#include "bits.bpf.h"
#include "events.generated.h"
#include "sleep.bpf.h"
#include "task.bpf.h"
#include "throttle.bpf.h"

#define TASK_RUNNING 0
#define TASK_DEAD    0x80
#define MAX_ROWS     (MAX_TARGETS * THREAD_TYPES)
/* OTP allows 3 x 1024 schedulers and 1024 others in a VM; few hosts come near it once. Preallocated
 * (2 MB), because before Linux 6.1 perf_event programs may not use another kind of map. */
#define MAX_WATCHED 16384
/* Time from one sample of a CPU to the next. */
#define SAMPLE_NS (1000000000ULL / SAMPLE_HZ)

/* The watched threads: tid to index in threads; user space adds and removes them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_WATCHED);
	__type(key, __u32);
	__type(value, __u32);
} watched SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_WATCHED);
	__type(key, __u32);
	__type(value, struct thread);
} threads SEC(".maps");

/* MAX_ROWS for each CPU, since a per-CPU array cannot be mapped; user space sets the size. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_ROWS);
	__type(key, __u32);
	__type(value, struct thread_totals);
} thread_rows SEC(".maps");

static __always_inline struct thread *watched_thread(__u32 tid)
{
	__u32 *index = tid ? bpf_map_lookup_elem(&watched, &tid) : NULL; /* 0: a CPU is idle */

	return index ? bpf_map_lookup_elem(&threads, index) : NULL;
}

static __always_inline struct thread_totals *totals_of(struct thread *thread)
{
	__u32 row = bpf_get_smp_processor_id() * MAX_ROWS + thread->row;

	return bpf_map_lookup_elem(&thread_rows, &row);
}

static __always_inline void count_wait(struct thread_totals *totals, __u32 reason, __u64 waited)
{
	totals->off_ns[reason] += waited;
	if (reason == OFF_THROTTLED)
		return;
	totals->waited_ns += waited;
	totals->slots[log2_slot(waited)]++;
}

static __always_inline void begin_run(struct thread *thread, __u64 now)
{
	thread->since_ns = now;
	barrier();
	thread->running = 1;
	thread->ready_ns = 0;
}

/*
 * A thread is on a CPU, and no switch to it was seen: it ran when the tracepoints were attached, or
 * the kernel skipped the program for a switch. A sample would have found it earlier, so it has run
 * for SAMPLE_NS at most; the time before that was a wait.
 */
static __always_inline void recover_running(struct thread *thread, struct thread_totals *totals,
					    __u64 now)
{
	__u64 since = thread->since_ns, ready = thread->ready_ns ?: now, began = ready;
	__u32 reason = thread->reason;

	if (now - began > SAMPLE_NS)
		began = now - SAMPLE_NS;
	begin_run(thread, began);
	if (!since || reason >= OFF_REASONS)
		return;
	totals->switches++;
	barrier();
	totals->off_ns[reason] += ready - since;
	if (began > ready)
		count_wait(totals,
			   reason == OFF_THROTTLED || reason == OFF_PREEMPTED ? reason : OFF_QUEUED,
			   began - ready);
}

static __always_inline void switch_out(struct task_struct *task, bool preempted, __u64 now)
{
	struct thread *thread = watched_thread(task->pid);
	struct thread_totals *totals;
	unsigned int state;
	__u64 ran;

	if (!thread)
		return;
	totals = totals_of(thread);
	if (!totals)
		return; /* cannot be: user space assigns the rows */
	state = preempted ? TASK_RUNNING : state_of(task);
	if (!thread->running && thread->since_ns)
		recover_running(thread, totals, now);
	ran = thread->running ? now - thread->since_ns : 0; /* else it ran before it was watched */
	thread->since_ns = state & TASK_DEAD ? 0 : now;
	barrier();
	thread->running = 0;
	thread->ready_ns = 0;
	if (state == TASK_RUNNING) {
		thread->reason = is_throttled(task) ? OFF_THROTTLED : OFF_PREEMPTED;
		begin_wait(thread, task, now);
	} else {
		thread->reason = sleep_reason(task, thread);
	}
	barrier();
	totals->on_ns += ran;
}

static __always_inline void switch_in(struct task_struct *task, __u64 now)
{
	struct thread *thread = watched_thread(task->pid);
	__u32 cpu = bpf_get_smp_processor_id() + 1, reason, wait;
	struct thread_totals *totals;
	__u64 since, ready;

	if (!thread)
		return;
	totals = totals_of(thread);
	if (!totals)
		return;
	since = thread->running ? 0 : thread->since_ns; /* its switch out was not seen */
	reason = thread->reason;
	/* Without a wakeup that was seen it waited from now on, at the latest. */
	ready = thread->ready_ns ?: now;
	wait = was_throttled(thread, task) ? OFF_THROTTLED
	       : reason == OFF_PREEMPTED   ? OFF_PREEMPTED
					   : OFF_QUEUED;
	begin_run(thread, now);
	totals->switches++;
	if (thread->cpu && thread->cpu != cpu)
		totals->migrations++;
	thread->cpu = cpu;
	barrier();
	if (!since)
		return; /* or it was off before it was watched */
	if (reason < OFF_REASONS)
		totals->off_ns[reason] += ready - since;
	count_wait(totals, wait, now - ready);
}

static __always_inline int handle_wakeup(struct task_struct *task)
{
	struct thread *thread = watched_thread(task->pid);

	if (thread && !thread->running && !thread->ready_ns)
		begin_wait(thread, task, bpf_ktime_get_ns());
	return 0;
}

#endif
