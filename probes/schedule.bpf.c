/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * schedule: when a process gets a normal scheduler, and for how long.
 *
 * Hooks:  copy_in_registers (in) and erts_schedule (out) under the JIT;
 *         erlang:process__scheduled and process__unscheduled in the interpreter
 * Counts: schedule by in and out; durations of out
 * Emits:  schedule
 *
 * Two entries are paired instead of a return probe: this is the hottest path of the VM.
 * A record has the time that its duration was taken with, so that out less in is the duration.
 */
#include "usdt.bpf.h"

/* When the process on a thread was scheduled in; 0 once it is out. One entry for each scheduler. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_THREADS);
	__type(key, __u32);
	__type(value, __u64);
} running SEC(".maps");

static __always_inline int scheduled_in(__u8 flags, __u32 tid, __u64 process)
{
	__u64 now = bpf_ktime_get_ns(), *since = bpf_map_lookup_elem(&running, &tid);
	struct schedule_record *schedule;

	if (since)
		*since = now;
	else if (bpf_map_update_elem(&running, &tid, &now, BPF_ANY))
		refuse(KIND_SCHEDULE);
	count(KIND_SCHEDULE, SCHEDULE_IN);
	schedule = record(KIND_SCHEDULE, SCHEDULE_IN, flags, tid, process);
	if (schedule) {
		schedule->time_ns = now;
		schedule->duration_ns = UNKNOWN;
		schedule->reductions = UNKNOWN;
		schedule->runnable = UNKNOWN;
		emit(schedule);
	}
	return 0;
}

/* ERTS_PSFLG_ACTIVE and ERTS_PSFLG_SUSPENDED (OTP-25.2.3 and 27.3.4.1 erl_process.h). */
#define ACTIVE	  (1ULL << 13)
#define SUSPENDED (1ULL << 16)

/* Whether a process that goes out could go on; a process that waits has said so before. */
static __always_inline __u64 could_go_on(__u64 process)
{
	__u64 state;

	if (!settings.process_state || !(settings.streamed & (1ULL << KIND_SCHEDULE)))
		return UNKNOWN;
	state = vm_word(KIND_SCHEDULE, process, settings.process_state);
	return (state & (ACTIVE | SUSPENDED)) == ACTIVE;
}

/* *now* is of before the gate was passed: what is timed in a window is no longer than that. */
static __always_inline int scheduled_out(__u8 flags, __u32 tid, __u64 now, __u64 process,
					 __u64 reductions, __u64 runnable)
{
	__u64 duration = UNKNOWN, *since = bpf_map_lookup_elem(&running, &tid);
	struct schedule_record *schedule;

	/* A process that was in before we came has no start. */
	if (since && *since && !stale(KIND_SCHEDULE, *since)) {
		duration = now - *since;
		*since = 0;
		observe(KIND_SCHEDULE, SCHEDULE_OUT, duration);
	}
	count(KIND_SCHEDULE, SCHEDULE_OUT);
	schedule = record(KIND_SCHEDULE, SCHEDULE_OUT, flags, tid, process);
	if (schedule) {
		schedule->time_ns = now;
		schedule->duration_ns = duration;
		schedule->reductions = reductions;
		schedule->runnable = runnable;
		emit(schedule);
	}
	return 0;
}

static __always_inline __u64 streamed_id(__u64 process)
{
	return settings.streamed & (1ULL << KIND_SCHEDULE) ? id_of(KIND_SCHEDULE, process) : 0;
}

/* The breakpoint may lie some instructions into the function, where its process has been moved. */
static __always_inline __u64 moved_argument(struct pt_regs *ctx)
{
	__u64 process = 0;

	if (!(settings.streamed & (1ULL << KIND_SCHEDULE)))
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

	if (!enter(PROGRAM_SCHEDULE_IN, &tid))
		return 0;
	process = moved_argument(ctx);
	return scheduled_in(0, tid, id_of(KIND_SCHEDULE, process));
}

/* The first argument is NULL on a normal scheduler, the second the process that was running. */
SEC("uprobe")
int BPF_KPROBE(schedule_out, __u64 dirty_scheduler, __u64 process, __u32 reductions)
{
	__u64 now = bpf_ktime_get_ns();
	__u32 tid;

	if (!enter(PROGRAM_SCHEDULE_OUT, &tid))
		return 0;
	if (dirty_scheduler || !process)
		return 0;
	return scheduled_out(0, tid, now, streamed_id(process), reductions, could_go_on(process));
}

SEC("uprobe")
int BPF_KPROBE(schedule_in_usdt)
{
	__u32 tid;

	if (!enter(PROGRAM_SCHEDULE_IN_USDT, &tid))
		return 0;
	return scheduled_in(FLAG_TEXT_PID, tid, usdt_pid(ctx, 0));
}

SEC("uprobe")
int BPF_KPROBE(schedule_out_usdt)
{
	__u64 now = bpf_ktime_get_ns();
	__u32 tid;

	if (!enter(PROGRAM_SCHEDULE_OUT_USDT, &tid))
		return 0;
	return scheduled_out(FLAG_TEXT_PID, tid, now, usdt_pid(ctx, 0), UNKNOWN, UNKNOWN);
}

char LICENSE[] SEC("license") = "GPL";
