/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * switches: which thread of the VM is on which CPU, as a record of each switch.
 *
 * Hooks:  sched_switch, sched_wakeup
 * Counts: thread by on, off and woken
 * Emits:  thread
 *
 * Every switch of the host runs this; a thread of another process costs one read. The thread that a
 * tracepoint speaks of is not the one that runs, so what the other probes share for that is not
 * used. Kernel structs are named as far as they are used; CO-RE finds the fields.
 */
#include "scope.bpf.h"
#include "task.bpf.h"

/* Until Linux 5.14. */
struct task_struct___old {
	long state;
} __attribute__((preserve_access_index));

static __always_inline unsigned int state_of(struct task_struct *task)
{
	if (bpf_core_field_exists(task->__state))
		return BPF_CORE_READ(task, __state);
	return BPF_CORE_READ((struct task_struct___old *)task, state);
}

static __always_inline bool watched(struct task_struct *task)
{
	__u32 first = 0;
	__u64 *open;

	if ((__u32)BPF_CORE_READ(task, tgid) != target.tgid)
		return false;
	open = bpf_map_lookup_elem(&gate, &first);
	return open && *open;
}

static __always_inline void tell(__u8 class, struct task_struct *task, __u32 cpu, __u32 other,
				 __u64 state)
{
	struct thread_record *thread;

	count(KIND_THREAD, class);
	thread = record(KIND_THREAD, class, 0, BPF_CORE_READ(task, pid), 0);
	if (thread) {
		thread->cpu = cpu;
		thread->other = other;
		thread->state = state;
		emit(thread);
	}
}

SEC("tp_btf/sched_switch")
int BPF_PROG(switched, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	__u32 cpu = bpf_get_smp_processor_id();

	if (watched(prev))
		tell(THREAD_OFF, prev, cpu, BPF_CORE_READ(next, pid), preempt ? 0 : state_of(prev));
	if (watched(next))
		tell(THREAD_ON, next, cpu, BPF_CORE_READ(prev, pid), 0);
	return 0;
}

SEC("tp_btf/sched_wakeup")
int BPF_PROG(woken, struct task_struct *task)
{
	if (watched(task))
		tell(THREAD_WOKEN, task, bpf_get_smp_processor_id(), 0, 0);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
