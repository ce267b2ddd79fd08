/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * interpreted: calls of Erlang functions in an interpreter with function probes.
 *
 * Hooks:  erlang:local__function__entry, global__function__entry, function__return
 * Counts: call_totals of each watched function, and of all others at index OTHER_FUNCTIONS
 * Emits:  a bare header for each call and return: its kind is the function's number, its class is 1
 *         for a return
 *
 * The arguments of the probes are texts: the process and M:F/A. Their depth is not used, because
 * the interpreter's stack pointer is not stored at that point (OTP-25.2.3 erts/emulator/beam/
 * beam_common.h, DTRACE_LOCAL_CALL). Attached only where the plan allows it: under the JIT these
 * probes crash the VM.
 */
#include "usdt.bpf.h"

#define OTHER_FUNCTIONS MAX_PROBED_FUNCTIONS

struct text {
	char bytes[FUNCTION_TEXT_BYTES];
};

/* A function's text, padded with zeroes, to its number. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PROBED_FUNCTIONS);
	__type(key, struct text);
	__type(value, __u32);
} call_texts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_PROBED_FUNCTIONS + 1);
	__type(key, __u32);
	__type(value, struct call_totals);
} call_totals SEC(".maps");

/* By enum probed_state. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PROBED_STATES);
	__type(key, __u32);
	__type(value, __u64);
} call_state SEC(".maps");

/* Count one call; false at the limit. Of a return: true if every call so far has counted. */
static __always_inline bool within_limit(bool returned)
{
	__u32 first = PROBED_STATE_CALLS, second = PROBED_STATE_LIMIT;
	__u64 *counted = bpf_map_lookup_elem(&call_state, &first);
	__u64 *limit = bpf_map_lookup_elem(&call_state, &second);

	if (!counted || !limit || *counted >= *limit)
		return false;
	if (!returned)
		__sync_fetch_and_add(counted, 1);
	return true;
}

static __always_inline struct call_totals *totals_of(__u32 number)
{
	return bpf_map_lookup_elem(&call_totals, &number);
}

/* The number of the function in a probe's text; OTHER_FUNCTIONS if it is not watched. */
static __noinline __u32 function_number(struct pt_regs *ctx)
{
	const char *address = (const char *)usdt_argument(ctx, 1);
	struct text text = {};
	__u32 *number;

	if (bpf_probe_read_user_str(text.bytes, sizeof(text.bytes), address) < 0) {
		struct call_totals *totals = totals_of(OTHER_FUNCTIONS);

		if (totals)
			__sync_fetch_and_add(&totals->refused, 1);
		return OTHER_FUNCTIONS;
	}
	number = bpf_map_lookup_elem(&call_texts, &text);
	return number ? *number : OTHER_FUNCTIONS;
}

static __always_inline int handle_probe(struct pt_regs *ctx, bool returned)
{
	struct call_totals *totals;
	struct header *header;
	__u32 tid, number, first = 0;
	__u64 *open;

	if (!is_target(&tid))
		return 0;
	open = bpf_map_lookup_elem(&gate, &first);
	if (!open || !*open)
		return 0;
	number = function_number(ctx);
	totals = totals_of(number);
	if (!totals)
		return 0; /* cannot be: user space assigns the numbers */
	if (number != OTHER_FUNCTIONS && !within_limit(returned)) {
		if (!returned)
			__sync_fetch_and_add(&totals->beyond, 1);
		return 0;
	}
	if (!returned || number == OTHER_FUNCTIONS)
		__sync_fetch_and_add(&totals->calls, 1);
	if (number == OTHER_FUNCTIONS)
		return 0;
	header = bpf_ringbuf_reserve(&ring, RECORD_BYTES, 0);
	if (!header) {
		__sync_fetch_and_add(returned ? &totals->strange : &totals->lost, 1);
		return 0;
	}
	__builtin_memset(header, 0, RECORD_BYTES);
	header->time_ns = bpf_ktime_get_ns();
	header->kind = number;
	header->class = returned;
	header->flags = FLAG_TEXT_PID;
	header->tid = tid;
	header->process = usdt_pid(ctx, 0);
	if (!header->process)
		__sync_fetch_and_add(&totals->refused, 1);
	submit_record(header);
	return 0;
}

SEC("uprobe")
int BPF_KPROBE(function_called)
{
	return handle_probe(ctx, false);
}

SEC("uprobe")
int BPF_KPROBE(function_returned)
{
	return handle_probe(ctx, true);
}

char LICENSE[] SEC("license") = "GPL";
