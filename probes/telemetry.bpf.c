/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * telemetry: the events of Elixir's libraries, which all go through telemetry:execute/3.
 *
 * Hooks:  ets_lookup_2 (telemetry 0.4 to 1.3) or persistent_term_get_1 and _2 (1.4), by which
 *         telemetry:execute/3 looks its handlers up; or a breakpoint on that function
 * Counts: rows: events by specification and labels, with the sums of their measurements; works:
 * what each process works on Emits:  on request a telemetry_span for each event with a
 * specification, and for each that begins what such an event ends; or for each event at all
 *
 * The JIT stores the top of the Erlang stack in the Process before it calls such a function. There
 * lies the frame of execute/3, in which the compiler keeps the three arguments side by side, the
 * name first or last. A user-space thread may be preempted within a program, so counts are added
 * atomically, and what is worked on belongs to the thread.
 */
#include <linux/bpf.h>
#include <linux/bpf_perf_event.h>
#include <linux/ptrace.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "bits.bpf.h"
#include "build.h"
#include "events.generated.h"
#include "terms.bpf.h"
#include "work.bpf.h"

/* Words of the stack that are searched; of a shorter stack fewer. */
#define STACK_WORDS	  24
#define SHORT_STACK_WORDS 12
/* Keys of a map that is kept as two arrays (MAP_SMALL_MAP_LIMIT, OTP-25.2.3 erl_map.h). */
#define FLATMAP_KEYS 32
/* In the name of an event: whatever comes before the next atom. */
#define ANY_ATOM 0xffffffffU
/* Schedulers; OTP allows 1024 that run Erlang code. */
#define MAX_SCHEDULERS 1024
/* Of settings.spans: a record for each event. */
#define SPANS_OF_ALL 2

/* Subtags of binaries (OTP-25.2.3 and OTP-27.3.4.1 erl_term.h). */
#define HEAP_BINARY 0x24
#define REFC_BINARY 0x20
#define SUB_BINARY  0x28
#define HEAP_BITS   0x20
#define SUB_BITS    0x24

/* What a thread is working on. */
struct scratch {
	__u64 words[STACK_WORDS];
	__u64 keys[FLATMAP_KEYS];
	struct telemetry_event name;
	struct telemetry_row row;
	/* The Process, and the value of the gate. */
	__u64 process, gate;
	struct work_process at_work;
	/* The event has met a map of more keys, and so on; each counts once. */
	__u32 large_map, measure, label, unreadable;
	/* The map whose keys are there, and how many there are. */
	__u64 map, size;
	/* The last step from the metadata, which labels often share, and where it led. */
	__u64 first_step, first_value;
};

const volatile struct telemetry_settings settings; /* the only thing in .rodata */

/* Not 0 while events count, and another value each time. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} gate SEC(".maps");

/* By enum telemetry_count. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TELEMETRY_COUNTS);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

/* User space adds what is known of events, and changes it while atoms come. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct telemetry_event);
	__type(value, struct telemetry_spec);
} specs SEC(".maps");

/* User space adds the row "other" of each specification, and sets the size. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct telemetry_row);
	__type(value, struct telemetry_totals);
} rows SEC(".maps");

/* What is worked on, by a number that is made of it; user space sets the size, 1 for no work. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, struct telemetry_row);
} work_rows SEC(".maps");

/* User space sets the size; a page where no spans are wanted. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} spans SEC(".maps");

/* By thread; an entry stays until the end. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SCHEDULERS);
	__type(key, __u32);
	__type(value, struct scratch);
} scratches SEC(".maps");

/* Zero for good: new entries of maps are copies, because they are too large for the stack. */
struct zeroes {
	struct scratch scratch;
	struct work work;
	struct telemetry_totals totals;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct zeroes);
} zeroes SEC(".maps");

static __always_inline void count(enum telemetry_count which)
{
	__u32 key = which;
	__u64 *value = bpf_map_lookup_elem(&counts, &key);

	if (value)
		__sync_fetch_and_add(value, 1);
}

/* Whether the target runs here; counts the hit, which costs as much when nothing else counts. */
static __always_inline bool is_hit(void)
{
	if (bpf_get_current_pid_tgid() >> 32 != settings.tgid)
		return false;
	count(TELEMETRY_HITS);
	return true;
}

