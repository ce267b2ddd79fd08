/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a message is to a process of OTP: a call, a cast, a reply, or anything else.
 *
 * Calls are {'$gen_call', {Pid, Tag}, Request}, and {system, {Pid, Tag}, Request}; replies are
 * {Tag, Reply}. A tag is a reference or [alias | Reference], once more in a list where a process
 * calls for another one (OTP-25.2.3 and 27.3.4.1 lib/stdlib/src/gen.erl).
 */
#ifndef SCOPE_FORM_BPF_H
#define SCOPE_FORM_BPF_H

#include "scope.bpf.h"
#include "terms.bpf.h"

/* Subtags of header words (OTP-25.2.3 erl_term.h): _TAG_HEADER_REF, _TAG_HEADER_EXTERNAL_REF. */
#define REF_SUBTAG	    0x10
#define EXTERNAL_REF_SUBTAG 0x38
/* The first of a reference's numbers has so many bits, the second has 32 (erl_term.h, REF_MASK). */
#define FIRST_BITS 18
#define FORM_SHIFT 56
/* Words of the largest tuple of these that are read: its header and three elements. */
#define FORM_WORDS 4

static __always_inline bool read_words(enum kind kind, __u64 term, __u64 *words, __u32 bytes)
{
	if (!bpf_probe_read_user(words, bytes, untag(term)))
		return true;
	count_failure(kind);
	return false;
}

/* The low 50 bits of the reference *term*; 0 if it is none. They are the same on every node. */
static __always_inline __u64 reference_of(enum kind kind, __u64 term)
{
	__u64 words[5];
	__u32 first, second;

	if (!is_boxed(term) || !read_words(kind, term, words, 3 * sizeof(*words)))
		return 0;
	switch (header_subtag(words[0])) {
	case REF_SUBTAG: /* header, marker and first, second and third */
		first = words[1] >> 32;
		second = words[2];
		break;
	case EXTERNAL_REF_SUBTAG: /* header, node, next, how many and first, second and third */
		if (!read_words(kind, term, words, sizeof(words)))
			return 0;
		first = words[3] >> 32;
		second = words[4];
		break;
	default:
		return 0;
	}
	return (first & ((1U << FIRST_BITS) - 1)) | (__u64)second << FIRST_BITS;
}

/* The same of a tag: a reference, alone or behind one or two cons cells with alias. */
static __always_inline __u64 tag_of(enum kind kind, __u64 term)
{
	__u64 cell[2];

	if (!is_list(term))
		return reference_of(kind, term);
	if (!read_words(kind, term, cell, sizeof(cell)))
		return 0;
	if (is_list(cell[0]) && !read_words(kind, cell[0], cell, sizeof(cell)))
		return 0;
	return cell[0] == target.am_alias ? reference_of(kind, cell[1]) : 0;
}

static __always_inline __u64 form(enum form what, __u64 reference)
{
	return (__u64)what << FORM_SHIFT | reference;
}

/* FORM_* in the highest byte, and below it the reference of a call; 0 for a term that is unknown.
 */
static __noinline __u64 form_of_term(enum kind kind, __u64 term)
{
	__u64 words[FORM_WORDS] = {}, from[3], reference;

	if (!is_boxed(term))
		return form(FORM_INFO, 0);
	if (!read_words(kind, term, words, 2 * sizeof(*words)))
		return 0;
	switch (words[0]) {
	case 3 << 6:
		if (words[1] != target.am_gen_call && words[1] != target.am_system)
			return form(FORM_INFO, 0);
		if (!read_words(kind, term, words, sizeof(words)) || !is_boxed(words[2]) ||
		    !read_words(kind, words[2], from, sizeof(from)) || from[0] != tuple_header(2))
			return form(FORM_INFO, 0);
		reference = tag_of(kind, from[2]);
		return reference ? form(FORM_CALL, reference) : form(FORM_INFO, 0);
	case 2 << 6:
		if (words[1] == target.am_gen_cast)
			return form(FORM_CAST, 0);
		reference = tag_of(kind, words[1]);
		return reference ? form(FORM_REPLY, reference) : form(FORM_INFO, 0);
	case 5 << 6:
		if (words[1] != target.am_down)
			return form(FORM_INFO, 0);
		if (!read_words(kind, term, words, 3 * sizeof(*words)))
			return 0;
		reference = reference_of(kind, words[2]);
		return reference ? form(FORM_DOWN, reference) : form(FORM_INFO, 0);
	default:
		return form(FORM_INFO, 0);
	}
}

/* The same where records are made and the atoms are known, otherwise 0. */
static __always_inline __u64 form_of(enum kind kind, __u64 term)
{
	if (!term || !is_streamed(kind) || !target.am_gen_call)
		return 0;
	return form_of_term(kind, term);
}

#endif
