/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * marked: markers in code that scope-mark has marked, each a record of its own.
 *
 * Hooks:  the BIFs that are markers: ets:is_compiled_ms/1, erts_internal:cmp_term/2
 * Counts: mark_callback and mark_function by kind of marker
 * Emits:  mark_callback, mark_function
 *
 * Nothing is kept from one hit to the next: who reads the records finds out which of them are of
 * one call. mark.bpf.c does that here, for counts.
 */
#include "scope.bpf.h"
#include "marker.bpf.h"

/* What the records of both kinds have in common, so that one function makes them. */
_Static_assert(sizeof(struct mark_callback_record) == sizeof(struct mark_function_record), "");

static __always_inline int passed(struct pt_regs *ctx, enum kind kind, __u32 tid, __u64 process,
				  __u64 term)
{
	struct mark_callback_record *mark;
	__u64 marker = marker_kind(term), id;
	struct frame frame = {};

	/* Markers of handlers are those of callbacks in every function. */
	if (marker < MARKER_ENTRY ||
	    marker > (kind == KIND_MARK_CALLBACK ? MARKER_TAIL : MARKER_RETURN))
		return 0; /* another caller of this BIF */
	id = id_of(kind, process);
	if (!is_wanted(0, id))
		return 0;
	count_event(kind, marker - MARKER_ENTRY);
	mark = reserve_record(kind, marker - MARKER_ENTRY, 0, tid, id);
	if (!mark)
		return 0;
	/* While a BIF of a marker runs, rbp holds the Erlang stack pointer, with frame pointers
	 * too, and rbx the address of the X registers (JIT of OTP 25, 27 and 29). */
	if (!read_frame(&frame, ctx->rbp, vm_word(kind, process, settings.process_hend),
			marker == MARKER_ENTRY, settings.mark_frames))
		count_failure(kind);
	mark->function = marker_id(term);
	mark->depth = frame.depth;
	mark->caller = frame.caller;
	if ((marker == MARKER_ENTRY || marker == MARKER_RETURN) && !read_tag(&mark->tag, ctx->rbx))
		count_failure(kind);
	submit_record(mark);
	return 0;
}

SEC("uprobe")
int BPF_KPROBE(marked_callback, __u64 process, __u64 arguments)
{
	__u32 tid;

	if (!enter_program(PROGRAM_MARKED_CALLBACK, &tid))
		return 0;
	return passed(ctx, KIND_MARK_CALLBACK, tid, process,
		      vm_word(KIND_MARK_CALLBACK, arguments, 0));
}

SEC("uprobe")
int BPF_KPROBE(marked_function, __u64 process, __u64 arguments)
{
	__u32 tid;

	if (!enter_program(PROGRAM_MARKED_FUNCTION, &tid))
		return 0;
	/* Where the id is in a register, the JIT keeps the process in r13 (OTP 29). */
	if (settings.mark_in_register)
		return passed(ctx, KIND_MARK_FUNCTION, tid, ctx->r13, process);
	return passed(ctx, KIND_MARK_FUNCTION, tid, process,
		      vm_word(KIND_MARK_FUNCTION, arguments, 0));
}

char LICENSE[] SEC("license") = "GPL";
