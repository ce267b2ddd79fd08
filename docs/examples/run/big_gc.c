/* SPDX-License-Identifier: Apache-2.0 */
/*
 * big_gc: garbage collections that leave a large heap, with their process and how long they took.
 *
 *   sudo scope-trace run big_gc.c --pid PID -D LEAST_WORDS=100000
 */
#include "beam.h"

#ifndef LEAST_WORDS
#define LEAST_WORDS 10000 /* 80 kB */
#endif

struct begun {
	u64 process, since;
};

BPF_HASH(collections, u32, struct begun, 4096); /* under way, by thread */
BEAM_EVENT(big_gc, u64 heap_words; u64 duration_ns; eterm caller;);

int on_gc_entry(struct pt_regs *ctx, u64 process)
{
	u32 thread = bpf_get_current_pid_tgid();
	struct begun begun = {process, bpf_ktime_get_ns()};

	collections.update(&thread, &begun);
	return 0;
}

int on_gc_return(struct pt_regs *ctx)
{
	u32 thread = bpf_get_current_pid_tgid();
	struct begun *begun = collections.lookup(&thread);
	struct big_gc event = {};
	u64 process;

	if (!begun)
		return 0; /* it began before this probe did */
	process = begun->process;
	event.duration_ns = bpf_ktime_get_ns() - begun->since;
	collections.delete(&thread);
	event.heap_words = beam_field(Process, process, heap_sz);
	if (event.heap_words < LEAST_WORDS)
		return 0;
	event.caller = beam_term(beam_field(Process, process, parent));
	beam_emit(big_gc, beam_pid(process), event);
	return 0;
}
