/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * threads: how long the VM's threads wait for a CPU, and why they are off it.
 *
 * Hooks:  sched_switch, sched_wakeup, sched_wakeup_new; the clock of each CPU
 * Counts: thread_totals of each row (a target and a type of thread), natives; per CPU
 * Emits:  nothing
 *
 * One object watches all targets: every switch of the host runs it, so a thread that is not watched
 * costs two lookups. User space maps what it reads every second, which then takes no system call.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/bpf_perf_event.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "build.h"
#include "events.generated.h"
#include "task.bpf.h"

#define TASK_RUNNING	   0
#define TASK_INTERRUPTIBLE 1
#define TASK_DEAD	   0x80
/* 64 targets with six types of threads each. */
#define MAX_ROWS 384
/* OTP allows 3 x 1024 schedulers and 1024 others in a VM; few hosts come near it once. Room is made
 * at once (2 MB), because before Linux 6.1 what the clock runs may not use another kind of map. */
#define MAX_WATCHED 16384
/* A turn of the clock, SAMPLE_HZ of tracepoints.py. */
#define CLOCK_NS (1000000000ULL / 97)

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

/* What task.bpf.h does not name; libbpf looks for the fields in the kernel's struct task_struct. */
struct task_struct___quota {
	struct sched_entity se;
	bool throttled;
} __attribute__((preserve_access_index));

/* Until Linux 5.14. */
struct task_struct___old {
	long state;
} __attribute__((preserve_access_index));

/* What user space wants watched: tid to a place in threads; it adds and takes away. */
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

/* Of each CPU one after the other, since arrays per CPU cannot be mapped; user space makes room. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_ROWS);
	__type(key, __u32);
	__type(value, struct thread_totals);
} thread_rows SEC(".maps");

/* Native functions of all targets: made by the clock, taken away with their target. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct native_key);
	__type(value, struct native);
} natives SEC(".maps");

static __always_inline struct thread *watched_thread(__u32 tid)
{
	__u32 *place = tid ? bpf_map_lookup_elem(&watched, &tid) : NULL; /* 0: a CPU is idle */

	return place ? bpf_map_lookup_elem(&threads, place) : NULL;
}

static __always_inline struct thread_totals *totals_of(struct thread *thread)
{
	__u32 row = bpf_get_smp_processor_id() * MAX_ROWS + thread->row;

	return bpf_map_lookup_elem(&thread_rows, &row);
}

static __always_inline unsigned int state_of(struct task_struct *task)
{
	if (bpf_core_field_exists(task->__state))
		return task->__state;
	return ((struct task_struct___old *)task)->state;
}

/*
 * Whether a thread that wants to run may not, because its cgroup has used up its quota. Since Linux
 * 6.18 that is a thread's own state; before, its run queue says so.
 */
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

static __always_inline __u64 throttled_so_far(struct cfs_rq *queue)
{
	struct cfs_rq___old *old = (void *)queue;

	if (bpf_core_field_exists(queue->throttled_clock_pelt_time))
		return queue->throttled_clock_pelt_time;
	if (bpf_core_field_exists(old->throttled_clock_task_time))
		return old->throttled_clock_task_time;
	return 0;
}

/* A thread begins to wait for a CPU. */
static __always_inline void begin_wait(struct thread *thread, struct task_struct *plain, __u64 now)
{
	struct task_struct___quota *task = (void *)plain;
	struct cfs_rq *queue;

	thread->ready_ns = now;
	if (bpf_core_field_exists(task->throttled) || !bpf_core_field_exists(task->se.cfs_rq))
		return;
	queue = task->se.cfs_rq;
	thread->queue = (__u64)queue;
	thread->queue_throttled_ns = throttled_so_far(queue);
}

/*
 * Whether the quota was used up in the wait that ends now. When it began that need not have been
 * so, and now it is not. A queue that is throttled keeps its threads, so it is the same one.
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
	return (__u64)queue == thread->queue &&
	       throttled_so_far(queue) != thread->queue_throttled_ns;
}

/* ErtsSchedulerSleepInfo.flags, OTP 24 to 29 (erl_process.h) */
#define SSI_POLL_SLEEPING (1 << 1)
#define SSI_TSE_SLEEPING  (1 << 2)
#define SSI_WAITING	  (1 << 3)

/* What the running scheduler says of itself; -1 where it cannot be read or there is nothing. */
static __always_inline int sleep_flags(struct thread *thread)
{
	int flags = -1;

	if (!thread->sleep_flags ||
	    bpf_probe_read_user(&flags, sizeof(flags), (void *)thread->sleep_flags))
		return -1;
	return flags;
}

/*
 * Where a thread sleeps that waits for work: in a futex (schedulers) or a poll (who watches
 * sockets). A futex is a lock as well: a scheduler that does not say it waits sleeps for a lock, or
 * in native code. Of other threads that cannot be told. Numbers of x86_64 system calls.
 */
