/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The kernel's view of a thread. Structs are declared as far as they are used; CO-RE finds the
 * fields.
 */
#ifndef TASK_BPF_H
#define TASK_BPF_H

#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

struct task_struct {
	int pid;
	int tgid;
	unsigned int __state;
	void *stack;
} __attribute__((preserve_access_index));

/* Until Linux 5.14. */
struct task_struct___old {
	long state;
} __attribute__((preserve_access_index));

#define THREAD_SIZE 16384 /* of the kernel's stack: x86_64 */

/* For tasks that are arguments of a tp_btf program, which may be read directly. */
static __always_inline unsigned int state_of(struct task_struct *task)
{
	if (bpf_core_field_exists(task->__state))
		return task->__state;
	return ((struct task_struct___old *)task)->state;
}

/* The registers of the running thread, as they were when it entered the kernel. */
static __always_inline struct pt_regs *registers_of(struct task_struct *current)
{
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_task_pt_regs))
		return (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());
	/* Until Linux 5.15 there is no helper; the registers are at the very top of its stack. */
	return (struct pt_regs *)(BPF_CORE_READ(current, stack) + THREAD_SIZE) - 1;
}

#endif