/* The value of the gate at a hit that is an event: 0 if it does not count. */
static __always_inline __u64 open_gate(void)
{
	__u32 first = 0;
	__u64 *open = bpf_map_lookup_elem(&gate, &first);

	count(TELEMETRY_OWN);
	return open ? *open : 0;
}

static __always_inline long read(void *to, __u32 size, const void *from)
{
	return bpf_probe_read_user(to, size, from);
}

/* What this thread works on, empty; NULL if there is no room for it. */
static __always_inline struct scratch *own_scratch(void)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid(), first = 0;
	struct scratch *own = bpf_map_lookup_elem(&scratches, &tid);
	struct zeroes *zero;

	if (!own) {
		zero = bpf_map_lookup_elem(&zeroes, &first);
		if (!zero)
			return NULL;
		bpf_map_update_elem(&scratches, &tid, &zero->scratch, BPF_NOEXIST);
		own = bpf_map_lookup_elem(&scratches, &tid);
	}
	return own;
}

/* Read the keys of a map, unless they are there from the label before; false if it has none. */
static __noinline bool load_map(struct scratch *own, __u64 map)
{
	__u64 header[3] = {};
	__u32 bytes;

	if (!own)
		return false;
	if (own->map == map)
		return own->size > 0;
	own->map = map;
	own->size = 0;
	if (read(header, sizeof(header), untag(map))) {
		own->unreadable = 1;
		return false;
	}
	if (header_subtag(header[0]) != settings.map_subtag)
		return false;
	if (!is_flatmap_header(header[0]) || header[1] > FLATMAP_KEYS) {
		own->large_map = 1;
		return false;
	}
	bytes = (header[1] & 63) * sizeof(__u64);
	if (!bytes || bytes > sizeof(own->keys))
		return false;
	if (read(own->keys, bytes, untag(header[2]) + sizeof(__u64))) {
		own->unreadable = 1;
		return false;
	}
	own->size = header[1];
	return true;
}

/* The value of an atom in a map; 0 if there is none. */
static __noinline __u64 value_of(struct scratch *own, __u64 map, __u64 key)
{
	__u64 value = 0;

	if (!own || !key || !is_boxed(map) || !load_map(own, map))
		return 0;
	for (__u32 i = 0; i < FLATMAP_KEYS; i++) {
		if (i >= own->size)
			break;
		if (own->keys[i] != key)
			continue;
		if (read(&value, sizeof(value), untag(map) + (3 + i) * sizeof(__u64)))
			own->unreadable = 1;
		return value;
	}
	return 0;
}

/* Element *number* of a tuple, from 0; 0 if there is none. */
static __noinline __u64 element_of(struct scratch *own, __u64 tuple, __u64 number)
{
	__u64 header = 0, value = 0;

	if (!own || !is_boxed(tuple))
		return 0;
	if (read(&header, sizeof(header), untag(tuple))) {
		own->unreadable = 1;
		return 0;
	}
	if (!is_tuple_header(header) || number >= tuple_arity(header))
		return 0;
	if (read(&value, sizeof(value), untag(tuple) + (1 + number) * sizeof(__u64)))
		own->unreadable = 1;
	return value;
}

/*
 * What names an exception: the struct of a map, the first element of a tuple, else the term. Plug
 * puts an exception of a controller into another one (Plug.Conn.WrapperError).
 */
static __noinline __u64 class_of(struct scratch *own, const struct telemetry_spec *spec, __u64 term)
{
	__u64 name;

	if (!own || !spec || !is_boxed(term))
		return term;
	name = value_of(own, term, spec->struct_key);
	if (name && name == spec->wrapper) {
		term = value_of(own, term, spec->wrapped);
		if (!is_boxed(term))
			return term;
		name = value_of(own, term, spec->struct_key);
	}
	if (name)
		return name;
	name = element_of(own, term, 0);
	return name ? name : term;
}