static __always_inline __u8 why_off(struct task_struct *task, struct thread *thread)
{
	__u64 call = 0;
	int flags;

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
		flags = sleep_flags(thread);
		return flags != -1 && !(flags & SSI_WAITING) ? OFF_BLOCKED : OFF_IDLE;
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

static __always_inline void count_wait(struct thread_totals *totals, __u32 reason, __u64 waited)
{
	totals->off_ns[reason] += waited;
	if (reason == OFF_THROTTLED)
		return;
	totals->waited_ns += waited;
	totals->slots[log2_slot(waited)]++;
}

/*
 * User space reads what a thread does while it changes: since_ns comes first, so that what else is
 * yet to come has lasted for no time, and totals come last, so that no time is in both.
 */
static __always_inline void begin_run(struct thread *thread, __u64 now)
{
	thread->since_ns = now;
	barrier();
	thread->running = 1;
	thread->ready_ns = 0;
}

/*
 * A thread is on a CPU, and nobody saw it come: it ran when the tracepoints were attached, or the
 * kernel did not run them for a switch. The clock would have found it before, so it has run for a
 * turn of the clock at most; what it waited beyond that was a wait.
 */
static __always_inline void find_running(struct thread *thread, struct thread_totals *totals,
					 __u64 now)
{
	__u64 since = thread->since_ns, ready = thread->ready_ns ?: now, began = ready;
	__u32 reason = thread->reason;

	if (now - began > CLOCK_NS)
		began = now - CLOCK_NS;
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

static __always_inline void leave(struct task_struct *task, bool preempted, __u64 now)
{
	struct thread *thread = watched_thread(task->pid);
	struct thread_totals *totals;
	unsigned int state;
	__u64 ran;

	if (!thread)
		return;
	totals = totals_of(thread);
	if (!totals)
		return; /* cannot be: user space gives out the rows */
	state = preempted ? TASK_RUNNING : state_of(task);
	if (!thread->running && thread->since_ns)
		find_running(thread, totals, now);
	ran = thread->running ? now - thread->since_ns : 0; /* else it ran before it was watched */
	thread->since_ns = state & TASK_DEAD ? 0 : now;
	barrier();
	thread->running = 0;
	thread->ready_ns = 0;
	if (state == TASK_RUNNING) {
		thread->reason = is_throttled(task) ? OFF_THROTTLED : OFF_PREEMPTED;
		begin_wait(thread, task, now);
	} else {
		thread->reason = why_off(task, thread);
	}
	barrier();
	totals->on_ns += ran;
}

static __always_inline void arrive(struct task_struct *task, __u64 now)
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
	since = thread->running ? 0 : thread->since_ns; /* nobody saw it leave */
	reason = thread->reason;
	/* A wakeup that nobody saw: it waited from now on at the latest. */
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
	struct thread *thread = watched_thread(task->pid);

	if (thread && !thread->running && !thread->ready_ns)
		begin_wait(thread, task, bpf_ktime_get_ns());
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

/*
 * Native code (NIFs) by name. A call is long if two samples find it: the scheduler has not been in
 * its loop between them, and the process has called nothing that takes a reduction.
 */
static __always_inline void sample_native(struct thread *thread, struct thread_totals *totals)
{
	struct native_key key = {.target = thread->target};
	struct native empty = {}, *native;
	__u64 process = 0, environment = 0, reductions = 0, code = 0, mfa[3];
	__u64 seen = thread->seen_process;
	__s64 fcalls = 0;
	bool same;

	thread->seen_process = 0;
	if (bpf_probe_read_user(&environment, sizeof(environment),
				(void *)(thread->scheduler + thread->at_nif)) ||
	    !environment)
		return;
	if (bpf_probe_read_user(&process, sizeof(process),
				(void *)(thread->scheduler + thread->at_process)) ||
	    bpf_probe_read_user(&reductions, sizeof(reductions),
				(void *)(thread->scheduler + thread->at_reductions)) ||
	    bpf_probe_read_user(&fcalls, sizeof(fcalls), (void *)(process + thread->at_fcalls)) ||
	    bpf_probe_read_user(&code, sizeof(code), (void *)(process + thread->at_code)) ||
	    !code || bpf_probe_read_user(mfa, sizeof(mfa), (void *)(code - thread->before_code))) {
		totals->refused++;
		return;
	}
	/* By name: the code of a dirty call is another's as soon as the call is over. */
	key.module = mfa[0];
	key.function = mfa[1];
	key.arity = mfa[2];
	native = bpf_map_lookup_elem(&natives, &key);
	if (!native) {
		bpf_map_update_elem(&natives, &key, &empty, BPF_NOEXIST);
		native = bpf_map_lookup_elem(&natives, &key);
	}
	if (!native) {
		totals->refused++;
		return;
	}
	native->samples++;
	same = seen == process && thread->seen_reductions == reductions &&
	       thread->seen_fcalls == fcalls;
	if (same && !thread->long_call)
		native->long_calls++;
	thread->long_call = same;
	thread->seen_process = process;
	thread->seen_reductions = reductions;
	thread->seen_fcalls = fcalls;
}

/*
 * A thread that has a CPU for itself may not be switched for minutes, so the clock finds it where
 * nobody saw it come. It interrupts that thread, which therefore cannot be leaving.
 */
SEC("perf_event")
int thread_sample(struct bpf_perf_event_data *context)
{
	struct thread *thread = watched_thread((__u32)bpf_get_current_pid_tgid());
	struct thread_totals *totals;
	int flags;

	if (!thread)
		return 0;
	totals = totals_of(thread);
	if (!totals)
		return 0;
	totals->samples++;
	if (thread->traced && !thread->running)
		find_running(thread, totals, bpf_ktime_get_ns());
	if (!thread->scheduler)
		return 0;
	flags = sleep_flags(thread);
	if (flags == -1)
		totals->refused++;
	else if (!(flags & SSI_WAITING))
		sample_native(thread, totals);
	else if (!(flags & (SSI_POLL_SLEEPING | SSI_TSE_SLEEPING)))
		totals->busy_waits++; /* else it is on its way into a system call, or back */
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
