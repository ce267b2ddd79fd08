/* SPDX-License-Identifier: GPL-2.0-only */
/* telemetry.bpf.c's settings and maps, what a thread works on, and the filter of its hits. */
#ifndef TELEMETRY_MAPS_BPF_H
#define TELEMETRY_MAPS_BPF_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "events.generated.h"
#include "work.bpf.h"

/* Words of the stack that are searched; of a shorter stack fewer. */
#define STACK_WORDS	  24
#define SHORT_STACK_WORDS 12
/* Keys of a map that is kept as two arrays (MAP_SMALL_MAP_LIMIT, OTP-25.2.3 erl_map.h). */
#define FLATMAP_KEYS 32
/* Schedulers; OTP allows 1024 that run Erlang code. */
#define MAX_SCHEDULERS 1024

/* What a thread is working on. */
struct scratch {
	__u64 words[STACK_WORDS];
	__u64 keys[FLATMAP_KEYS];
	struct telemetry_event name;
	struct telemetry_row row;
	/* The Process, and the value of the gate. */
	__u64 process, gate;
	/* Its pid, where that is needed. */
	__u64 pid;
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

/* For threads.bpf.c, by the same number; user space adds WORK_*, and removes what is idle. */
struct work_samples work_samples SEC(".maps");

/* User space sets the size, 1 for no work. */
struct works works SEC(".maps");

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
	__u64 samples;
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

#endif