/* Where the bytes of a binary lie and how many there are; 0 if it is none of whole bytes. */
static __noinline __u64 bytes_of_25(struct scratch *own, __u64 term, __u64 *size)
{
	__u64 binary[5] = {}, under[5] = {};
	const void *at = untag(term);

	if (!own || !size)
		return 0;
	/* A heap binary may be shorter than what is read, so it may end at the end of memory. */
	if (read(binary, 16, at)) {
		own->unreadable = 1;
		return 0;
	}
	*size = binary[1];
	if (header_subtag(binary[0]) == HEAP_BINARY)
		return (__u64)at + 16;
	if (header_subtag(binary[0]) != REFC_BINARY && header_subtag(binary[0]) != SUB_BINARY)
		return 0;
	if (read(binary, sizeof(binary), at)) {
		own->unreadable = 1;
		return 0;
	}
	if (header_subtag(binary[0]) == REFC_BINARY)
		return binary[4];
	if (binary[3] & 0xffff)
		return 0; /* it begins or ends within a byte: bitsize, bitoffs */
	at = untag(binary[4]);
	if (read(under, 16, at)) {
		own->unreadable = 1;
		return 0;
	}
	if (header_subtag(under[0]) == HEAP_BINARY)
		return (__u64)at + 16 + binary[2];
	if (header_subtag(under[0]) != REFC_BINARY)
		return 0;
	if (read(under, sizeof(under), at)) {
		own->unreadable = 1;
		return 0;
	}
	return under[4] + binary[2];
}

static __noinline __u64 bytes_of_27(struct scratch *own, __u64 term, __u64 *size)
{
	__u64 bits[4] = {};
	const void *at = untag(term);

	if (!own || !size)
		return 0;
	if (read(bits, 16, at)) {
		own->unreadable = 1;
		return 0;
	}
	*size = bits[1] >> 3;
	if (header_subtag(bits[0]) == HEAP_BITS)
		return bits[1] & 7 ? 0 : (__u64)at + 16;
	if (header_subtag(bits[0]) != SUB_BITS)
		return 0;
	if (read(bits, sizeof(bits), at)) {
		own->unreadable = 1;
		return 0;
	}
	if ((bits[2] | bits[3]) & 7)
		return 0; /* it begins or ends within a byte */
	*size = (bits[3] - bits[2]) >> 3;
	return (bits[1] & ~3ULL) + (bits[2] >> 3);
}

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

/* *starts* is that of the specification, *duration* is in ns. */
static __noinline int submit_span(struct scratch *own, __u32 starts, __s64 duration)
{
	struct telemetry_span *span;

	if (!own || !settings.spans)
		return 0;
	span = bpf_ringbuf_reserve(&spans, sizeof(*span), 0);
	if (!span) {
		count(TELEMETRY_LOST);
		return 0;
	}
	span->time_ns = bpf_ktime_get_ns();
	span->pid = 0;
	read(&span->pid, sizeof(span->pid), (const void *)own->process);
	span->duration = duration;
	span->spec = own->row.spec;
	span->starts = starts;
	__builtin_memcpy(span->label, own->row.label, sizeof(span->label));
	__builtin_memcpy(span->text, own->row.text, sizeof(span->text));
	bpf_ringbuf_submit(span, BPF_RB_NO_WAKEUP);
	return 0;
}

/* A number for the row, which user space can look up; FNV-1a of its words, never WORK_*. */
static __noinline __u64 number_row(struct scratch *own)
{
	__u64 number = 0xcbf29ce484222325ULL;
	const __u64 *words;

	if (!own)
		return WORK_OTHER;
	words = (const __u64 *)&own->row;
	for (__u32 i = 0; i < sizeof(own->row) / sizeof(__u64); i++)
		number = (number ^ words[i]) * 0x100000001b3ULL;
	number |= 1ULL << 63;
	if (bpf_map_lookup_elem(&work_rows, &number))
		return number;
	/* Only 0 and that it is there already (-EEXIST) are no lack of room. */
	if (bpf_map_update_elem(&work_rows, &number, &own->row, BPF_NOEXIST) &&
	    !bpf_map_lookup_elem(&work_rows, &number))
		return WORK_OTHER;
	return number;
}

/* What the process works on; NULL if there is none, and *make* is false or there is no room. */
static __always_inline struct work *works_of(struct scratch *own, bool make)
{
	struct work *work;
	struct zeroes *zero;
	__u32 first = 0;

	own->at_work.tgid = settings.tgid;
	own->at_work.pid = 0;
	if (read(&own->at_work.pid, sizeof(own->at_work.pid), (const void *)own->process)) {
		own->unreadable = 1;
		return NULL;
	}
	work = bpf_map_lookup_elem(&works, &own->at_work);
	if (work || !make)
		return work;
	zero = bpf_map_lookup_elem(&zeroes, &first);
	if (!zero)
		return NULL;
	bpf_map_update_elem(&works, &own->at_work, &zero->work, BPF_NOEXIST);
	return bpf_map_lookup_elem(&works, &own->at_work);
}

