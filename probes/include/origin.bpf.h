/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Where a process crashed, what it was started with, and its registered name, at its end.
 *
 * All are read from terms that the VM does not change then: the reason with its stack trace, the
 * dictionary, the entry of the name. Nothing that is read is believed to be what it should be.
 */
#ifndef SCOPE_ORIGIN_BPF_H
#define SCOPE_ORIGIN_BPF_H

#include "scope.bpf.h"
#include "terms.bpf.h"

/* Entries of a stack trace, and elements of the location of one, that are read. */
#define TRACE_ENTRIES	  4
#define LOCATION_ELEMENTS 3
/* Keys of a flat map (MAP_SMALL_MAP_LIMIT), and keys in one slot of a dictionary that are read. */
#define STRUCT_KEYS	      32
#define DICTIONARY_COLLISIONS 4

/* Indices of atoms; 0 is unknown, though the VM has an atom there, "_". */
struct origin {
	__u32 module, function, line, name;
};

static __always_inline bool cannot_read(void *words, __u32 bytes, __u64 term)
{
	return bpf_probe_read_user(words, bytes, untag(term));
}

/* The value of __struct__ in a flat map; 0 if it has none. */
static __noinline __u64 struct_name(__u64 term)
{
	__u64 map[3] = {}, key = 0, value = 0;
	__u64 base = (__u64)untag(term);

	if (cannot_read(map, sizeof(map), term) || !settings.map_subtag || !target.am_struct ||
	    header_subtag(map[0]) != settings.map_subtag || !is_flatmap_header(map[0]))
		return 0;
	for (__u32 i = 0; i < STRUCT_KEYS; i++) {
		if (i >= map[1] || cannot_read(&key, sizeof(key), (map[2] & ~7ULL) + 8 + i * 8ULL))
			return 0;
		if (key != target.am_struct)
			continue;
		if (cannot_read(&value, sizeof(value), base + 24 + i * 8ULL))
			return 0;
		return is_atom(value) ? value : 0;
	}
	return 0;
}

/* What names a reason: itself, the first element of a tuple, the struct of an exception; or 0. */
static __noinline __u64 reason_name(__u64 term)
{
	__u64 words[2] = {};

	if (is_atom(term))
		return term;
	if (!is_boxed(term) || cannot_read(words, sizeof(words), term))
		return 0;
	if (is_tuple_header(words[0]))
		return tuple_arity(words[0]) && is_atom(words[1]) ? words[1] : 0;
	return struct_name(term);
}

/* The line in the location of an entry of a stack trace, [{file, F}, {line, L}]; 0 if none. */
static __noinline __u32 line_of(__u64 list)
{
	for (int i = 0; i < LOCATION_ELEMENTS; i++) {
		__u64 cell[2] = {}, pair[3] = {};

		if (!is_list(list) || cannot_read(cell, sizeof(cell), list) || !is_boxed(cell[0]) ||
		    cannot_read(pair, sizeof(pair), cell[0]))
			return 0;
		if (pair[0] == tuple_header(2) && pair[1] == target.am_line)
			return is_small(pair[2]) ? pair[2] >> 4 : 0;
		list = cell[1];
	}
	return 0;
}

/* The first entry {M, F, A, Location} that has a line, else the first of all. */
static __noinline void find_crash(__u64 trace, struct origin *origin)
{
	if (!origin)
		return;
	for (int i = 0; i < TRACE_ENTRIES; i++) {
		__u64 cell[2] = {}, entry[5] = {};
		__u32 line;

		if (!is_list(trace) || cannot_read(cell, sizeof(cell), trace) ||
		    !is_boxed(cell[0]) || cannot_read(entry, sizeof(entry), cell[0]) ||
		    entry[0] != tuple_header(4) || !is_atom(entry[1]) || !is_atom(entry[2]))
			return;
		line = target.am_line ? line_of(entry[4]) : 0;
		if (line || !i) {
			origin->module = entry[1] >> 6;
			origin->function = entry[2] >> 6;
			origin->line = line;
		}
		if (line)
			return;
		trace = cell[1];
	}
}

/* Take {'$initial_call', {M, F, A}}; false if *pair* is another. */
static __always_inline bool take_initial(__u64 term, struct origin *origin)
{
	__u64 pair[3] = {}, call[4] = {};

	if (!is_boxed(term) || cannot_read(pair, sizeof(pair), term) ||
	    pair[0] != tuple_header(2) || pair[1] != target.am_initial_call)
		return false;
	if (!is_boxed(pair[2]) || cannot_read(call, sizeof(call), pair[2]) ||
	    call[0] != tuple_header(3) || !is_atom(call[1]) || !is_atom(call[2]))
		return true;
	origin->module = call[1] >> 6;
	origin->function = call[2] >> 6;
	return true;
}

/* '$initial_call' of the dictionary, where proc_lib puts it; an atom hashes to its index
 * (OTP-25.2.3 and 27.3.4.1 erl_process_dict.c). */
static __always_inline void find_initial_call(__u64 process, struct origin *origin)
{
	__u64 table = vm_field(KIND_EXIT, process, settings.process_dictionary), term = 0;
	__u32 head[2] = {}, index;

	if (!table || !target.am_initial_call || cannot_read(head, sizeof(head), table))
		return;
	index = (__u32)(target.am_initial_call >> 6) & head[0];
	if (index >= head[1])
		index &= head[0] >> 1;
	if (cannot_read(&term, sizeof(term), table + 24 + index * 8ULL))
		return;
	for (int i = 0; i < DICTIONARY_COLLISIONS; i++) {
		__u64 cell[2] = {};

		if (!is_list(term)) {
			take_initial(term, origin);
			return;
		}
		if (cannot_read(cell, sizeof(cell), term) || take_initial(cell[0], origin))
			return;
		term = cell[1];
	}
}

/* What the process was started with. */
static __noinline void find_start(__u64 process, struct origin *origin)
{
	__u64 call[2] = {};

	if (!origin)
		return;
	if (settings.process_module &&
	    !cannot_read(call, sizeof(call), process + settings.process_module) &&
	    is_atom(call[0]) && is_atom(call[1])) {
		origin->module = call[0] >> 6;
		origin->function = call[1] >> 6;
	}
	find_initial_call(process, origin);
}

/* The registered name; 0 if it has none. */
static __noinline __u32 name_of(__u64 process)
{
	__u64 entry = vm_field(KIND_EXIT, process, settings.process_registered), name;

	if (!entry || !settings.registered_name)
		return 0;
	name = vm_word(KIND_EXIT, entry, settings.registered_name);
	return is_atom(name) ? name >> 6 : 0;
}

#endif
