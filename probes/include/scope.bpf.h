/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What every probe stands on: the settings, the maps that all share, the target filter, the ring.
 *
 * Each probe is an object of its own; the maps named here are made once and handed to the others.
 * A program may be preempted by another on the same CPU, so counts are added atomically.
 */
#ifndef SCOPE_BPF_H
#define SCOPE_BPF_H

#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "build.h"
#include "events.generated.h"

#define UNKNOWN (~0ULL)

const volatile struct settings settings; /* the only thing in .rodata, so it lies at offset 0 */
struct target target;			 /* the only thing in .bss, for the same reason */

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries,
	       4096); /* set before load, a power of two; one page where nothing streams */
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, KINDS *CLASSES);
	__type(key, __u32);
	__type(value, struct tally);
} tallies SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, KINDS *CLASSES);
	__type(key, __u32);
	__type(value, struct durations);
} durations SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PROGRAMS);
	__type(key, __u32);
	__type(value, __u64);
} hits SEC(".maps");

/* 1 while events count: all hooks begin and end at one moment, however long attaching takes. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} gate SEC(".maps");

/*
 * What the governor lets each kind spend. Zero means no limit, as in a trace that a person watches.
 * The trap of a hit costs far more than this; a gate that closed keeps the counts right until the
 * daemon, which is woken, has taken the hooks out.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, KINDS);
	__type(key, __u32);
	__type(value, struct allowance);
} allowances SEC(".maps");

/* Nothing where the VM's counters could not be found. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, KINDS);
	__type(key, __u32);
	__type(value, struct measure);
} measures SEC(".maps");

enum edge_of_window { EDGE_BEGIN, EDGE_END, EDGES };

/*
 * The edges of each kind's last window, at kind * EDGES + edge. A hash, because to add what is not
 * there yet is atomic on every kernel: of hits on several CPUs one makes the edge, and makes it
 * whole. Emptied by the daemon before the next window.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, KINDS *EDGES);
	__type(key, __u32);
	__type(value, struct edge);
} edges SEC(".maps");

/* Hits that a CPU spends at once: few enough for a window of thousands, rare enough to share. */
#define SPENT_AT_ONCE 64

/*
 * Words of a measure: as many as normal schedulers that OTP allows. Summed up in parts of parts,
 * each by a function of its own: the verifier walks each loop once, but it does so in each program.
 */
#define MAX_WORDS 1024
#define GROUP	  64
#define PART	  8

/* Things under way belong to a thread: OTP allows 3 x 1024 schedulers and as many other threads. */
#define MAX_THREADS 8192

/* The words of a measure. */
struct words {
	__u64 address;
	__u32 stride;
	__u32 words;
};

/* Those of a kind's measure or of its second one; none where there are none. */
static __always_inline struct words words_of(__u32 kind, __u32 second)
{
	struct measure *measure = bpf_map_lookup_elem(&measures, &kind);
	struct words none = {};

	if (!measure)
		return none; /* cannot be: the key is within the map */
	if (second) {
		struct words found = {measure->second_address, measure->second_stride,
				      measure->second_words};
		return found;
	}
	struct words found = {measure->address, measure->stride, measure->words};
	return found;
}

/* The sum of some words of a measure, from number *first*; UNKNOWN if one cannot be read. */
__noinline __u64 sum_part(__u32 kind, __u32 second, __u32 first)
{
	struct words words = words_of(kind, second);
	__u64 word, sum = 0;

#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < PART; i++) {
		__u64 place = words.address + (__u64)(first + i) * words.stride;

		if (first + i >= words.words)
			break;
		if (bpf_probe_read_user(&word, sizeof(word), (const void *)place))
			return UNKNOWN;
		sum += word;
	}
	return sum;
}

/* The same of a group of parts. */
__noinline __u64 sum_group(__u32 kind, __u32 second, __u32 first)
{
	__u64 sum = 0;

#pragma clang loop unroll(disable)
	for (__u32 part = 0; part < GROUP; part += PART) {
		__u64 more = sum_part(kind, second, first + part);

		if (more == UNKNOWN)
			return UNKNOWN;
		sum += more;
	}
	return sum;
}

/* The same of all; what could not be read is added to *refused. */
static __always_inline __u64 sum_all(__u32 kind, __u32 second, __u64 *refused)
{
	__u32 words = words_of(kind, second).words;
	__u64 sum = 0;

	for (__u32 first = 0; first < MAX_WORDS && first < words; first += GROUP) {
		__u64 more = sum_group(kind, second, first);

		if (more == UNKNOWN)
			(*refused)++;
		sum += more;
	}
	return sum;
}

