/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * interpreted: calls of Erlang functions in an interpreter with function probes.
 *
 * Hooks:  erlang:local__function__entry, global__function__entry, function__return
 * Counts: call_totals of each wanted function, and at OTHERS what was none of them
 * Emits:  a header alone for each call and return, whose kind is the function's number and whose
 *         class is 1 for a return
 *
 * The probes tell texts: the process and M:F/A. Their depth is left alone, because the interpreter
 * holds its stack pointer elsewhere meanwhile (OTP-25.2.3 erts/emulator/beam/beam_common.h,
 * DTRACE_LOCAL_CALL). Attached where the plan says so only: under the JIT they crash the VM.
 */
#include "usdt.bpf.h"

#define TEXT_BYTES 256 /* DTRACE_TERM_BUF_SIZE */
#define WANTED	   4
#define OTHERS	   WANTED

struct text {
	char bytes[TEXT_BYTES];
};

/* From a function's text, with zeroes behind it, to its number. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, WANTED);
	__type(key, struct text);
	__type(value, __u32);
} call_texts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, WANTED + 1);
	__type(key, __u32);
	__type(value, struct call_totals);
} call_totals SEC(".maps");

/* Calls so far, of all wanted functions, and how many are counted at most. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} call_state SEC(".maps");

enum { STATE_CALLS, STATE_LIMIT };

/* Whether one more call counts, or, of a return, whether every call has counted so far. */
static __always_inline bool within_limit(bool returned)
{
	__u32 first = STATE_CALLS, second = STATE_LIMIT;
	__u64 *taken = bpf_map_lookup_elem(&call_state, &first);
	__u64 *limit = bpf_map_lookup_elem(&call_state, &second);

	if (!taken || !limit || *taken >= *limit)
		return false;
	if (!returned)
		__sync_fetch_and_add(taken, 1);
	return true;
}

static __always_inline struct call_totals *totals_of(__u32 number)
{
	return bpf_map_lookup_elem(&call_totals, &number);
}

/* The number of the function that a probe tells; OTHERS for one that nobody asked for. */
static __noinline __u32 wanted(struct pt_regs *ctx)
{
	const char *address = (const char *)usdt_argument(ctx, 1);
	struct text text = {};
	__u32 *number;

	if (bpf_probe_read_user_str(text.bytes, sizeof(text.bytes), address) < 0) {
		struct call_totals *totals = totals_of(OTHERS);

		if (totals)
			__sync_fetch_and_add(&totals->refused, 1);
		return OTHERS;
	}
	number = bpf_map_lookup_elem(&call_texts, &text);
	return number ? *number : OTHERS;
}

static __always_inline int passed(struct pt_regs *ctx, bool returned)
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
	number = wanted(ctx);
	totals = totals_of(number);
	if (!totals)
		return 0; /* cannot be: user space numbers them */
	if (number != OTHERS && !within_limit(returned)) {
		if (!returned)
			__sync_fetch_and_add(&totals->beyond, 1);
		return 0;
	}
	if (!returned || number == OTHERS)
		__sync_fetch_and_add(&totals->calls, 1);
	if (number == OTHERS)
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
	emit(header);
	return 0;
}

SEC("uprobe")
int BPF_KPROBE(function_called)
{
	return passed(ctx, false);
}

SEC("uprobe")
int BPF_KPROBE(function_returned)
{
	return passed(ctx, true);
}

char LICENSE[] SEC("license") = "GPL";
