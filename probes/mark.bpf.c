/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * mark: calls of functions that scope-mark has marked.
 *
 * Hooks:  the BIFs that are markers: ets:is_compiled_ms/1, erts_internal:cmp_term/2
 * Counts: mark_stats by function, mark_tags by callback, mark_callers by where calls return to
 * Emits:  mark_call and mark_end, into a ring of their own, where a stream is asked for
 *
 * A marker's only argument is an id: 52 bits of a hash of M:F/A, and the kind of the marker. A
 * call is open from its entry until a marker of the same process at the same or a lesser depth of
 * the stack. A callback has a marker wherever it ends, so one that is open there has failed. Other
 * functions end without one in a tail call. The contract of the marker is in scope_mark/README.md.
 */
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "buckets.bpf.h"
#include "build.h"
#include "captures.bpf.h"
#include "events.generated.h"
#include "marker.bpf.h"
#include "terms.bpf.h"

char LICENSE[] SEC("license") = "GPL";

/* Of a slot of an open call. */
#define IS_CALLBACK (1U << 31)

const volatile struct mark_settings settings; /* the only thing in .rodata */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct server_window);
} mark_window SEC(".maps");

/* The functions that are watched, by the 52 bits of their ids; slots are given when called. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, struct mark_function);
} mark_ids SEC(".maps");

/* Those of them that were called. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MARK_SLOTS);
	__type(key, __u64);
	__type(value, struct mark_function);
} mark_functions SEC(".maps");

/* The number of slots that are taken. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} mark_taken SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MARK_SLOTS);
	__type(key, __u32);
	__type(value, struct mark_stats);
} mark_stats SEC(".maps");

/* A process without open calls, as each is at first; too large for the stack. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct mark_process);
} mark_fresh SEC(".maps");

/* Processes with open calls, by the address of struct process. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, struct mark_process);
} mark_processes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MARK_SLOTS);
	__type(key, struct mark_tag);
	__type(value, __u64);
} mark_tags SEC(".maps");

/* Nothing is removed: what finds no room is of an unknown caller. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MARK_CALLERS);
	__type(key, struct mark_caller);
	__type(value, __u64);
} mark_callers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096); /* set before load */
} mark_ring SEC(".maps");

/* Puts the structs into the object's BTF, since the programs only point to them. */
const struct mark_call *any_call __attribute__((section(".records"), used));
const struct mark_end *any_end __attribute__((section(".records"), used));

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MARK_COUNTS);
	__type(key, __u32);
	__type(value, __u64);
} mark_counts SEC(".maps");

static __always_inline __u64 count(enum mark_count which)
{
	__u32 key = which;
	__u64 *value = bpf_map_lookup_elem(&mark_counts, &key);

	if (!value)
		return 0; /* cannot be: the key is within the map */
	*value += 1;
	return *value;
}

/* An index of an open call; the mask is what the verifier can see. */
static __always_inline __u32 open_index(__u32 index)
{
	index &= MARK_OPEN_CALLS - 1;
	asm volatile("" : "+r"(index));
	return index & (MARK_OPEN_CALLS - 1);
}

static __always_inline struct mark_stats *stats_of(__u32 slot)
{
	slot &= ~IS_CALLBACK;
	return bpf_map_lookup_elem(&mark_stats, &slot);
}

/* Tell the end of a call of which nothing can be copied. */
__noinline int tell_end(__u64 process, __u64 began_ns, __u32 slot)
{
	struct mark_end *end;

	if (!settings.stream)
		return 0;
	end = bpf_ringbuf_reserve(&mark_ring, sizeof(*end), 0);
	if (!end) {
		count(MARKS_UNTOLD);
		return 0;
	}
	end->time_ns = bpf_ktime_get_ns();
	end->began_ns = began_ns;
	end->process = process;
	end->line = slot & IS_CALLBACK ? LINE_FAILED : LINE_LEFT;
	end->slot = slot;
	bpf_ringbuf_submit(end, BPF_RB_NO_WAKEUP);
	return 0;
}

