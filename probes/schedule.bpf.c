/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * schedule: when a process is scheduled in on a normal scheduler, and for how long.
 *
 * Hooks:  copy_in_registers (in) and erts_schedule (out) under the JIT;
 *         erlang:process__scheduled and process__unscheduled in the interpreter
 * Counts: schedule by in and out; durations of out
 * Emits:  schedule
 *
 * Two entries are paired instead of a return probe: this is the hottest path of the VM.
 * The time of a record is the one that its duration was computed with, so that the times of out and
 * in differ by the duration.
 */
#include "usdt.bpf.h"

/* When the process on a thread was scheduled in; 0 once it is out. One entry for each scheduler. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_THREADS);
	__type(key, __u32);
	__type(value, __u64);
} running SEC(".maps");

static __always_inline int handle_in(__u8 flags, __u32 tid, __u64 process)
{
	__u64 now = bpf_ktime_get_ns(), *since = bpf_map_lookup_elem(&running, &tid);
	struct schedule_record *schedule;

	if (!is_wanted(flags, process)) {
		if (since)
			*since = 0; /* else one that is wanted meanwhile began with another */
		return 0;
	}
	if (since)
		*since = now;
	else if (bpf_map_update_elem(&running, &tid, &now, BPF_ANY))
		count_failure(KIND_SCHEDULE);
	if (settings.shortest_ns)
		return 0; /* how long it runs is known when it is scheduled out */
	count_event(KIND_SCHEDULE, SCHEDULE_IN);
	schedule = reserve_record(KIND_SCHEDULE, SCHEDULE_IN, flags, tid, process);
	if (schedule) {
		schedule->time_ns = now;
		schedule->duration_ns = UNKNOWN;
		schedule->reductions = UNKNOWN;
		schedule->runnable = UNKNOWN;
		submit_record(schedule);
	}
	return 0;
}

/* ERTS_PSFLG_ACTIVE and ERTS_PSFLG_SUSPENDED (OTP-25.2.3 and 27.3.4.1 erl_process.h). */
#define ACTIVE	  (1ULL << 13)
#define SUSPENDED (1ULL << 16)

/* 1 if a process that is scheduled out is runnable, 0 if it waits. */
static __always_inline __u64 is_runnable(__u64 process)
{
	__u64 state;

	if (!settings.process_state || !is_streamed(KIND_SCHEDULE))
		return UNKNOWN;
	state = vm_word(KIND_SCHEDULE, process, settings.process_state);
	return (state & (ACTIVE | SUSPENDED)) == ACTIVE;
}

/* *now* was read before enter_program(), so no duration in a window is longer than the window. */
static __always_inline int handle_out(__u8 flags, __u32 tid, __u64 now, __u64 process,
				      __u64 reductions, __u64 runnable)
{
	__u64 duration = UNKNOWN, *since = bpf_map_lookup_elem(&running, &tid);
	struct schedule_record *schedule;

	if (!is_wanted(flags, process))
		return 0;
	/* A process that was scheduled in before counting began has no start. */
	if (since && *since && !started_before_gate(KIND_SCHEDULE, *since)) {
		duration = now - *since;
		*since = 0;
		if (duration < settings.shortest_ns)
			return 0;
		observe_duration(KIND_SCHEDULE, SCHEDULE_OUT, duration);
	} else if (settings.shortest_ns) {
		return 0;
	}
	if (settings.shortest_ns)
		count_event(KIND_SCHEDULE, SCHEDULE_IN); /* which was not counted then */
	count_event(KIND_SCHEDULE, SCHEDULE_OUT);
	schedule = reserve_record(KIND_SCHEDULE, SCHEDULE_OUT, flags, tid, process);
	if (schedule) {
		schedule->time_ns = now;
		schedule->duration_ns = duration;
		schedule->reductions = reductions;
		schedule->runnable = runnable;
		submit_record(schedule);
	}
	return 0;
}

static __always_inline __u64 needed_id(__u64 process)
{
	return needs_process(KIND_SCHEDULE) ? id_of(KIND_SCHEDULE, process) : 0;
}

/* The hook may be some instructions into the function, where the process is in another register. */
static __always_inline __u64 moved_argument(struct pt_regs *ctx)
{
	__u64 process = 0;

	if (!needs_process(KIND_SCHEDULE))
		return 0;
	bpf_probe_read_kernel(&process, sizeof(process),
			      (void *)ctx + settings.schedule_in_register);
	return process;
}

SEC("uprobe")
int BPF_KPROBE(schedule_in)
{
	__u64 process;
	__u32 tid;

	if (!enter_program(PROGRAM_SCHEDULE_IN, &tid))
		return 0;
	process = moved_argument(ctx);
	return handle_in(0, tid, id_of(KIND_SCHEDULE, process));
}

/* The first argument is NULL on a normal scheduler, the second the process that was running. */
SEC("uprobe")
int BPF_KPROBE(schedule_out, __u64 dirty_scheduler, __u64 process, __u32 reductions)
{
	__u64 now = bpf_ktime_get_ns();
	__u32 tid;

	if (!enter_program(PROGRAM_SCHEDULE_OUT, &tid))
		return 0;
	if (dirty_scheduler || !process)
		return 0;
	return handle_out(0, tid, now, needed_id(process), reductions, is_runnable(process));
}

SEC("uprobe")
int BPF_KPROBE(schedule_in_usdt)
{
	__u32 tid;

	if (!enter_program(PROGRAM_SCHEDULE_IN_USDT, &tid))
		return 0;
	return handle_in(FLAG_TEXT_PID, tid, usdt_pid(ctx, 0));
}

SEC("uprobe")
int BPF_KPROBE(schedule_out_usdt)
{
	__u64 now = bpf_ktime_get_ns();
	__u32 tid;

	if (!enter_program(PROGRAM_SCHEDULE_OUT_USDT, &tid))
		return 0;
	return handle_out(FLAG_TEXT_PID, tid, now, usdt_pid(ctx, 0), UNKNOWN, UNKNOWN);
}

char LICENSE[] SEC("license") = "GPL";
