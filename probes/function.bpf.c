/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * function: calls of Erlang functions in code that the JIT made.
 *
 * Hooks:  hardware breakpoints on a function's first instruction and on where a call returns to
 * Counts: call_totals of each place
 * Emits:  call_hit, of its own size into a ring of its own
 *
 * At a function's first instruction r13 is the Process, rbx points to the X registers, which hold
 * the arguments, and the top of the stack is the address that it returns to (OTP-25.2.3
 * erts/emulator/beam/jit/x86/beam_asm.hpp, the same from 24 to 29). The thread stands still
 * meanwhile, so what is copied here is exact.
 */
#include <linux/bpf.h>
#include <linux/bpf_perf_event.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include "build.h"
#include "events.generated.h"
#include "terms.bpf.h"

#define ARGUMENTS   8
#define PIECES	    14
#define PIECE_WORDS 8 /* the term, and seven words of what it points to */
#define MAX_PLACES  64
#define HIT_BYTES   1024 /* with the header of the ring */

/* A breakpoint whose program returns this is disabled by the kernel at once (Linux 6.10). */
#define ENOUGH 1

const volatile struct call_settings call_settings;

/* So that the object's BTF has it, though the programs only point to it. */
const struct call_hit *any_hit __attribute__((section(".records"), used));

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096); /* set before load */
} call_ring SEC(".maps");

/* By address; user space adds and takes away. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PLACES);
	__type(key, __u64);
	__type(value, struct call_place);
} call_places SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_PLACES);
	__type(key, __u32);
	__type(value, struct call_totals);
} call_totals SEC(".maps");

/* Calls and returns so far, of all places, and 1 while calls count. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 3);
	__type(key, __u32);
	__type(value, __u64);
} call_state SEC(".maps");

enum { STATE_CALLS, STATE_RETURNS, STATE_OPEN };

/* A frame of a process: its stack moves with its heap, but keeps its distance to the heap's end. */
struct frame {
	__u64 process, depth;
};

/*
 * Calls that will return to a place where a breakpoint stands; emptied by their return. LRU, since
 * a call that ends by an exception, or whose process is killed, never returns there.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct frame);
	__type(value, struct call_pending);
} call_pending SEC(".maps");

static __always_inline bool user_word(__u64 address, __u64 *word)
{
	return !bpf_probe_read_user(word, sizeof(*word), (const void *)address);
}

/* Whether more may be taken of what has a limit; two CPUs at once may go beyond it by one. */
static __always_inline bool take(__u32 which, __u64 limit)
{
	__u64 *taken = bpf_map_lookup_elem(&call_state, &which);

	if (!taken || *taken >= limit)
		return false;
	__sync_fetch_and_add(taken, 1);
	return true;
}

static __always_inline bool is_open(void)
{
	__u32 which = STATE_OPEN;
	__u64 *open = bpf_map_lookup_elem(&call_state, &which);

	return open && *open;
}

/* Who runs, and how deep its stack is at *rsp*. */
static __always_inline bool frame_of(__u64 process, __u64 rsp, struct frame *frame)
{
	__u64 hend = 0;

	if (!user_word(process, &frame->process) ||
	    !user_word(process + call_settings.process_hend, &hend))
		return false;
	frame->depth = hend - rsp;
	return true;
}

/* Code may have been unloaded and its memory used again: the function must still be the one. */
static __always_inline bool is_same(const struct call_place *place, __u64 address)
{
	__u64 mfa[3] = {};

	if (bpf_probe_read_user(mfa, sizeof(mfa), (const void *)(address - sizeof(mfa))))
		return false;
	return mfa[0] == place->module && mfa[1] == place->function &&
	       (__u32)mfa[2] == place->arity;
}

/* The term and the words it points to; of a list its cell, of anything else up to seven. */
static __always_inline void copy_piece(__u64 *piece)
{
	const void *from = untag(piece[0]);

	if (is_list(piece[0]) || bpf_probe_read_user(piece + 1, 7 * sizeof(*piece), from)) {
		if (bpf_probe_read_user(piece + 1, 2 * sizeof(*piece), from))
			piece[0] = 0; /* not there, or not now: it stays untold */
	}
}

/* Which of the words of a piece are terms: bit N stands for word N. */
static __always_inline __u32 terms_of(const __u64 *piece)
{
	__u64 header = piece[1];

	if (is_list(piece[0]))
		return 1 << 1 | 1 << 2;
	if (is_tuple_header(header)) {
		__u64 arity = tuple_arity(header);

		return arity >= 6 ? 0xfc : ((1U << arity) - 1) << 2;
	}
	if (header_subtag(header) == call_settings.map_subtag && is_flatmap_header(header))
		return 1 << 3; /* the tuple of its keys */
	return 0;
}

