/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * switches: a record of each switch of a thread of the VM.
 *
 * Hooks:  sched_switch, sched_wakeup
 * Counts: thread by on, off and woken
 * Emits:  thread
 *
 * It runs on every switch of the host; a thread of another process costs one read. The tracepoints'
 * threads are not the running one, so enter_program() is not used.
 */
#include "scope.bpf.h"
#include "task.bpf.h"

/* True for a thread of the target, while events count. */
static __always_inline bool is_watched(struct task_struct *task)
{
	__u32 first = 0;
	__u64 *open;

	if ((__u32)BPF_CORE_READ(task, tgid) != target.tgid)
		return false;
	open = bpf_map_lookup_elem(&gate, &first);
	return open && *open;
}

static __always_inline void submit_switch(__u8 class, struct task_struct *task, __u32 cpu,
					  __u32 other, __u64 state)
{
	struct thread_record *thread;

	count_event(KIND_THREAD, class);
	thread = reserve_record(KIND_THREAD, class, 0, BPF_CORE_READ(task, pid), 0);
	if (thread) {
		thread->cpu = cpu;
		thread->other = other;
		thread->state = state;
		submit_record(thread);
	}
}

SEC("tp_btf/sched_switch")
int BPF_PROG(switched, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	__u32 cpu = bpf_get_smp_processor_id();

	if (is_watched(prev))
		submit_switch(THREAD_OFF, prev, cpu, BPF_CORE_READ(next, pid),
			      preempt ? 0 : state_of(prev));
	if (is_watched(next))
		submit_switch(THREAD_ON, next, cpu, BPF_CORE_READ(prev, pid), 0);
	return 0;
}

SEC("tp_btf/sched_wakeup")
int BPF_PROG(woken, struct task_struct *task)
{
	if (is_watched(task))
		submit_switch(THREAD_WOKEN, task, bpf_get_smp_processor_id(), 0, 0);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
