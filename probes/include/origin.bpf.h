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
__noinline __u64 struct_name(__u64 term)
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
__noinline __u64 reason_name(__u64 term)
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
__noinline __u32 line_of(__u64 list)
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

/* The term of the first entry {M, F, A, Location} that has a line, else of the first; 0 if none. */
__noinline __u64 crash_entry(__u64 trace)
{
	__u64 first = 0;

	for (int i = 0; i < TRACE_ENTRIES; i++) {
		__u64 cell[2] = {}, entry[5] = {};

		if (!is_list(trace) || cannot_read(cell, sizeof(cell), trace) ||
		    !is_boxed(cell[0]) || cannot_read(entry, sizeof(entry), cell[0]) ||
		    entry[0] != tuple_header(4) || !is_atom(entry[1]) || !is_atom(entry[2]))
			return first;
		if (target.am_line && line_of(entry[4]))
			return cell[0];
		if (!first)
			first = cell[0];
		trace = cell[1];
	}
	return first;
}

/* Where an error was raised, by its stack trace. */
static __noinline void find_crash(__u64 trace, struct origin *origin)
{
	__u64 found = crash_entry(trace), entry[5] = {};

	if (!origin || !found || cannot_read(entry, sizeof(entry), found) || !is_atom(entry[1]) ||
	    !is_atom(entry[2]))
		return;
	origin->module = entry[1] >> 6;
	origin->function = entry[2] >> 6;
	origin->line = target.am_line ? line_of(entry[4]) : 0;
}

/* The value of {'$initial_call', Value}; 0 if *term* is no such pair. */
__noinline __u64 initial_call_in(__u64 term)
{
	__u64 pair[3] = {};

	if (!is_boxed(term) || cannot_read(pair, sizeof(pair), term) ||
	    pair[0] != tuple_header(2) || pair[1] != target.am_initial_call)
		return 0;
	return pair[2];
}

/* '$initial_call' of the dictionary, where proc_lib puts it, or 0; an atom hashes to its index
 * (OTP-25.2.3 and 27.3.4.1 erl_process_dict.c). */
__noinline __u64 initial_call_of(__u64 table)
{
	__u64 term = 0, found;
	__u32 head[2] = {}, index;

	if (!table || !target.am_initial_call || cannot_read(head, sizeof(head), table))
		return 0;
	index = (__u32)(target.am_initial_call >> 6) & head[0];
	if (index >= head[1])
		index &= head[0] >> 1;
	if (cannot_read(&term, sizeof(term), table + 24 + index * 8ULL))
		return 0;
	for (int i = 0; i < DICTIONARY_COLLISIONS; i++) {
		__u64 cell[2] = {};

		if (!is_list(term))
			return initial_call_in(term);
		if (cannot_read(cell, sizeof(cell), term))
			return 0;
		found = initial_call_in(cell[0]);
		if (found)
			return found;
		term = cell[1];
	}
	return 0;
}

/* What the process was started with. */
static __noinline void find_start(__u64 process, struct origin *origin)
{
	__u64 call[2] = {}, initial, named[4] = {};

	if (!origin)
		return;
	if (settings.process_module &&
	    !cannot_read(call, sizeof(call), process + settings.process_module) &&
	    is_atom(call[0]) && is_atom(call[1])) {
		origin->module = call[0] >> 6;
		origin->function = call[1] >> 6;
	}
	initial = initial_call_of(vm_field(KIND_EXIT, process, settings.process_dictionary));
	if (!is_boxed(initial) || cannot_read(named, sizeof(named), initial) ||
	    named[0] != tuple_header(3) || !is_atom(named[1]) || !is_atom(named[2]))
		return;
	origin->module = named[1] >> 6;
	origin->function = named[2] >> 6;
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