/* Tell what *end* says, with *arity* terms at *registers*, in the *frame* of its function. */
__noinline int tell(const struct mark_end *end, __u64 id, const struct frame *frame,
		    __u64 registers, __u32 arity)
{
	struct mark_call *call = bpf_ringbuf_reserve(&mark_ring, sizeof(*call), 0);

	if (!call || !end || !frame) {
		count(MARKS_UNTOLD);
		if (call)
			bpf_ringbuf_discard(call, BPF_RB_NO_WAKEUP);
		return 0;
	}
	__builtin_memset(call, 0, sizeof(*call));
	call->time_ns = end->time_ns;
	call->began_ns = end->began_ns;
	call->process = end->process;
	call->line = end->line;
	call->slot = end->slot;
	call->id = id;
	call->code = frame->code;
	call->caller = frame->caller;
	call->tid = (__u32)bpf_get_current_pid_tgid();
	call->arity = arity;
	if (bpf_probe_read_user(call->x, sizeof(call->x), (void *)registers))
		count(MARKS_UNREADABLE);
	else
		copy_terms(call->captures, call->x, arity, settings.map_subtag);
	bpf_ringbuf_submit(call, BPF_RB_NO_WAKEUP);
	return 0;
}

/* The last open call ended without a marker of its own: it has failed if it is a callback's. */
static __always_inline void drop(struct mark_process *process)
{
	__u32 at = open_index(process->count - 1);
	__u32 slot = process->slot[at];

	process->count -= 1;
	tell_end(process->id, process->began_ns[at], slot);
	if (slot & IS_CALLBACK) {
		struct mark_stats *stats = stats_of(slot);

		if (stats)
			__sync_fetch_and_add(&stats->failures, 1);
	}
}

/* Drop the open calls that are deeper than *depth*. */
static __always_inline void unwind(struct mark_process *process, __u64 depth)
{
	for (int i = 0; i < MARK_OPEN_CALLS; i++) {
		if (process->count - 1 >= MARK_OPEN_CALLS ||
		    process->depth[open_index(process->count - 1)] <= depth)
			return;
		drop(process);
	}
}

/* The last open call is at this depth. */
static __always_inline bool is_at(const struct mark_process *process, __u64 depth)
{
	return process->count - 1 < MARK_OPEN_CALLS &&
	       process->depth[open_index(process->count - 1)] == depth;
}

/* Count a call; false if its end will not be seen. */
static __always_inline bool enter(struct mark_process *process, __u32 slot, __u64 depth, __u64 now)
{
	struct mark_stats *stats = stats_of(slot);

	if (!stats)
		return false; /* cannot be: the slot is within the map */
	__sync_fetch_and_add(&stats->calls, 1);
	if (process) {
		unwind(process, depth);
		if (is_at(process, depth))
			drop(process);
	}
	if (!process || process->count >= MARK_OPEN_CALLS) {
		__sync_fetch_and_add(&stats->unfollowed, 1);
		return false;
	}
	__u32 at = open_index(process->count);
	process->depth[at] = depth;
	process->began_ns[at] = now;
	process->before[at] = process->hits;
	process->slot[at] = slot;
	process->count += 1;
	return true;
}

/* End a call; returns when it began, 0 if that was not followed. */
static __always_inline __u64 leave(struct mark_process *process, __u32 slot, __u64 depth, __u64 now)
{
	struct mark_stats *stats = stats_of(slot);

	if (!stats || !process)
		return 0;
	unwind(process, depth);
	/* What returns may not be what was called: a function ends with what it calls last. */
	if (!is_at(process, depth))
		return 0;
	__u32 at = open_index(process->count - 1);
	if (process->slot[at] != slot) {
		drop(process);
		return 0;
	}
	process->count -= 1;
	__u64 ns = now - process->began_ns[at];
	__u32 bucket = bucket_of(ns);
	__sync_fetch_and_add(&stats->timed, 1);
	__sync_fetch_and_add(&stats->ns, ns);
	__sync_fetch_and_add(&stats->hits, process->hits - process->before[at]);
	if (bucket < SERVER_BUCKETS)
		__sync_fetch_and_add(&stats->durations[bucket], 1);
	return process->began_ns[at];
}

