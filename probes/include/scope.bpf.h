/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What all event probes share: the target filter, counting, reads of the VM's memory, and records.
 *
 * A program may be preempted by another on the same CPU, so counts are added atomically.
 */
#ifndef SCOPE_BPF_H
#define SCOPE_BPF_H

#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "bits.bpf.h"
#include "build.h"
#include "events.generated.h"
#include "maps.bpf.h"
#include "quota.bpf.h"

/* Things under way belong to a thread: OTP allows 3 x 1024 schedulers and as many other threads. */
#define MAX_THREADS 8192

/* True if the target is running on this CPU; then *tid is its thread. */
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

/*
 * True if this hit is on the target and counts; then *tid is its thread. Each hit on the target is
 * added to hits, because it costs the target time whether it counts or not.
 */
static __always_inline bool enter_program(enum program program, __u32 *tid)
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
	return open && *open && consume_quota(kind_of(program), before);
}

static __always_inline struct counters *counters_of(enum kind kind, __u8 class)
{
	__u32 key = kind * CLASSES + class;

	return bpf_map_lookup_elem(&counters, &key);
}

static __always_inline void count_event(enum kind kind, __u8 class)
{
	struct counters *counted = counters_of(kind, class);

	if (counted)
		__sync_fetch_and_add(&counted->count, 1);
}

/* A read that failed, or a map entry that could not be made: counted, so that no number is wrong
 * unnoticed. */
static __always_inline void count_failure(enum kind kind)
{
	struct counters *counted = counters_of(kind, 0);

	if (counted)
		__sync_fetch_and_add(&counted->refused, 1);
}

/* Eight bytes of the VM at base + offset; 0 if they cannot be read. */
static __always_inline __u64 vm_word(enum kind kind, __u64 base, __u32 offset)
{
	__u64 word = 0;

	if (bpf_probe_read_user(&word, sizeof(word), (const void *)(base + offset))) {
		count_failure(kind);
		return 0;
	}
	return word;
}

/* The same; 0 also if the offset is unknown. */
static __always_inline __u64 vm_field(enum kind kind, __u64 base, __u32 offset)
{
	return offset ? vm_word(kind, base, offset) : 0;
}

/* The term of a Process or a Port: its ErtsPTabElementCommon starts with it. 0 for no process. */
static __always_inline __u64 id_of(enum kind kind, __u64 element)
{
	return element ? vm_word(kind, element, 0) : 0;
}

static __always_inline void observe_duration(enum kind kind, __u8 class, __u64 duration_ns)
{
	__u32 key = kind * CLASSES + class;
	struct histogram *histogram = bpf_map_lookup_elem(&histograms, &key);

	if (!histogram)
		return;
	__sync_fetch_and_add(&histogram->total_ns, duration_ns);
	__sync_fetch_and_add(&histogram->slots[log2_slot(duration_ns)], 1);
}

static __always_inline bool is_streamed(enum kind kind)
{
	return settings.streamed & (1ULL << kind);
}

/* Whether a program must know the process that an event happens to. */
static __always_inline bool needs_process(enum kind kind)
{
	return settings.filtered || is_streamed(kind);
}

/* A pid of a text, number | serial << 32, is another number than the term of the same process. */
#define TEXT_KEY (1ULL << 63)

/* Whether events of *process* count: of all, unless the user has named some. */
static __always_inline bool is_wanted(__u8 flags, __u64 process)
{
	__u64 key = flags & FLAG_TEXT_PID ? process | TEXT_KEY : process;

	return !settings.filtered || bpf_map_lookup_elem(&wanted, &key);
}

/*
 * A record in the ring, with its header filled in and its body zero; NULL if the kind is not
 * streamed, or if the ring is full, which is counted. Any other result must be given to
 * submit_record().
 */
static __always_inline void *reserve_record(enum kind kind, __u8 class, __u8 flags, __u32 tid,
					    __u64 process)
{
	struct record *record;
	struct counters *counted;

	if (!is_streamed(kind))
		return NULL;
	record = bpf_ringbuf_reserve(&ring, sizeof(*record), 0);
	if (!record) {
		counted = counters_of(kind, class);
		if (counted)
			__sync_fetch_and_add(&counted->lost, 1);
		return NULL;
	}
	record->header.time_ns = bpf_ktime_get_ns();
	record->header.kind = kind;
	record->header.class = class;
	record->header.flags = flags;
	record->header.tid = tid;
	record->header.process = process;
	record->body[0] = 0;
	record->body[1] = 0;
	record->body[2] = 0;
	record->body[3] = 0;
	return record;
}

/* The reader polls the ring at intervals, so no event pays for waking it. */
static __always_inline void submit_record(void *record)
{
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
}

#endif