/* Note what a kind's measures are now, unless that was done. */
__noinline int note_edge(__u32 kind, __u32 which)
{
	struct edge edge = {.time_ns = bpf_ktime_get_ns()};
	__u32 key = kind * EDGES + which;

	if (bpf_map_lookup_elem(&edges, &key))
		return 0;
	edge.measure = sum_all(kind, 0, &edge.refused);
	edge.second = sum_all(kind, 1, &edge.refused);
	bpf_map_update_elem(&edges, &key, &edge, BPF_NOEXIST);
	return 0;
}

/*
 * Close the gate of a kind whose allowance is spent, and wake who reads the ring. A discarded
 * record is seen by nobody.
 */
static __noinline int trip(struct allowance *allowance, __u32 kind)
{
	void *room;

	if (!allowance)
		return 0;
	allowance->tripped_ns = bpf_ktime_get_ns();
	note_edge(kind, EDGE_END);
	room = bpf_ringbuf_reserve(&ring, RECORD_BYTES, 0);
	if (room)
		bpf_ringbuf_discard(room, BPF_RB_FORCE_WAKEUP);
	return 0;
}

/*
 * Whether a hit in a window counts. The first one and the first one after the end note the measure,
 * so that what was counted and what the VM did meanwhile belong together, however long the daemon
 * waits for a CPU. The first counts, the last does not. Who is preempted here does not keep a hit
 * on another CPU from noting the edge in time.
 */
static __always_inline bool within(struct allowance *allowance, __u32 kind)
{
	__u64 now = bpf_ktime_get_ns();

	if (now >= allowance->until_ns) {
		note_edge(kind, EDGE_END);
		allowance->tripped_ns = now;
		return false;
	}
	if (!allowance->begun) {
		note_edge(kind, EDGE_BEGIN);
		allowance->begun = 1;
	}
	return true;
}

/* Spend one hit of a kind's allowance, of a program that was hit this often before on this CPU. */
static __always_inline bool allowed(enum kind kind, __u64 before)
{
	__u32 key = kind;
	struct allowance *allowance = bpf_map_lookup_elem(&allowances, &key);

	if (!allowance)
		return false;
	if (!allowance->limited)
		return true;
	if (allowance->tripped_ns) {
		/* Who was to note the edge may have lost its CPU on the way. */
		if (allowance->until_ns)
			note_edge(key, EDGE_END);
		return false;
	}
	if (allowance->until_ns && !within(allowance, key))
		return false;
	if ((before + 1) % SPENT_AT_ONCE)
		return true;
	__sync_fetch_and_add(&allowance->left, -SPENT_AT_ONCE);
	if (allowance->left > 0)
		return true;
	trip(allowance, key);
	return false;
}

/* Whether something began before the gate of its kind was opened: then its end may be another's. */
static __always_inline bool stale(enum kind kind, __u64 since_ns)
{
	__u32 key = kind;
	struct allowance *allowance = bpf_map_lookup_elem(&allowances, &key);

	return allowance && since_ns < allowance->since_ns;
}

/* A gate that has been open for so long is not that of a window. */
#define LASTING 1000000000ULL

/* Whether something of *since_ns* and now are within one time in which a kind is always counted. */
static __always_inline bool lasting(enum kind kind, __u64 since_ns, __u64 now)
{
	__u32 key = kind;
	struct allowance *allowance = bpf_map_lookup_elem(&allowances, &key);

	if (!allowance || !allowance->limited)
		return true; /* a trace: open until it ends */
	return !allowance->tripped_ns && since_ns >= allowance->since_ns &&
	       now - allowance->since_ns > LASTING;
}

/* Whether the target is what runs; then *tid is its thread. */
static __always_inline bool is_target(__u32 *tid)
{
	if (settings.pidns_ino) {
		struct bpf_pidns_info pids = {};

		if (bpf_get_ns_current_pid_tgid(settings.pidns_dev, settings.pidns_ino, &pids,
						sizeof(pids)))
			return false; /* a thread of another pid namespace */
		*tid = pids.pid;
		return pids.tgid == target.tgid;
	}
	*tid = (__u32)bpf_get_current_pid_tgid();
	return bpf_get_current_pid_tgid() >> 32 == target.tgid;
}

