/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * CPU quotas of cgroups: whether a runnable thread is kept off its CPU because its cgroup has used
 * up its quota. Since Linux 6.18 task_struct has that state; before, the run queue (cfs_rq) has it.
 */
#ifndef THROTTLE_BPF_H
#define THROTTLE_BPF_H

#include <stdbool.h>
#include "events.generated.h"
#include "task.bpf.h"

struct cfs_rq {
	int throttle_count;
	__u64 throttled_clock_pelt_time;
} __attribute__((preserve_access_index));

/* Until Linux 5.18. */
struct cfs_rq___old {
	__u64 throttled_clock_task_time;
} __attribute__((preserve_access_index));

struct sched_entity {
	struct cfs_rq *cfs_rq;
} __attribute__((preserve_access_index));

/* Fields that task.bpf.h does not declare; libbpf looks them up in the kernel's task_struct. */
struct task_struct___quota {
	struct sched_entity se;
	bool throttled;
} __attribute__((preserve_access_index));

/* True if a runnable thread is throttled now. */
static __always_inline bool is_throttled(struct task_struct *plain)
{
	struct task_struct___quota *task = (void *)plain;
	struct cfs_rq *queue;

	if (bpf_core_field_exists(task->throttled))
		return task->throttled;
	if (!bpf_core_field_exists(task->se.cfs_rq) ||
	    !bpf_core_field_exists(struct cfs_rq, throttle_count))
		return false; /* a kernel without groups or quotas */
	queue = task->se.cfs_rq;
	return queue && queue->throttle_count > 0;
}

/* Time for which a run queue has been throttled, ns; 0 on kernels that do not count it. */
static __always_inline __u64 throttled_time(struct cfs_rq *queue)
{
	struct cfs_rq___old *old = (void *)queue;

	if (bpf_core_field_exists(queue->throttled_clock_pelt_time))
		return queue->throttled_clock_pelt_time;
	if (bpf_core_field_exists(old->throttled_clock_task_time))
		return old->throttled_clock_task_time;
	return 0;
}

/* A thread begins to wait for a CPU: note the queue that it waits in, for was_throttled(). */
static __always_inline void begin_wait(struct thread *thread, struct task_struct *plain, __u64 now)
{
	struct task_struct___quota *task = (void *)plain;
	struct cfs_rq *queue;

	thread->ready_ns = now;
	if (bpf_core_field_exists(task->throttled) || !bpf_core_field_exists(task->se.cfs_rq))
		return;
	queue = task->se.cfs_rq;
	thread->queue = (__u64)queue;
	thread->queue_throttled_ns = throttled_time(queue);
}

/*
 * True if the thread was throttled in the wait that ends now, even if it was not when the wait
 * began. A throttled queue keeps its threads, so it is the same queue.
 */
static __always_inline bool was_throttled(struct thread *thread, struct task_struct *plain)
{
	struct task_struct___quota *task = (void *)plain;
	struct cfs_rq *queue;

	if (thread->reason == OFF_THROTTLED)
		return true;
	if (bpf_core_field_exists(task->throttled) || !bpf_core_field_exists(task->se.cfs_rq))
		return false;
	queue = task->se.cfs_rq;
	return (__u64)queue == thread->queue && throttled_time(queue) != thread->queue_throttled_ns;
}

#endif
