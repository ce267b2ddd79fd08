/* SPDX-License-Identifier: GPL-2.0-only */
/* Markers of scope-mark: what is in their ids, and the frame of the function that has one. */
#ifndef SCOPE_MARKER_BPF_H
#define SCOPE_MARKER_BPF_H

#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include "events.generated.h"
#include "terms.bpf.h"

/* The lowest six bits of the number that is a marker's argument (scope_mark/README.md). */
#define MARKER_ENTRY  1
#define MARKER_RETURN 2
#define MARKER_CAUGHT 3
#define MARKER_CATCH  4
#define MARKER_TAIL   5

/* The kind of marker, by its argument; 0 for one that is none. */
static __always_inline __u64 marker_kind(__u64 term)
{
	return is_small(term) ? term >> 4 & 63 : 0;
}

/* The function: 52 bits. */
static __always_inline __u64 marker_id(__u64 term)
{
	return term >> 10;
}

/* The frame of a marked function; the addresses are 0 where they are not known. */
struct frame {
	__u64 depth;  /* bytes of stack above it: the same at each marker of one call */
	__u64 code;   /* behind the marker */
	__u64 caller; /* where the function returns to */
};

/* Read the frame of a function whose marker is hit, from a stack that begins at *sp* and ends at
 * *hend*; with *entry* the addresses as well. *frames* is one of MARK_FRAMES. False if it has
 * another layout than is known.
 *
 * Without frame pointers the first word is where the marker returns to. The second one, at an
 * entry, is where the function returns to, and at a return the frame is given back. With frame
 * pointers (ERTS_FRAME_LAYOUT_FP_RA) the first word is that of the function, which points into the
 * stack; at an entry it points behind the two words of the marker. The frame is there until the
 * function returns. (emit_i_test_yield, emit_deallocate and emit_i_bif_body_shared in
 * erts/emulator/beam/jit/x86, OTP 25.2.3, 27.3.4 and 29.1.) */
static __always_inline bool read_frame(struct frame *frame, __u64 sp, __u64 hend, bool entry,
				       __u32 frames)
{
	__u64 words[2] = {};
	bool linked;

	frame->depth = hend - sp;
	if (!entry && frames == MARK_FRAMES_RETURN)
		return true;
	if (bpf_probe_read_user(words, sizeof(words), (void *)sp))
		return false;
	linked = words[0] > sp && words[0] < hend;
	if (frames == (linked ? MARK_FRAMES_RETURN : MARK_FRAMES_LINKED))
		return false;
	if (linked)
		frame->depth = hend - words[0];
	if (!entry || (linked && words[0] != sp + sizeof(words)))
		return true;
	frame->code = linked ? words[1] : words[0];
	frame->caller = words[1];
	/* An address that cannot be read stays 0, and counts as one that is not known. */
	if (linked)
		bpf_probe_read_user(&frame->caller, sizeof(frame->caller),
				    (void *)(words[0] + sizeof(__u64)));
	return true;
}

/* The atom that is the term at *registers*, or that is the first element of that tuple; 0 for
 * anything else. False if it cannot be read. */
static __always_inline bool read_tag(__u64 *atom, __u64 registers)
{
	__u64 term = 0, words[2] = {};

	*atom = 0;
	if (bpf_probe_read_user(&term, sizeof(term), (void *)registers))
		return false;
	if (is_atom(term))
		*atom = term;
	else if (is_boxed(term) && !bpf_probe_read_user(words, sizeof(words), untag(term)) &&
		 is_tuple_header(words[0]) && tuple_arity(words[0]) && is_atom(words[1]))
		*atom = words[1];
	return true;
}

#endif
