/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * function: calls of Erlang functions in code that the JIT made.
 *
 * Hooks:  hardware breakpoints on a function's first instruction and on return addresses
 * Counts: call_totals of each breakpoint site
 * Emits:  call_hit, of its own size into a ring of its own
 *
 * At a function's first instruction r13 is the Process, rbx points to the X registers, which hold
 * the arguments, and the top of the stack is the return address (OTP-25.2.3
 * erts/emulator/beam/jit/x86/beam_asm.hpp, the same from 24 to 29). The thread is stopped during
 * the hit, so the copies are consistent.
 */
#include <linux/bpf.h>
#include <linux/bpf_perf_event.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include "build.h"
#include "captures.bpf.h"
#include "events.generated.h"
#include "terms.bpf.h"

/* The kernel disables a breakpoint whose program returns this at once (Linux 6.10). */
#define DISABLE_BREAKPOINT 1

const volatile struct call_settings call_settings;

/* Puts the struct into the object's BTF, since the programs only point to it. */
const struct call_hit *any_hit __attribute__((section(".records"), used));

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096); /* set before load */
} call_ring SEC(".maps");

/* By address; user space adds and removes them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_BREAKPOINT_SITES);
	__type(key, __u64);
	__type(value, struct breakpoint_site);
} breakpoint_sites SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_BREAKPOINT_SITES);
	__type(key, __u32);
	__type(value, struct call_totals);
} call_totals SEC(".maps");

/* By enum call_state. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CALL_STATES);
	__type(key, __u32);
	__type(value, __u64);
} call_state SEC(".maps");

/* A stack frame of a process. The stack moves with the heap, but its distance to hend stays. */
struct frame {
	__u64 process, depth;
};

/*
 * Calls whose return address has a breakpoint; removed by their return. LRU, since a call that ends
 * with an exception, or whose process is killed, never returns there.
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

/* Count one call or return; false at the limit. Two CPUs at once may exceed it by one. */
static __always_inline bool within_limit(__u32 which, __u64 limit)
{
	__u64 *counted = bpf_map_lookup_elem(&call_state, &which);

	if (!counted || *counted >= limit)
		return false;
	__sync_fetch_and_add(counted, 1);
	return true;
}

static __always_inline bool is_counting(void)
{
	__u32 which = CALL_STATE_OPEN;
	__u64 *open = bpf_map_lookup_elem(&call_state, &which);

	return open && *open;
}

/* The running process, and the depth of its stack at *rsp*. */
static __always_inline bool frame_of(__u64 process, __u64 rsp, struct frame *frame)
{
	__u64 hend = 0;

	if (!user_word(process, &frame->process) ||
	    !user_word(process + call_settings.process_hend, &hend))
		return false;
	frame->depth = hend - rsp;
	return true;
}

/* False if the code was unloaded, and its memory now holds another function. */
static __always_inline bool is_still_there(const struct breakpoint_site *site, __u64 address)
{
	__u64 mfa[3] = {};

	if (bpf_probe_read_user(mfa, sizeof(mfa), (const void *)(address - sizeof(mfa))))
		return false;
	return mfa[0] == site->module && mfa[1] == site->function && (__u32)mfa[2] == site->arity;
}

static __always_inline struct call_hit *reserve_hit(struct call_totals *totals)
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
	struct breakpoint_site *site = bpf_map_lookup_elem(&breakpoint_sites, &address);
	struct call_totals *totals;
	struct frame frame = {};
	struct call_hit *hit;
	__u32 number;

	if (!site || !is_counting())
		return 0;
	number = site->number;
	totals = bpf_map_lookup_elem(&call_totals, &number);
	if (!totals)
		return 0; /* cannot be: user space assigns the numbers */
	if (!is_still_there(site, address)) {
		totals->strange++;
		return 0;
	}
	if (!within_limit(CALL_STATE_CALLS, call_settings.limit)) {
		totals->beyond++;
		return DISABLE_BREAKPOINT;
	}
	totals->calls++;
	if (!frame_of(ctx->regs.r13, rsp, &frame) || !user_word(rsp, &caller))
		totals->refused++;
	if (caller && bpf_map_lookup_elem(&breakpoint_sites, &caller)) {
		struct call_pending pending = {.since_ns = bpf_ktime_get_ns(), .address = address};

		bpf_map_update_elem(&call_pending, &frame, &pending, BPF_ANY);
	}
	hit = reserve_hit(totals);
	if (!hit)
		return 0;
	hit->process = frame.process;
	hit->address = address;
	hit->caller = caller;
	hit->arity = site->arity;
	if (bpf_probe_read_user(hit->x, sizeof(hit->x), (const void *)ctx->regs.rbx))
		totals->refused++;
	else
		copy_terms(hit->captures, hit->x, hit->arity, call_settings.map_subtag);
	bpf_ringbuf_submit(hit, BPF_RB_NO_WAKEUP);
	return 0;
}

SEC("perf_event")
int function_return(struct bpf_perf_event_data *ctx)
{
	__u64 address = ctx->regs.rip;
	struct breakpoint_site *site = bpf_map_lookup_elem(&breakpoint_sites, &address);
	struct call_pending *pending;
	struct call_totals *totals;
	struct frame frame = {};
	struct call_hit *hit;
	__u32 number;

	if (!site || !is_counting())
		return 0;
	number = site->number;
	totals = bpf_map_lookup_elem(&call_totals, &number);
	if (!totals)
		return 0;
	if (!within_limit(CALL_STATE_RETURNS, call_settings.return_limit)) {
		totals->beyond++;
		return DISABLE_BREAKPOINT;
	}
	/* The return has popped its address. */
	if (!frame_of(ctx->regs.r13, ctx->regs.rsp - 8, &frame)) {
		totals->refused++;
		return 0;
	}
	pending = bpf_map_lookup_elem(&call_pending, &frame);
	if (!pending) {
		/* Of another function, or the call came before the breakpoint. */
		totals->strange++;
		return 0;
	}
	totals->calls++;
	hit = reserve_hit(totals);
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
