/* SPDX-License-Identifier: GPL-2.0-only */
/* The row of an event: its specification, labels and totals. */
#ifndef TELEMETRY_ROWS_BPF_H
#define TELEMETRY_ROWS_BPF_H

#include "bits.bpf.h"
#include "telemetry_terms.bpf.h"

/* In the name of an event: whatever comes before the next atom. */
#define ANY_ATOM 0xffffffffU

/* Label *number* of the row, from its term. */
static __noinline int set_label(struct scratch *own, __u32 number, __u64 term)
{
	__u64 size = 0, from, most;

	if (!own || number >= TELEMETRY_LABELS)
		return 0;
	if (!term)
		return 0; /* LABEL_MISSING */
	if (is_atom(term) || (term & 0xf) == 0xf || term == TERM_NIL) {
		own->row.label[number] = term;
		return 0;
	}
	own->row.label[number] = LABEL_REFUSED;
	from = 0;
	if (is_boxed(term))
		from =
		    settings.bits ? bytes_of_27(own, term, &size) : bytes_of_25(own, term, &size);
	if (!from) {
		own->label = 1;
		return 0;
	}
	most = size;
	barrier_var(most); /* else the compiler compares one copy and uses the other */
	if (most > TELEMETRY_TEXT_BYTES)
		most = TELEMETRY_TEXT_BYTES;
	if (most && read(&own->row.text[number * TELEMETRY_TEXT_BYTES], most, (const void *)from)) {
		own->unreadable = 1;
		return 0;
	}
	own->row.label[number] = size << 4 | LABEL_TEXT;
	return 0;
}

/* Follow the path to label *number*. */
static __noinline __u64 label_of(struct scratch *own, const struct telemetry_spec *spec,
				 __u32 number, __u64 metadata)
{
	__u64 term = metadata, step;

	if (!own || !spec || number >= TELEMETRY_LABELS)
		return 0;
	for (__u32 i = 0; i < TELEMETRY_STEPS; i++) {
		step = spec->path[number * TELEMETRY_STEPS + i];
		if (!step || !term)
			break;
		if (step == TELEMETRY_STEP_CLASS)
			term = class_of(own, spec, term);
		else if ((step & 0xf) == TELEMETRY_STEP_ELEMENT)
			term = element_of(own, term, step >> 4);
		else if (!i && step == own->first_step)
			term = own->first_value;
		else
			term = value_of(own, term, step);
		if (!i) {
			own->first_step = step;
			own->first_value = term;
		}
	}
	return term;
}

/* Read the atoms of the name; false if it is no list of as many as fit. */
static __noinline bool set_name(struct scratch *own, __u64 list)
{
	__u64 cell[2] = {};

	if (!own)
		return false;
	__builtin_memset(&own->name, 0, sizeof(own->name));
	for (__u32 i = 0; i < TELEMETRY_ATOMS; i++) {
		if (list == TERM_NIL)
			return i > 0;
		if (!is_list(list) || read(cell, sizeof(cell), untag(list)) || !is_atom(cell[0]))
			return false;
		own->name.atoms[i] = cell[0] >> 6;
		list = cell[1];
	}
	return list == TERM_NIL;
}

/* The specification for the name: its own, one for its last atom, or that of all others. */
static __always_inline struct telemetry_spec *find_spec(struct scratch *own, __u64 metadata)
{
	struct telemetry_spec *spec = bpf_map_lookup_elem(&specs, &own->name);
	struct telemetry_event key = {};

	if (spec)
		return spec;
	key.atoms[0] = ANY_ATOM;
	for (__u32 i = 1; i < TELEMETRY_ATOMS; i++)
		if (own->name.atoms[i])
			key.atoms[1] = own->name.atoms[i];
	spec = key.atoms[1] ? bpf_map_lookup_elem(&specs, &key) : NULL;
	if (spec && value_of(own, metadata, spec->guard_key) == spec->guard_value)
		return spec;
	__builtin_memset(&key, 0, sizeof(key));
	return bpf_map_lookup_elem(&specs, &key);
}

/* The row's totals; if there is no room for it those of the row "other". */
static __always_inline struct telemetry_totals *totals_of(struct scratch *own)
{
	struct telemetry_totals *totals = bpf_map_lookup_elem(&rows, &own->row);
	__u32 first = 0;
	struct zeroes *zero;

	if (totals)
		return totals;
	zero = bpf_map_lookup_elem(&zeroes, &first);
	if (!zero)
		return NULL;
	bpf_map_update_elem(&rows, &own->row, &zero->totals, BPF_NOEXIST);
	totals = bpf_map_lookup_elem(&rows, &own->row);
	if (totals)
		return totals;
	count(TELEMETRY_OVERFLOW);
	__builtin_memset(own->row.text, 0, sizeof(own->row.text));
	for (__u32 i = 0; i < TELEMETRY_LABELS; i++)
		own->row.label[i] = LABEL_OTHER;
	return bpf_map_lookup_elem(&rows, &own->row);
}

/* The slot of a histogram with four slots for each power of two. */
static __always_inline __u32 slot_of(__u64 value)
{
	__u32 power = log2_slot(value), quarter;

	quarter = (power >= 2 ? value >> (power - 2) : value << (2 - power)) & 3;
	power = power * 4 + quarter;
	return power < TELEMETRY_SLOTS ? power : TELEMETRY_SLOTS - 1;
}

static __always_inline void add_measure(struct scratch *own, struct telemetry_totals *totals,
					__u32 number, __u64 term)
{
	__s64 value = (__s64)term >> 4;

	if (!term)
		return; /* there is none */
	if ((term & 0xf) != 0xf) {
		own->measure = 1;
		return;
	}
	__sync_fetch_and_add(&totals->measured[number], 1);
	__sync_fetch_and_add(&totals->sum[number], value);
	if (!number)
		__sync_fetch_and_add(&totals->slots[slot_of(value < 0 ? 0 : value)], 1);
}

#endif
