/* SPDX-License-Identifier: GPL-2.0-only */
/* Copies of the words that the arguments of a call point to. */
#ifndef SCOPE_CAPTURES_BPF_H
#define SCOPE_CAPTURES_BPF_H

#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include "events.generated.h"
#include "terms.bpf.h"

#define ARGUMENTS 8 /* whose terms are copied */

/* Copy the words that the term points to: a list's two, otherwise up to seven. */
static __always_inline void copy_words(__u64 *capture)
{
	const void *from = untag(capture[0]);

	if (is_list(capture[0]) || bpf_probe_read_user(capture + 1, 7 * sizeof(*capture), from)) {
		if (bpf_probe_read_user(capture + 1, 2 * sizeof(*capture), from))
			capture[0] = 0; /* not mapped, or paged out: not shown */
	}
}

/* The words of a capture that are terms: bit N is word N. */
static __always_inline __u32 terms_of(const __u64 *capture, __u32 map_subtag)
{
	__u64 header = capture[1];

	if (is_list(capture[0]))
		return 1 << 1 | 1 << 2;
	if (is_tuple_header(header)) {
		__u64 arity = tuple_arity(header);

		return arity >= 6 ? 0xfc : ((1U << arity) - 1) << 2;
	}
	if (header_subtag(header) == map_subtag && is_flatmap_header(header))
		return 1 << 3; /* the tuple of its keys */
	return 0;
}

/* Capture the arguments *x*, then the terms that they contain, breadth first, while there is room
 * in *captures*: CAPTURES of CAPTURE_WORDS. */
static __always_inline void copy_terms(__u64 *captures, const __u64 *x, __u32 arity,
				       __u32 map_subtag)
{
	__u32 used = 0;

#pragma unroll
	for (__u32 i = 0; i < ARGUMENTS; i++)
		if (i < arity && is_pointer(x[i]) && used < CAPTURES)
			captures[used++ * CAPTURE_WORDS] = x[i];
	for (__u32 i = 0; i < CAPTURES; i++) {
		__u64 *capture = &captures[i * CAPTURE_WORDS];
		__u32 terms;

		if (i >= used)
			break;
		copy_words(capture);
		if (!capture[0])
			continue;
		terms = terms_of(capture, map_subtag);
		for (__u32 word = 1; word < CAPTURE_WORDS; word++)
			if (terms >> word & 1 && is_pointer(capture[word]) && used < CAPTURES)
				captures[used++ * CAPTURE_WORDS] = capture[word];
	}
}

#endif
