/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * mark: calls of functions that scope_mark has marked.
 *
 * Hooks:  the BIFs that are markers: erts_debug:flat_size/1, erts_internal:cmp_term/2
 * Counts: calls, returns, failures and durations of each function
 *
 * A marker's only argument is an id: 52 bits of a hash of M:F/A, and the kind of the marker. A
 * call is open from its entry until a marker of the same process at the same or a lesser depth of
 * the stack. The contract of the marker is in scope_mark/README.md.
 */
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <stdbool.h>
#include "bits.bpf.h"
#include "build.h"

char LICENSE[] SEC("license") = "GPL";

#define OPEN_CALLS  16 /* open calls of one process that are paired; a power of two */
#define SMALL_TAG   15
#define KIND_ENTRY  1
#define KIND_RETURN 2
#define KIND_CAUGHT 3
#define KIND_CATCH  4
#define KIND_TAIL   5

enum mark_count { NO_ID, UNPAIRED, NO_ROOM, MARK_COUNTS };

struct mark_settings {
	__u32 tgid;
	__u32 hend; /* offset of the end of the heap in a Process */
};

struct mark_stat {
	__u64 calls, returns, failures, ns;
	__u64 slots[HISTOGRAM_SLOTS];
};

struct open_call {
	__u64 depth, began;
	__u64 number;
};

struct open_calls {
	__u64 count;
	struct open_call calls[OPEN_CALLS];
};

const volatile struct mark_settings settings;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} gate SEC(".maps");

/* The number of each function, by the 52 bits of its id. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, __u32);
} ids SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct mark_stat);
} mark_stats SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct open_calls);
} open SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MARK_COUNTS);
	__type(key, __u32);
	__type(value, __u64);
} mark_counts SEC(".maps");

/* One of *calls*; the mask is what the verifier can see. */
static __always_inline struct open_call *call_at(struct open_calls *calls, __u64 index)
{
	index &= OPEN_CALLS - 1;
	asm volatile("" : "+r"(index));
	index &= OPEN_CALLS - 1;
	return &calls->calls[index];
}

static __always_inline void count(__u32 what)
{
	__u64 *value = bpf_map_lookup_elem(&mark_counts, &what);

	if (value)
		*value += 1;
}

static __always_inline void ended(const struct open_call *call, __u64 now, bool failed)
{
	__u32 number = call->number;
	struct mark_stat *stat = bpf_map_lookup_elem(&mark_stats, &number);

	if (!stat)
		return;
	if (failed) {
		stat->failures += 1;
		return;
	}
	stat->returns += 1;
	stat->ns += now - call->began;
	stat->slots[log2_slot(now - call->began)] += 1;
}

/* End the calls below *depth*, which have failed; true if one is left that is at *depth*. */
static __always_inline bool unwind(struct open_calls *calls, __u64 depth, __u64 now)
{
	for (int i = 0; i < OPEN_CALLS; i++) {
		__u64 last = calls->count - 1;

		if (last >= OPEN_CALLS)
			return false;
		struct open_call *call = call_at(calls, last);
		if (call->depth <= depth)
			return call->depth == depth;
		ended(call, now, true);
		calls->count = last;
	}
	return false;
}

static __always_inline void enter(__u64 process, struct open_calls *calls, __u32 number,
				  __u64 depth, __u64 now)
{
	struct mark_stat *stat = bpf_map_lookup_elem(&mark_stats, &number);
	struct open_calls first = {};

	if (stat)
		stat->calls += 1;
	if (!calls) {
		first.count = 1;
		first.calls[0].depth = depth;
		first.calls[0].began = now;
		first.calls[0].number = number;
		if (bpf_map_update_elem(&open, &process, &first, BPF_ANY))
			count(NO_ROOM);
		return;
	}
	/* One that is open at this depth has failed: it would have been ended by its return. */
	if (unwind(calls, depth, now)) {
		ended(call_at(calls, calls->count - 1), now, true);
		calls->count -= 1;
	}
	__u64 at = calls->count;
	if (at >= OPEN_CALLS) {
		count(NO_ROOM);
		return;
	}
	struct open_call *call = call_at(calls, at);
	call->depth = depth;
	call->began = now;
	call->number = number;
	calls->count = at + 1;
}

static __always_inline void leave(struct open_calls *calls, __u32 number, __u64 depth, __u64 now)
{
	if (!calls || !unwind(calls, depth, now)) {
		count(UNPAIRED);
		return;
	}
	__u64 last = calls->count - 1;
	struct open_call *call = call_at(calls, last);
	if (last >= OPEN_CALLS || call->number != number) {
		count(UNPAIRED);
		return;
	}
	ended(call, now, false);
	calls->count = last;
}

SEC("uprobe")
int BPF_KPROBE(mark, __u64 process, __u64 arguments)
{
	__u64 id = 0, hend = 0, h;
	__u32 first = 0, *number;
	__u64 *counting = bpf_map_lookup_elem(&gate, &first);

	if (!counting || !*counting || bpf_get_current_pid_tgid() >> 32 != settings.tgid)
		return 0;
	if (bpf_probe_read_user(&id, sizeof(id), (void *)arguments) || (id & 15) != SMALL_TAG) {
		count(NO_ID);
		return 0;
	}
	h = id >> 10;
	number = bpf_map_lookup_elem(&ids, &h);
	if (!number || bpf_probe_read_user(&hend, sizeof(hend), (void *)process + settings.hend)) {
		count(NO_ID);
		return 0;
	}
	/* While a BIF runs, rbp holds the Erlang stack pointer (JIT of OTP 25, 27 and 29). */
	__u64 depth = hend - ctx->rbp, now = bpf_ktime_get_ns(), kind = id >> 4 & 63;
	struct open_calls *calls = bpf_map_lookup_elem(&open, &process);

	if (kind == KIND_ENTRY)
		enter(process, calls, *number, depth, now);
	else if (kind == KIND_RETURN || kind == KIND_TAIL)
		leave(calls, *number, depth, now);
	else if ((kind == KIND_CAUGHT || kind == KIND_CATCH) && calls)
		unwind(calls, depth, now);
	return 0;
}