/* The process begins the work *event*, whose labels are in the row. */
static __noinline int begin_work(struct scratch *own, __u32 event)
{
	struct work *work = own ? works_of(own, true) : NULL;
	__u32 at;

	if (!work)
		return 0;
	if (work->gate != own->gate) {
		work->gate = own->gate;
		work->depth = 0;
	}
	if (work->depth >= WORK_DEPTH) { /* the outermost is forgotten: its end may never come */
		for (__u32 i = 1; i < WORK_DEPTH; i++) {
			work->event[i - 1] = work->event[i];
			work->row[i - 1] = work->row[i];
		}
		work->depth = WORK_DEPTH - 1;
	}
	at = work->depth & (WORK_DEPTH - 1);
	work->event[at] = event;
	work->row[at] = number_row(own);
	work->depth++;
	return 0;
}

/* The work *event* of the process ends, and whatever began within it. */
static __noinline int end_work(struct scratch *own, __u32 event)
{
	struct work *work = own ? works_of(own, false) : NULL;
	__u32 depth = 0;

	if (!work)
		return 0;
	if (work->gate == own->gate) {
		depth = work->depth;
		for (__u32 i = 0; i < WORK_DEPTH; i++)
			if (i < work->depth && work->event[i] == event)
				depth = i;
	}
	if (depth)
		work->depth = depth;
	else
		bpf_map_delete_elem(&works, &own->at_work);
	return 0;
}

static __noinline int set_labels(struct scratch *own, const struct telemetry_spec *spec,
				 __u64 metadata)
{
	if (!own || !spec)
		return 0;
	for (__u32 i = 0; i < TELEMETRY_LABELS; i++) {
		if (i >= spec->labels)
			break;
		set_label(own, i, label_of(own, spec, i, metadata));
	}
	return 0;
}

static __noinline int count_event(struct scratch *own, __u64 name, __u64 measurements,
				  __u64 metadata)
{
	struct telemetry_totals *totals;
	struct telemetry_spec *spec;
	__u64 term, first = 0;

	if (!own)
		return 0;
	if (!set_name(own, name)) {
		count(TELEMETRY_NAME);
		return 0;
	}
	own->large_map = own->measure = own->label = own->unreadable = 0;
	own->map = own->first_step = own->first_value = 0;
	__builtin_memset(&own->row, 0, sizeof(own->row));
	spec = find_spec(own, metadata);
	if (!spec)
		return 0; /* events without a specification are not wanted */
	own->row.spec = spec->number;
	if (spec->starts) {
		count(TELEMETRY_STARTS);
		if (spec->starts == 1)
			submit_span(own, 1, 0);
		if (spec->work && spec->starts == 1) {
			set_labels(own, spec, metadata);
			begin_work(own, spec->work);
		} else if (spec->work) {
			end_work(own, spec->work);
		}
		return 0;
	}
	if (spec->work)
		end_work(own, spec->work);
	if (!spec->number)
		__builtin_memcpy(own->row.text, &own->name, sizeof(own->name));
	set_labels(own, spec, metadata);
	totals = totals_of(own);
	if (!totals)
		return 0;
	count(TELEMETRY_EVENTS);
	__sync_fetch_and_add(&totals->count, 1);
	for (__u32 i = 0; i < TELEMETRY_MEASURES; i++) {
		if (i >= spec->measures)
			break;
		term = value_of(own, measurements, spec->measure[i]);
		add_measure(own, totals, i, term);
		if (!i)
			first = term;
	}
	if ((first & 0xf) == 0xf && (own->row.spec || settings.spans == SPANS_OF_ALL))
		submit_span(own, 0, (__s64)first >> 4);
	else if (own->row.spec || settings.spans == SPANS_OF_ALL)
		submit_span(own, 2, 0);
	if (own->large_map)
		count(TELEMETRY_LARGE_MAP);
	if (own->measure)
		count(TELEMETRY_MEASURE);
	if (own->label)
		count(TELEMETRY_LABEL);
	if (own->unreadable)
		count(TELEMETRY_UNREADABLE);
	return 0;
}

static __noinline bool is_map(__u64 term)
{
	__u64 header = 0;

	return is_boxed(term) && !read(&header, sizeof(header), untag(term)) &&
	       header_subtag(header) == settings.map_subtag;
}

