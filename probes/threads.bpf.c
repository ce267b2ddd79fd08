/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * threads: how long the VM's threads wait for a CPU, and why they are off it.
 *
 * Hooks:  sched_switch, sched_wakeup, sched_wakeup_new
 * Counts: thread_totals of each row (a target and a type of thread), per CPU
 * Emits:  nothing
 *
 * One object watches all targets: every switch of the host runs it, so a thread that is not watched
 * costs two lookups.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "build.h"
#include "events.generated.h"
#include "task.bpf.h"

#define TASK_RUNNING	   0
#define TASK_INTERRUPTIBLE 1
/* 64 targets with six types of threads each. */
#define MAX_ROWS 384
/* OTP allows 3 x 1024 schedulers and 1024 others in a VM; few hosts come near it once. */
#define MAX_WATCHED 65536

/* Until Linux 5.14. */
struct task_struct___old {
	long state;
} __attribute__((preserve_access_index));

/* What user space wants watched, by tid; it adds and takes away. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_WATCHED);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct thread);
} watched SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_ROWS);
	__type(key, __u32);
	__type(value, struct thread_totals);
} thread_rows SEC(".maps");

static __always_inline unsigned int state_of(struct task_struct *task)
{
	if (bpf_core_field_exists(task->__state))
		return BPF_CORE_READ(task, __state);
	return BPF_CORE_READ((struct task_struct___old *)task, state);
}

/*
 * Where a thread sleeps that waits for work: in a futex (schedulers) or a poll (who watches
 * sockets). A futex is a lock as well, which cannot be told apart here. Numbers of x86_64 system
 * calls.
 */
static __always_inline __u8 why_off(struct task_struct *task)
{
	__u64 call = 0;

	if (!(state_of(task) & TASK_INTERRUPTIBLE)) /* beside it may stand that it is freezable */
		return OFF_BLOCKED;
	if (bpf_probe_read_kernel(&call, sizeof(call), &registers_of(task)->orig_rax))
		return OFF_BLOCKED;
	switch (call) {
	case 202: /* futex */
	case 7:	  /* poll */
	case 271: /* ppoll */
	case 23:  /* select */
	case 270: /* pselect6 */
	case 232: /* epoll_wait */
	case 281: /* epoll_pwait */
	case 441: /* epoll_pwait2 */
		return OFF_IDLE;
	default:
		return OFF_BLOCKED;
	}
}

static __always_inline __u32 log2_slot(__u64 value)
{
	__u32 slot = 0;

	for (__u32 step = 32; step; step >>= 1) {
		if (value >> step) {
			value >>= step;
			slot += step;
		}
	}
	return slot < 40 ? slot : 39;
}

static __always_inline void leave(struct task_struct *task, bool preempted, __u64 now)
{
	__u32 tid = BPF_CORE_READ(task, pid), row;
	struct thread *thread = bpf_map_lookup_elem(&watched, &tid);
	struct thread_totals *totals;

	if (!thread)
		return;
	row = thread->row;
	totals = bpf_map_lookup_elem(&thread_rows, &row);
	if (!totals)
		return;	     /* cannot be: user space gives out the rows */
	if (thread->running) /* else it ran when it began to be watched */
		totals->on_ns += now - thread->since_ns;
	thread->running = 0;
	thread->since_ns = now;
	thread->ready_ns = 0;
	if (preempted || state_of(task) == TASK_RUNNING) {
		thread->reason = OFF_PREEMPTED;
		thread->ready_ns = now;
	} else {
		thread->reason = why_off(task);
	}
}

static __always_inline void arrive(struct task_struct *task, __u64 now)
{
	__u32 tid = BPF_CORE_READ(task, pid), cpu = bpf_get_smp_processor_id(), row;
	struct thread *thread = bpf_map_lookup_elem(&watched, &tid);
	struct thread_totals *totals;
	__u64 ready, waited;

	if (!thread)
		return;
	row = thread->row;
	totals = bpf_map_lookup_elem(&thread_rows, &row);
	if (!totals)
		return;
	totals->switches++;
	if (thread->cpu && thread->cpu != cpu + 1)
		totals->migrations++;
	ready = thread->ready_ns;
	if (thread->since_ns) {
		/* A wakeup that nobody saw: it waited from now on at the latest. */
		if (!ready)
			ready = now;
		waited = now - ready;
		if (thread->reason < OFF_REASONS)
			totals->off_ns[thread->reason] += ready - thread->since_ns;
		totals->off_ns[thread->reason == OFF_PREEMPTED ? OFF_PREEMPTED : OFF_QUEUED] +=
		    waited;
		totals->waited_ns += waited;
		totals->slots[log2_slot(waited)]++;
	}
	thread->running = 1;
	thread->cpu = cpu + 1;
	thread->since_ns = now;
	thread->ready_ns = 0;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(thread_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	__u64 now = bpf_ktime_get_ns();

	leave(prev, preempt, now);
	arrive(next, now);
	return 0;
}

static __always_inline int woken(struct task_struct *task)
{
	__u32 tid = BPF_CORE_READ(task, pid);
	struct thread *thread = bpf_map_lookup_elem(&watched, &tid);

	if (thread && !thread->running && !thread->ready_ns)
		thread->ready_ns = bpf_ktime_get_ns();
	return 0;
}

SEC("tp_btf/sched_wakeup")
int BPF_PROG(thread_wakeup, struct task_struct *task)
{
	return woken(task);
}

SEC("tp_btf/sched_wakeup_new")
int BPF_PROG(thread_wakeup_new, struct task_struct *task)
{
	return woken(task);
}

char LICENSE[] SEC("license") = "GPL";
