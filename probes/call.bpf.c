/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * call: NIFs and BIFs that run for slow_call_ns or longer.
 *
 * Hooks:  entry and return of beam_jit_call_nif, beam_jit_call_bif, erts_call_dirty_nif and
 *         erts_call_dirty_bif
 * Counts: long_call by class; durations
 * Emits:  long_call
 *
 * Every call pays for a return probe, so this one is attached on request only.
 */
#include "scope.bpf.h"

struct calling {
	__u64 since, process, code, native;
	__u8 class;
};

/* Calls under way, by thread: a NIF is not called from another one. The return marks its entry as
 * free. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_THREADS);
	__type(key, __u32);
	__type(value, struct calling);
} calls SEC(".maps");

static __always_inline int begin_call(__u8 class, __u32 tid, __u64 process, __u64 code,
				      __u64 native)
{
	struct calling calling = {
	    .process = process, .code = code, .native = native, .class = class};

	calling.since = bpf_ktime_get_ns();
	if (bpf_map_update_elem(&calls, &tid, &calling, BPF_ANY))
		count_failure(KIND_LONG_CALL);
	return 0;
}

SEC("uprobe")
int BPF_KPROBE(nif_entry, __u64 process, __u64 code, __u64 registers, __u64 native)
{
	__u32 tid;

	if (!enter_program(PROGRAM_NIF_ENTRY, &tid))
		return 0;
	return begin_call(LONG_CALL_NIF, tid, process, code, native);
}

SEC("uprobe")
int BPF_KPROBE(bif_entry, __u64 process, __u64 registers, __u64 code, __u64 native)
{
	__u32 tid;

	if (!enter_program(PROGRAM_BIF_ENTRY, &tid))
		return 0;
	return begin_call(LONG_CALL_BIF, tid, process, code, native);
}

SEC("uprobe")
int BPF_KPROBE(dirty_nif_entry, __u64 scheduler, __u64 process, __u64 code)
{
	__u32 tid;

	if (!enter_program(PROGRAM_DIRTY_NIF_ENTRY, &tid))
		return 0;
	return begin_call(LONG_CALL_DIRTY_NIF, tid, process, code, 0);
}

SEC("uprobe")
int BPF_KPROBE(dirty_bif_entry, __u64 scheduler, __u64 process, __u64 code)
{
	__u32 tid;

	if (!enter_program(PROGRAM_DIRTY_BIF_ENTRY, &tid))
		return 0;
	return begin_call(LONG_CALL_DIRTY_BIF, tid, process, code, 0);
}

SEC("uretprobe")
int BPF_KRETPROBE(call_return)
{
	__u64 now = bpf_ktime_get_ns(), since, duration, process;
	struct long_call_record *call;
	struct calling *calling;
	__u32 tid;

	if (!enter_program(PROGRAM_CALL_RETURN, &tid))
		return 0;
	calling = bpf_map_lookup_elem(&calls, &tid);
	if (!calling || !calling->since)
		return 0; /* it began before counting */
	since = calling->since;
	duration = now - since;
	calling->since = 0;
	if (started_before_gate(KIND_LONG_CALL, since))
		return 0;
	if (duration < settings.slow_call_ns)
		return 0;
	process = id_of(KIND_LONG_CALL, calling->process);
	if (!is_wanted(0, process))
		return 0;
	count_event(KIND_LONG_CALL, calling->class);
	observe_duration(KIND_LONG_CALL, calling->class, duration);
	call = reserve_record(KIND_LONG_CALL, calling->class, 0, tid, process);
	if (call) {
		call->duration_ns = duration;
		call->code = calling->code;
		call->native = calling->native;
		submit_record(call);
	}
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
