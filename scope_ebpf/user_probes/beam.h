/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a probe for `scope-trace run` may use: terms of the BEAM, its structs, events, counts.
 *
 * It is put before the probe; `#include "beam.h"` is for editors. docs/run.md explains it.
 * Before this text stand BEAM_RING_PAGES, BEAM_KIND_* of each event, BEAM_FUNCTIONS, and
 * BEAM_<struct>_<field>, the offsets of the VM that is looked at.
 */
#ifndef SCOPE_BEAM_H
#define SCOPE_BEAM_H

#include <uapi/linux/ptrace.h>

/* A term: one word, as the VM holds it. A type of its own, so that it is shown as what it is. */
typedef struct eterm {
	u64 word;
} eterm;

/* What is in the ring: 120 bytes and the kernel's 8. */
#define BEAM_BODY 96
struct beam_record {
	u64 time_ns;
	u16 kind;
	u8 class;
	u8 flags;
	u32 tid;
	u64 process;
	u64 body[BEAM_BODY / 8];
};

enum beam_trouble {
	BEAM_LOST,   /* events that found no room in the ring */
	BEAM_UNREAD, /* reads of the VM's memory that failed */
	BEAM_FULL,   /* counts of keys that found no room in their table */
	BEAM_TROUBLES,
};

BPF_RINGBUF_OUTPUT(beam_ring, BEAM_RING_PAGES);
BPF_PERCPU_ARRAY(beam_troubles, u64, BEAM_TROUBLES);
/* How often each function of the probe ran; the call that counts is put at its beginning. */
BPF_PERCPU_ARRAY(beam_hits, u64, BEAM_FUNCTIONS + 1);

static __always_inline void beam_hit(u32 function)
{
	u64 *seen = beam_hits.lookup(&function);

	if (seen)
		__sync_fetch_and_add(seen, 1);
}

static __always_inline void beam_trouble(u32 what)
{
	u64 *seen = beam_troubles.lookup(&what);

	if (seen)
		*seen += 1;
}

/* ------------------------------------------------------------------ the memory of the VM */

/* Eight bytes at an address; 0, and counted as unread, where they cannot be read. */
static __always_inline u64 beam_word(u64 address)
{
	u64 word = 0;

	if (bpf_probe_read_user(&word, sizeof(word), (void *)address))
		beam_trouble(BEAM_UNREAD);
	return word;
}

/* A field of a struct of the VM: beam_field(Process, process, heap). Of 8 bytes, or of a type. */
#define beam_field(type, address, field) beam_word((address) + BEAM_##type##_##field)
#define beam_field_as(ctype, type, address, field)                                                 \
	((ctype)beam_word((address) + BEAM_##type##_##field))

/* ------------------------------------------------------------------------------- terms */

/* The pid of a Process, or the id of a Port: its first word. */
static __always_inline eterm beam_pid(u64 process)
{
	eterm id = {process ? beam_word(process) : 0};

	return id;
}

static __always_inline eterm beam_term(u64 word)
{
	eterm term = {word};

	return term;
}

/* beam_atom("name") is the atom of that name; 0 if the VM has no such atom when the probe starts. */

static __always_inline bool beam_same(eterm a, eterm b)
{
	return a.word == b.word;
}

static __always_inline bool beam_is_atom(eterm term)
{
	return (term.word & 0x3f) == 0x0b;
}

static __always_inline bool beam_is_pid(eterm term)
{
	return (term.word & 0xf) == 0x3;
}

static __always_inline bool beam_is_port(eterm term)
{
	return (term.word & 0xf) == 0x7;
}

static __always_inline bool beam_is_small(eterm term)
{
	return (term.word & 0xf) == 0xf;
}

static __always_inline s64 beam_small(eterm term)
{
	return (s64)term.word >> 4;
}

static __always_inline bool beam_is_cons(eterm term)
{
	return (term.word & 0x3) == 0x1;
}

static __always_inline bool beam_is_boxed(eterm term)
{
	return (term.word & 0x3) == 0x2;
}

/* How many elements a tuple has; 0 for anything else, and for {}. */
static __always_inline u64 beam_tuple_size(eterm term)
{
	u64 header;

	if (!beam_is_boxed(term))
		return 0;
	header = beam_word(term.word & ~7ULL);
	return header & 0x3f ? 0 : header >> 6;
}

/* Element 1, 2, ... of a tuple of that size at least. */
static __always_inline eterm beam_element(eterm tuple, u32 number)
{
	return beam_term(beam_word((tuple.word & ~7ULL) + 8 * number));
}

static __always_inline eterm beam_head(eterm list)
{
	return beam_term(beam_word(list.word & ~7ULL));
}

static __always_inline eterm beam_tail(eterm list)
{
	return beam_term(beam_word((list.word & ~7ULL) + 8));
}

/*
 * What kind of message this is: an atom itself, or the atom that a tuple begins with; else 0. The
 * element behind '$gen_call', '$gen_cast' and the like is left to the probe.
 */
static __always_inline eterm beam_tag(eterm message)
{
	eterm first;

	if (beam_is_atom(message))
		return message;
	if (!beam_tuple_size(message))
		return beam_term(0);
	first = beam_element(message, 1);
	return beam_is_atom(first) ? first : beam_term(0);
}

/* ------------------------------------------------------------ what the probe has to say */

/*
 * BEAM_EVENT(name, fields) declares struct name; beam_emit(name, process, value) sends one. At most
 * 96 bytes. Fields of type eterm are shown as terms, *_ns as seconds, *_words as bytes.
 */
#define BEAM_EVENT(name, ...)                                                                      \
	struct name {                                                                              \
		__VA_ARGS__                                                                        \
	};                                                                                         \
	_Static_assert(sizeof(struct name) <= BEAM_BODY, #name " has more than 96 bytes");         \
	BPF_ARRAY(beam_event_##name, struct name, 1)

#define beam_emit(name, process, value)                                                            \
	beam_emit_(BEAM_KIND_##name, process, &(value), sizeof(struct name))

static __always_inline void beam_emit_(u16 kind, eterm process, void *value, u32 size)
{
	struct beam_record *record = beam_ring.ringbuf_reserve(sizeof(struct beam_record));

	if (!record) {
		beam_trouble(BEAM_LOST);
		return;
	}
	record->time_ns = bpf_ktime_get_ns();
	record->kind = kind;
	record->class = 0;
	record->flags = 0;
	record->tid = bpf_get_current_pid_tgid();
	record->process = process.word;
	__builtin_memset(record->body, 0, sizeof(record->body));
	__builtin_memcpy(record->body, value, size);
	beam_ring.ringbuf_submit(record, BPF_RB_NO_WAKEUP);
}

/*
 * BEAM_COUNT(name, fields) declares struct name and a table of 8,192 of them;
 * beam_count(name, value) adds one to that value. The largest are shown at the end.
 *
 * bcc does not see the use of a map in a macro, so what stands for BEAM_COUNT and BEAM_HISTOGRAM is
 * written by source.py: the struct, the map, and a function that adds to it.
 */
#define beam_count(name, value) beam_count_##name##_(&(value))

/* BEAM_HISTOGRAM(name) and beam_observe(name, ns): durations, shown as powers of two at the end. */
#define beam_observe(name, ns) beam_observe_##name##_(ns)

#endif