static __noinline bool starts_with_atom(__u64 list)
{
	__u64 head = 0;

	return is_list(list) && !read(&head, sizeof(head), untag(list)) && is_atom(head);
}

/* The first words of the stack; of a shorter one zeroes behind it. */
static __always_inline long read_stack(struct scratch *own, __u64 stop)
{
	if (!read(own->words, sizeof(own->words), (const void *)stop))
		return 0;
	__builtin_memset(own->words, 0, sizeof(own->words));
	return read(own->words, SHORT_STACK_WORDS * sizeof(__u64), (const void *)stop);
}

/*
 * Find the frame of execute/3 and count its event. *name* is the event's name; 0 if it is not
 * known, then it is the first list of atoms beside two maps.
 */
static __always_inline int search_stack(__u64 process, __u64 name, __u64 gate)
{
	struct scratch *own = own_scratch();
	__u64 stop = 0, word;

	if (!own) {
		count(TELEMETRY_UNREADABLE);
		return 0;
	}
	if (read(&stop, sizeof(stop), (const void *)(process + settings.process_stop)) ||
	    read_stack(own, stop)) {
		count(TELEMETRY_UNREADABLE);
		return 0;
	}
	own->process = process;
	own->gate = gate;
	for (__u32 i = 2; i < STACK_WORDS - 2; i++) {
		word = own->words[i];
		if (name ? word != name : !starts_with_atom(word))
			continue;
		if (is_map(own->words[i + 1]) && is_map(own->words[i + 2]))
			return count_event(own, word, own->words[i + 1], own->words[i + 2]);
		if (is_map(own->words[i - 1]) && is_map(own->words[i - 2]))
			return count_event(own, word, own->words[i - 1], own->words[i - 2]);
	}
	count(TELEMETRY_NO_FRAME);
	return 0;
}

/*
 * ets_lookup_2(Process *, Eterm *arguments, ...): the table and the name. Most hits are other
 * lookups, so nothing comes before that comparison.
 */
SEC("uprobe")
int BPF_KPROBE(telemetry_ets, __u64 process, __u64 arguments)
{
	__u64 given[2] = {}, open;

	if (read(given, sizeof(given), (const void *)arguments) || given[0] != settings.table) {
		is_hit();
		return 0;
	}
	if (!is_hit())
		return 0;
	open = open_gate();
	return open ? search_stack(process, given[1], open) : 0;
}

/* persistent_term_get_1 and _2(Process *, Eterm *arguments, ...): the key. */
SEC("uprobe")
int BPF_KPROBE(telemetry_term, __u64 process, __u64 arguments)
{
	__u64 given = 0, open;

	if (read(&given, sizeof(given), (const void *)arguments) || given != settings.term) {
		is_hit();
		return 0;
	}
	if (!is_hit())
		return 0;
	open = open_gate();
	return open ? search_stack(process, 0, open) : 0;
}

/* False if the code was unloaded, and its memory now holds another function. */
static __always_inline bool is_execute(__u64 address)
{
	__u64 mfa[3] = {};

	return !read(mfa, sizeof(mfa), (const void *)(address - sizeof(mfa))) &&
	       mfa[0] == settings.term && mfa[1] == settings.execute && (__u32)mfa[2] == 3;
}

/*
 * The first instruction of telemetry:execute/3: r13 is the Process, and rbx points to the arguments
 * (OTP-25.2.3 erts/emulator/beam/jit/x86/beam_asm.hpp, the same from 24 to 29). A number in the
 * place of the measurements is no event yet: the function calls itself with a map.
 */
SEC("perf_event")
int telemetry_execute(struct bpf_perf_event_data *ctx)
{
	__u64 arguments[3] = {}, open;
	struct scratch *own;

	if (!is_hit())
		return 0;
	open = open_gate();
	if (!open || !is_execute(ctx->regs.rip))
		return 0;
	own = own_scratch();
	if (!own || read(arguments, sizeof(arguments), (const void *)ctx->regs.rbx)) {
		count(TELEMETRY_UNREADABLE);
		return 0;
	}
	if (!is_map(arguments[1]) || !is_map(arguments[2]))
		return 0;
	own->process = ctx->regs.r13;
	own->gate = open;
	return count_event(own, arguments[0], arguments[1], arguments[2]);
}

char LICENSE[] SEC("license") = "GPL";
