/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * threads: how long the VM's threads wait for a CPU, and why they are off it.
 *
 * Hooks:  sched_switch, sched_wakeup, sched_wakeup_new; a timer of each CPU (perf event)
 * Counts: thread_totals of each row (a target and a type of thread), nifs, work_samples; per CPU
 * Emits:  nothing
 *
 * One object watches all targets: it runs on every switch of the host, so a thread that is not
 * watched costs two lookups.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/bpf_perf_event.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "build.h"
#include "events.generated.h"
#include "nif_sample.bpf.h"
#include "sleep.bpf.h"
#include "thread_times.bpf.h"
#include "work_sample.bpf.h"

SEC("tp_btf/sched_switch")
int BPF_PROG(thread_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	__u64 now = bpf_ktime_get_ns();

	switch_out(prev, preempt, now);
	switch_in(next, now);
	return 0;
}

SEC("tp_btf/sched_wakeup")
int BPF_PROG(thread_wakeup, struct task_struct *task)
{
	return handle_wakeup(task);
}

SEC("tp_btf/sched_wakeup_new")
int BPF_PROG(thread_wakeup_new, struct task_struct *task)
{
	return handle_wakeup(task);
}

/*
 * A thread that has a CPU to itself may not be switched for minutes, so samples, too, recover
 * threads whose switch in was not seen. The timer interrupts that thread, so it cannot be in
 * switch_out().
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
		recover_running(thread, totals, bpf_ktime_get_ns());
	if (!thread->scheduler)
		return 0;
	flags = sleep_flags(thread);
	if (flags == -1)
		totals->refused++;
	else if (!(flags & SSI_WAITING)) {
		sample_nif(thread, totals);
		sample_work(thread, totals);
	} else if (!(flags & (SSI_POLL_SLEEPING | SSI_TSE_SLEEPING)))
		totals->busy_waits++; /* else it is entering or leaving a system call */
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
