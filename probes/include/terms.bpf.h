/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Erlang terms: 64-bit words with a tag in the low bits.
 *
 * OTP-25.2.3 erts/emulator/beam/erl_term.h, the same from OTP 24 to 29; scope_ebpf/beam/memory/
 * terms.py is the Python side.
 */
#ifndef SCOPE_TERMS_BPF_H
#define SCOPE_TERMS_BPF_H

#include <linux/types.h>
#include <stdbool.h>

#define TERM_NIL 0x3b

static __always_inline bool is_atom(__u64 term)
{
	return (term & 0x3f) == 0x0b;
}

/* A pid of this node, which is an immediate. */
static __always_inline bool is_pid(__u64 term)
{
	return (term & 0xf) == 0x3;
}

/* A small integer. */
static __always_inline bool is_small(__u64 term)
{
	return (term & 0xf) == 0xf;
}

/* A cons cell: two words, head and tail. [] is none. */
static __always_inline bool is_list(__u64 term)
{
	return (term & 3) == 1;
}

/* A pointer to a header word and what follows it: a tuple, a map, a binary... */
static __always_inline bool is_boxed(__u64 term)
{
	return (term & 3) == 2;
}

static __always_inline bool is_pointer(__u64 term)
{
	return (term & 3) == 1 || (term & 3) == 2;
}

/* The address that a list or a boxed term points to; bit 2 marks literals. */
static __always_inline const void *untag(__u64 term)
{
	return (const void *)(term & ~7ULL);
}

/* The type in a header word; 0 is a tuple. */
static __always_inline __u64 header_subtag(__u64 header)
{
	return header & 0x3f;
}

/* The header word of a tuple of *arity* elements. */
static __always_inline __u64 tuple_header(__u64 arity)
{
	return arity << 6;
}

static __always_inline bool is_tuple_header(__u64 header)
{
	return header_subtag(header) == 0;
}

static __always_inline __u64 tuple_arity(__u64 header)
{
	return header >> 6;
}

/* Of a map's header: it has at most 32 keys, and is its size, a tuple of its keys, its values. */
static __always_inline bool is_flatmap_header(__u64 header)
{
	return (header >> 6 & 3) == 0;
}

#endif