/* Whether an event of the target counts; then *tid is its thread. Every hit on the target costs. */
static __always_inline bool enter(enum program program, __u32 *tid)
{
	__u32 key = program, first = 0;
	__u64 *hit, *open, before;

	if (!is_target(tid))
		return false;
	hit = bpf_map_lookup_elem(&hits, &key);
	if (!hit)
		return false; /* cannot be: the key is within the map */
	before = *hit;
	__sync_fetch_and_add(hit, 1);
	open = bpf_map_lookup_elem(&gate, &first);
	return open && *open && allowed(kind_of(program), before);
}

static __always_inline struct tally *tally_of(enum kind kind, __u8 class)
{
	__u32 key = kind * CLASSES + class;

	return bpf_map_lookup_elem(&tallies, &key);
}

static __always_inline void count(enum kind kind, __u8 class)
{
	struct tally *tally = tally_of(kind, class);

	if (tally)
		__sync_fetch_and_add(&tally->count, 1);
}

/* A read that failed, or a start that found no room: counted, never a wrong number. */
static __always_inline void refuse(enum kind kind)
{
	struct tally *tally = tally_of(kind, 0);

	if (tally)
		__sync_fetch_and_add(&tally->refused, 1);
}

/* Eight bytes of the VM at base + offset; 0 where they cannot be read or the offset is unknown. */
static __always_inline __u64 vm_word(enum kind kind, __u64 base, __u32 offset)
{
	__u64 word = 0;

	if (bpf_probe_read_user(&word, sizeof(word), (const void *)(base + offset))) {
		refuse(kind);
		return 0;
	}
	return word;
}

static __always_inline __u64 vm_field(enum kind kind, __u64 base, __u32 offset)
{
	return offset ? vm_word(kind, base, offset) : 0;
}

/* The term of a Process or a Port: its ErtsPTabElementCommon starts with it. 0 for no process. */
static __always_inline __u64 id_of(enum kind kind, __u64 element)
{
	return element ? vm_word(kind, element, 0) : 0;
}

static __always_inline __u32 log2_slot(__u64 value)
{
	__u32 slot = 0;

	/* Five steps instead of a loop of forty. */
	if (value >> 32) {
		value >>= 32;
		slot += 32;
	}
	if (value >> 16) {
		value >>= 16;
		slot += 16;
	}
	if (value >> 8) {
		value >>= 8;
		slot += 8;
	}
	if (value >> 4) {
		value >>= 4;
		slot += 4;
	}
	if (value >> 2) {
		value >>= 2;
		slot += 2;
	}
	if (value >> 1)
		slot += 1;
	return slot < 40 ? slot : 39;
}

static __always_inline void observe(enum kind kind, __u8 class, __u64 duration_ns)
{
	__u32 key = kind * CLASSES + class;
	struct durations *seen = bpf_map_lookup_elem(&durations, &key);

	if (!seen)
		return;
	__sync_fetch_and_add(&seen->total_ns, duration_ns);
	__sync_fetch_and_add(&seen->slots[log2_slot(duration_ns)], 1);
}

/*
 * Room for a record with its header filled in and its body zero; NULL where nobody wants the record
 * or the ring is full, which is counted. What is not NULL must be given to emit().
 */
static __always_inline void *record(enum kind kind, __u8 class, __u8 flags, __u32 tid,
				    __u64 process)
{
	struct {
		struct header header;
		__u64 body[4];
	} * room;
	struct tally *tally;

	if (!(settings.streamed & (1ULL << kind)))
		return NULL;
	room = bpf_ringbuf_reserve(&ring, sizeof(*room), 0);
	if (!room) {
		tally = tally_of(kind, class);
		if (tally)
			__sync_fetch_and_add(&tally->lost, 1);
		return NULL;
	}
	room->header.time_ns = bpf_ktime_get_ns();
	room->header.kind = kind;
	room->header.class = class;
	room->header.flags = flags;
	room->header.tid = tid;
	room->header.process = process;
	room->body[0] = 0;
	room->body[1] = 0;
	room->body[2] = 0;
	room->body[3] = 0;
	return room;
}

/* The reader looks at the ring by the clock, so that no event pays for waking it. */
static __always_inline void emit(void *room)
{
	bpf_ringbuf_submit(room, BPF_RB_NO_WAKEUP);
}

#endif
