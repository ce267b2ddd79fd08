/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Why a thread sleeps: idle, waiting for work, or blocked by something else.
 *
 * A thread waits for work in a futex (schedulers) or in a poll (threads that watch sockets). A lock
 * is a futex as well: a scheduler whose flags do not say that it waits sleeps for a lock, or in
 * native code. Threads that are no schedulers have no such flags.
 */
#ifndef SLEEP_BPF_H
#define SLEEP_BPF_H

#include "events.generated.h"
#include "task.bpf.h"

#define TASK_INTERRUPTIBLE 1

/* ErtsSchedulerSleepInfo.flags of a scheduler; -1 if they cannot be read or their address is not
 * known. */
static __always_inline int sleep_flags(struct thread *thread)
{
	int flags = -1;

	if (!thread->sleep_flags ||
	    bpf_probe_read_user(&flags, sizeof(flags), (void *)thread->sleep_flags))
		return -1;
	return flags;
}

/* OFF_IDLE or OFF_BLOCKED, of the running thread, which is about to sleep. */
static __always_inline __u8 sleep_reason(struct task_struct *task, struct thread *thread)
{
	__u64 call = 0;
	int flags;

	if (!(state_of(task) & TASK_INTERRUPTIBLE)) /* TASK_FREEZABLE may be set beside it */
		return OFF_BLOCKED;
	if (bpf_probe_read_kernel(&call, sizeof(call), &registers_of(task)->orig_rax))
		return OFF_BLOCKED;
	switch ((enum waiting_call)call) { /* without a default: the compiler wants all of them */
	case CALL_POLL:
	case CALL_SELECT:
	case CALL_FUTEX:
	case CALL_EPOLL_WAIT:
	case CALL_PSELECT6:
	case CALL_PPOLL:
	case CALL_EPOLL_PWAIT:
	case CALL_EPOLL_PWAIT2:
		flags = sleep_flags(thread);
		return flags != -1 && !(flags & SSI_WAITING) ? OFF_BLOCKED : OFF_IDLE;
	}
	return OFF_BLOCKED;
}

#endif