/* What the arguments point to, and what that points to, level by level while there is room. */
static __always_inline void copy_terms(struct call_hit *hit)
{
	__u32 used = 0;

#pragma unroll
	for (__u32 i = 0; i < ARGUMENTS; i++)
		if (i < hit->arity && is_pointer(hit->x[i]) && used < PIECES)
			hit->pieces[used++ * PIECE_WORDS] = hit->x[i];
	for (__u32 i = 0; i < PIECES; i++) {
		__u64 *piece = &hit->pieces[i * PIECE_WORDS];
		__u32 terms;

		if (i >= used)
			break;
		copy_piece(piece);
		if (!piece[0])
			continue;
		terms = terms_of(piece);
		for (__u32 word = 1; word < PIECE_WORDS; word++)
			if (terms >> word & 1 && is_pointer(piece[word]) && used < PIECES)
				hit->pieces[used++ * PIECE_WORDS] = piece[word];
	}
}

static __always_inline struct call_hit *room_for(struct call_totals *totals)
{
	struct call_hit *hit = bpf_ringbuf_reserve(&call_ring, sizeof(*hit), 0);

	if (!hit) {
		totals->lost++;
		return NULL;
	}
	__builtin_memset(hit, 0, sizeof(*hit));
	hit->time_ns = bpf_ktime_get_ns();
	hit->tid = (__u32)bpf_get_current_pid_tgid();
	return hit;
}

SEC("perf_event")
int function_entry(struct bpf_perf_event_data *ctx)
{
	__u64 address = ctx->regs.rip, rsp = ctx->regs.rsp, caller = 0;
	struct call_place *place = bpf_map_lookup_elem(&call_places, &address);
	struct call_totals *totals;
	struct frame frame = {};
	struct call_hit *hit;
	__u32 number;

	if (!place || !is_open())
		return 0;
	number = place->number;
	totals = bpf_map_lookup_elem(&call_totals, &number);
	if (!totals)
		return 0; /* cannot be: user space numbers them */
	if (!is_same(place, address)) {
		totals->strange++;
		return 0;
	}
	if (!take(STATE_CALLS, call_settings.limit)) {
		totals->beyond++;
		return ENOUGH;
	}
	totals->calls++;
	if (!frame_of(ctx->regs.r13, rsp, &frame) || !user_word(rsp, &caller))
		totals->refused++;
	if (caller && bpf_map_lookup_elem(&call_places, &caller)) {
		struct call_pending pending = {.since_ns = bpf_ktime_get_ns(), .address = address};

		bpf_map_update_elem(&call_pending, &frame, &pending, BPF_ANY);
	}
	hit = room_for(totals);
	if (!hit)
		return 0;
	hit->process = frame.process;
	hit->address = address;
	hit->caller = caller;
	hit->arity = place->arity;
	if (bpf_probe_read_user(hit->x, sizeof(hit->x), (const void *)ctx->regs.rbx))
		totals->refused++;
	else
		copy_terms(hit);
	bpf_ringbuf_submit(hit, BPF_RB_NO_WAKEUP);
	return 0;
}

SEC("perf_event")
int function_return(struct bpf_perf_event_data *ctx)
{
	__u64 address = ctx->regs.rip;
	struct call_place *place = bpf_map_lookup_elem(&call_places, &address);
	struct call_pending *pending;
	struct call_totals *totals;
	struct frame frame = {};
	struct call_hit *hit;
	__u32 number;

	if (!place || !is_open())
		return 0;
	number = place->number;
	totals = bpf_map_lookup_elem(&call_totals, &number);
	if (!totals)
		return 0;
	if (!take(STATE_RETURNS, call_settings.return_limit)) {
		totals->beyond++;
		return ENOUGH;
	}
	/* The return has taken its own address off the stack. */
	if (!frame_of(ctx->regs.r13, ctx->regs.rsp - 8, &frame)) {
		totals->refused++;
		return 0;
	}
	pending = bpf_map_lookup_elem(&call_pending, &frame);
	if (!pending) {
		totals
		    ->strange++; /* of another function, or of a call before its place was known */
		return 0;
	}
	totals->calls++;
	hit = room_for(totals);
	if (hit) {
		hit->process = frame.process;
		hit->address = pending->address;
		hit->caller = address;
		hit->since_ns = pending->since_ns;
		bpf_ringbuf_submit(hit, BPF_RB_NO_WAKEUP);
	}
	bpf_map_delete_elem(&call_pending, &frame);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