/* Count where a call returns to; calls of unknown places are not counted. */
static __always_inline void count_caller(__u32 slot, __u64 caller)
{
	struct mark_caller key = {.slot = slot, .address = caller};
	__u64 one = 1, *total;

	if (!caller)
		return;
	total = bpf_map_lookup_elem(&mark_callers, &key);
	if (!total) {
		if (!bpf_map_update_elem(&mark_callers, &key, &one, BPF_NOEXIST))
			return;
		/* Another CPU was first, or there is no room. */
		total = bpf_map_lookup_elem(&mark_callers, &key);
	}
	if (total)
		__sync_fetch_and_add(total, 1);
}

/* The function with this id; NULL if it is not watched. */
static __always_inline const struct mark_function *function_of(__u64 id, __u32 class)
{
	struct mark_function *found = bpf_map_lookup_elem(&mark_functions, &id);
	struct mark_function added = {};
	__u32 first = 0, *taken;

	if (found)
		return found;
	found = bpf_map_lookup_elem(&mark_ids, &id);
	taken = bpf_map_lookup_elem(&mark_taken, &first);
	if (!found || !taken || *taken >= MARK_SLOTS - 1)
		return found; /* whose slot is that of all others */
	added.slot = __sync_fetch_and_add(taken, 1) + 1;
	added.callback = class == IS_CALLBACK;
	added.tagged = found->tagged && added.callback;
	added.arity = found->arity;
	if (added.slot >= MARK_SLOTS)
		return found;
	/* Where another CPU was first, this number stays unused. */
	bpf_map_update_elem(&mark_functions, &id, &added, BPF_NOEXIST);
	return bpf_map_lookup_elem(&mark_functions, &id);
}

/* The open calls of a process, NULL if it has none. With *begins* those are followed from now on,
 * as long as there is room. */
static __always_inline struct mark_process *process_of(__u64 address, __u64 id, bool begins)
{
	struct mark_process *found = bpf_map_lookup_elem(&mark_processes, &address);

	if (!found && begins) {
		__u32 first = 0;
		struct mark_process *fresh = bpf_map_lookup_elem(&mark_fresh, &first);

		if (fresh)
			bpf_map_update_elem(&mark_processes, &address, fresh, BPF_NOEXIST);
		found = bpf_map_lookup_elem(&mark_processes, &address);
		if (found)
			found->id = id;
		else
			count(MARKS_NO_ROOM);
	} else if (found && found->id != id) {
		/* The process whose struct this was is gone, in the middle of these calls. */
		for (int i = 0; i < MARK_OPEN_CALLS && found->count; i++)
			drop(found);
		found->id = id;
		found->count = 0;
	}
	if (found)
		found->hits += 1;
	return found;
}

/* Forget a process without open calls: most never have one again. */
static __always_inline void forget(__u64 address, const struct mark_process *process)
{
	if (process && !process->count)
		bpf_map_delete_elem(&mark_processes, &address);
}

/* A hit of a handler, or of a function that is not watched: its trap is within the open calls of
 * the process. An exception that a handler caught has ended those that are deeper. */
__noinline int pass(__u64 address, __u64 sp, __u64 kind)
{
	struct mark_process *process = bpf_map_lookup_elem(&mark_processes, &address);
	struct frame frame = {};
	__u64 id = 0, hend = 0;

	if (!process)
		return 0;
	if (bpf_probe_read_user(&id, sizeof(id), (void *)address + settings.process_id) ||
	    bpf_probe_read_user(&hend, sizeof(hend), (void *)address + settings.process_hend)) {
		count(MARKS_UNREADABLE);
		return 0;
	}
	if (process->id != id)
		return 0; /* the next hit that is watched finds out what became of those calls */
	process->hits += 1;
	if (kind == MARKER_CAUGHT || kind == MARKER_CATCH) {
		if (read_frame(&frame, sp, hend, false, settings.frames))
			unwind(process, frame.depth);
		else
			count(MARKS_UNREADABLE);
	}
	forget(address, process);
	return 0;
}

/* Count the atom that x0 is, or that is the first element of the tuple x0. */
static __always_inline void count_tag(__u32 slot, enum mark_way way, __u64 registers)
{
	struct mark_tag key = {.slot = slot, .way = way};
	__u64 one = 1, *total;

	if (!read_tag(&key.atom, registers))
		count(MARKS_UNREADABLE);
	total = bpf_map_lookup_elem(&mark_tags, &key);
	if (!total) {
		if (!bpf_map_update_elem(&mark_tags, &key, &one, BPF_NOEXIST))
			return;
		/* Another CPU was first, or there is no room. */
		total = bpf_map_lookup_elem(&mark_tags, &key);
	}
	if (total)
		__sync_fetch_and_add(total, 1);
	else
		count(MARKS_NO_ROOM);
}

