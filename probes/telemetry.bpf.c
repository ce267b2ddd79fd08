/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * telemetry: the events of Elixir's libraries, which all go through telemetry:execute/3.
 *
 * Hooks:  ets_lookup_2 (telemetry 0.4 to 1.3) or persistent_term_get_1 and _2 (1.4), by which
 *         telemetry:execute/3 looks its handlers up; or a breakpoint on that function
 * Counts: rows: events by specification and labels, with the sums of their measurements;
 *         works: what each process works on
 * Emits:  on request a telemetry_span for each event with a specification, and for each that
 *         begins what such an event ends; or for each event at all
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
#include "build.h"
#include "events.generated.h"
#include "telemetry_rows.bpf.h"

/* Of settings.spans: a record for each event. */
#define SPANS_OF_ALL 2

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
	struct zeroes *zero;
	__u32 first = 0;

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
	zero = bpf_map_lookup_elem(&zeroes, &first);
	if (zero)
		bpf_map_update_elem(&work_samples, &number, &zero->samples, BPF_NOEXIST);
	return number;
}

/* What the process works on; NULL if there is none, and *make* is false or there is no room. */
static __always_inline struct work *works_of(struct scratch *own, bool make)
{
	struct work *work;
	struct zeroes *zero;
	__u32 first = 0;

	own->pid = 0;
	if (read(&own->pid, sizeof(own->pid), (const void *)own->process)) {
		own->unreadable = 1;
		return NULL;
	}
	work = bpf_map_lookup_elem(&works, &own->pid);
	if (work || !make)
		return work;
	zero = bpf_map_lookup_elem(&zeroes, &first);
	if (!zero)
		return NULL;
	bpf_map_update_elem(&works, &own->pid, &zero->work, BPF_NOEXIST);
	return bpf_map_lookup_elem(&works, &own->pid);
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
		bpf_map_delete_elem(&works, &own->pid);
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
