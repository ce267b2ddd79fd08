/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Hit quotas and sampling windows: how often the hooks of a kind may be hit, and from when to when.
 *
 * The governor in user space fills the quotas. When one is used up, the programs stop counting at
 * once and wake the daemon, which takes the hooks out; a window also ends at a set time. At its
 * start and end the programs read the VM's own counters, with which the counts are compared.
 */
#ifndef SCOPE_QUOTA_BPF_H
#define SCOPE_QUOTA_BPF_H

#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include "events.generated.h"
#include "maps.bpf.h"

/*
 * The quota of each kind; all zero, it is unlimited, as in a trace that a person watches. The trap
 * of a hit costs far more than this check.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, KINDS);
	__type(key, __u32);
	__type(value, struct quota);
} quotas SEC(".maps");

/* All zero where the VM's counters could not be found. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, KINDS);
	__type(key, __u32);
	__type(value, struct reference_counter);
} reference_counters SEC(".maps");

enum window_bound { WINDOW_START, WINDOW_END };

#define SAMPLE_KEYS (KINDS * WINDOW_BOUNDS)

/*
 * The reference counters at start and end of each kind's last window, by kind * WINDOW_BOUNDS +
 * bound. A hash, because BPF_NOEXIST is atomic on every kernel: of hits on several CPUs exactly one
 * adds the sample. Emptied by the daemon before the next window.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SAMPLE_KEYS);
	__type(key, __u32);
	__type(value, struct counter_sample);
} counter_samples SEC(".maps");

/* Hits that a CPU takes from a quota at once: few enough for a window of thousands, rare enough to
 * share. */
#define SPENT_AT_ONCE 64

/*
 * Words of a reference counter: as many as OTP allows normal schedulers. They are summed up in
 * nested loops, each in a function of its own: the verifier walks each loop once per program.
 */
#define MAX_WORDS 1024
#define GROUP	  64
#define PART	  8

/* The words of a reference counter. */
struct words {
	__u64 address;
	__u32 stride;
	__u32 words;
};

/* The words of a kind's first or second counter; none if it has no such counter. */
static __always_inline struct words words_of(__u32 kind, __u32 second)
{
	struct reference_counter *counter = bpf_map_lookup_elem(&reference_counters, &kind);
	struct words none = {};

	if (!counter)
		return none; /* cannot be: the key is within the map */
	if (second) {
		struct words found = {counter->second_address, counter->second_stride,
				      counter->second_words};
		return found;
	}
	struct words found = {counter->address, counter->stride, counter->words};
	return found;
}

/* The sum of PART words from number *first* on; UNKNOWN if one cannot be read. */
__noinline __u64 sum_part(__u32 kind, __u32 second, __u32 first)
{
	struct words words = words_of(kind, second);
	__u64 word, sum = 0;

#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < PART; i++) {
		__u64 address = words.address + (__u64)(first + i) * words.stride;

		if (first + i >= words.words)
			break;
		if (bpf_probe_read_user(&word, sizeof(word), (const void *)address))
			return UNKNOWN;
		sum += word;
	}
	return sum;
}

/* The sum of GROUP words from number *first* on; UNKNOWN if one cannot be read. */
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

/* The value of a reference counter, the sum of its words; UNKNOWN if one cannot be read. */
__noinline __u64 read_counter(__u32 kind, __u32 second)
{
	__u32 words = words_of(kind, second).words;
	__u64 sum = 0;

#pragma clang loop unroll(disable)
	for (__u32 first = 0; first < MAX_WORDS && first < words; first += GROUP) {
		__u64 more = sum_group(kind, second, first);

		if (more == UNKNOWN)
			return UNKNOWN;
		sum += more;
	}
	return sum;
}

/* Store the current values of a kind's reference counters, unless another CPU has done so. */
__noinline int sample_counters(__u32 kind, __u32 bound)
{
	struct counter_sample sample = {.time_ns = bpf_ktime_get_ns()};
	__u32 key = kind * WINDOW_BOUNDS + bound;

	if (bpf_map_lookup_elem(&counter_samples, &key))
		return 0;
	sample.value = read_counter(kind, 0);
	sample.second_value = read_counter(kind, 1);
	sample.unreadable = sample.value == UNKNOWN || sample.second_value == UNKNOWN;
	bpf_map_update_elem(&counter_samples, &key, &sample, BPF_NOEXIST);
	return 0;
}

/* Stop counting a kind whose quota is used up, and wake the daemon: a discarded record does so, and
 * no reader sees it. */
static __noinline int exhaust_quota(struct quota *quota, __u32 kind)
{
	void *record;

	if (!quota)
		return 0;
	quota->exhausted_ns = bpf_ktime_get_ns();
	sample_counters(kind, WINDOW_END);
	record = bpf_ringbuf_reserve(&ring, RECORD_BYTES, 0);
	if (record)
		bpf_ringbuf_discard(record, BPF_RB_FORCE_WAKEUP);
	return 0;
}

/*
 * True if a hit falls into the current window. The first hit and the first one after the end sample
 * the reference counters, so that the events that were counted and the VM's counters cover the same
 * time, however long the daemon waits for a CPU. Of these two, the first hit counts. A thread that
 * is preempted here does not keep a hit on another CPU from taking the sample in time.
 */
static __always_inline bool in_window(struct quota *quota, __u32 kind)
{
	__u64 now = bpf_ktime_get_ns();

	if (now >= quota->until_ns) {
		sample_counters(kind, WINDOW_END);
		quota->exhausted_ns = now;
		return false;
	}
	if (!quota->started) {
		sample_counters(kind, WINDOW_START);
		quota->started = 1;
	}
	return true;
}

/*
 * Take one hit from a kind's quota; false if the hit does not count. *before* is the number of
 * earlier hits of this program on this CPU.
 */
static __always_inline bool consume_quota(enum kind kind, __u64 before)
{
	__u32 key = kind;
	struct quota *quota = bpf_map_lookup_elem(&quotas, &key);

	if (!quota)
		return false;
	if (!quota->limited)
		return true;
	if (quota->exhausted_ns) {
		/* The hit that ended the window may have lost its CPU before it took the sample. */
		if (quota->until_ns)
			sample_counters(key, WINDOW_END);
		return false;
	}
	if (quota->until_ns && !in_window(quota, key))
		return false;
	if ((before + 1) % SPENT_AT_ONCE)
		return true;
	__sync_fetch_and_add(&quota->left, -SPENT_AT_ONCE);
	if (quota->left > 0)
		return true;
	exhaust_quota(quota, key);
	return false;
}

/* True if something began before counting of its kind was enabled: its end may be another's. */
static __always_inline bool started_before_gate(enum kind kind, __u64 since_ns)
{
	__u32 key = kind;
	struct quota *quota = bpf_map_lookup_elem(&quotas, &key);

	return quota && since_ns < quota->opened_ns;
}

/* Counting that has lasted for longer than this is not that of a window. */
#define LONGEST_WINDOW_NS 1000000000ULL

/* True if the kind was counted without interruption from *since_ns* to *now*. */
static __always_inline bool fully_observed(enum kind kind, __u64 since_ns, __u64 now)
{
	__u32 key = kind;
	struct quota *quota = bpf_map_lookup_elem(&quotas, &key);

	if (!quota || !quota->limited)
		return true; /* a trace: counted until it ends */
	return !quota->exhausted_ns && since_ns >= quota->opened_ns &&
	       now - quota->opened_ns > LONGEST_WINDOW_NS;
}

#endif