/* A hit of *class* by the process at *address*; its id is *term*, or the first word of *arguments*
 * where that is not 0. */
static __always_inline int hit(struct pt_regs *ctx, __u64 address, __u64 arguments, __u64 term,
			       __u32 class)
{
	const struct mark_function *function;
	struct mark_process *process;
	struct frame frame = {};
	__u64 id = 0, hend = 0, now, kind;
	/* While a BIF of a marker runs, rbp holds the Erlang stack pointer, with frame pointers
	 * too, and rbx the address of the X registers (JIT of OTP 25, 27 and 29). Read once: the
	 * verifier wants a context without an offset. */
	__u64 sp = ctx->rbp, registers = ctx->rbx;
	__u32 first = 0, slot;

	if (bpf_get_current_pid_tgid() >> 32 != settings.tgid)
		return 0;
	now = count(class ? MARKS_CALLBACK : MARKS_FUNCTION);
	now = in_window(bpf_map_lookup_elem(&mark_window, &first), now);
	if (!now)
		return 0;
	if (arguments && bpf_probe_read_user(&term, sizeof(term), (void *)arguments))
		term = 0;
	kind = marker_kind(term);
	term = marker_id(term);
	/* Handlers have markers of callbacks in every function: they do not show its class. */
	if (kind == MARKER_CAUGHT || kind == MARKER_CATCH)
		function = bpf_map_lookup_elem(&mark_ids, &term);
	else
		function = kind ? function_of(term, class) : NULL;
	if (!function)
		count(MARKS_UNKNOWN);
	if (!function || kind == MARKER_CAUGHT || kind == MARKER_CATCH)
		return pass(address, sp, kind);
	if (bpf_probe_read_user(&hend, sizeof(hend), (void *)address + settings.process_hend) ||
	    bpf_probe_read_user(&id, sizeof(id), (void *)address + settings.process_id)) {
		count(MARKS_UNREADABLE);
		return 0;
	}
	if (!read_frame(&frame, sp, hend, kind == MARKER_ENTRY, settings.frames)) {
		count(MARKS_UNREADABLE);
		return 0;
	}
	process = process_of(address, id, kind == MARKER_ENTRY);
	slot = function->slot | class;
	struct mark_end end = {.time_ns = now, .process = id, .slot = slot};
	switch (kind) {
	case MARKER_ENTRY:
		end.line = enter(process, slot, frame.depth, now) ? LINE_ENTERED : LINE_UNFOLLOWED;
		end.began_ns = now;
		if (function->slot)
			count_caller(function->slot, frame.caller);
		if (function->tagged && function->slot)
			count_tag(function->slot, WAY_TAG, registers);
		break;
	case MARKER_RETURN:
		end.line = LINE_RETURNED;
		end.began_ns = leave(process, slot, frame.depth, now);
		if (function->tagged && function->slot)
			count_tag(function->slot, WAY_RESULT, registers);
		break;
	case MARKER_TAIL:
		end.line = LINE_HANDED;
		end.began_ns = leave(process, slot, frame.depth, now);
		break;
	}
	if (settings.stream && end.line)
		tell(&end, term, &frame, registers,
		     kind == MARKER_ENTRY ? function->arity : kind == MARKER_RETURN);
	forget(address, process);
	return 0;
}

SEC("uprobe")
int BPF_KPROBE(mark_callback, __u64 process, __u64 arguments)
{
	return hit((struct pt_regs *)ctx, process, arguments, 0, IS_CALLBACK);
}

SEC("uprobe")
int BPF_KPROBE(mark_function, __u64 process, __u64 arguments)
{
	/* The JIT keeps the process in r13 (OTP 25, 27 and 29). */
	if (settings.function_in_register)
		return hit((struct pt_regs *)ctx, ctx->r13, 0, process, 0);
	return hit((struct pt_regs *)ctx, process, arguments, 0, 0);
}
