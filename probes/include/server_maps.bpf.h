/* SPDX-License-Identifier: GPL-2.0-only */
/* server.bpf.c's settings and maps, the filter of its hits, and reads of the VM's memory. */
#ifndef SERVER_MAPS_BPF_H
#define SERVER_MAPS_BPF_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "buckets.bpf.h"
#include "events.generated.h"

const volatile struct server_settings settings; /* the only thing in .rodata */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct server_window);
} server_window SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SERVER_COUNTS);
	__type(key, __u32);
	__type(value, __u64);
} server_counts SEC(".maps");

/*
 * Open calls by the caller's pid. An entry goes when the caller takes the reply, or is informed
 * that the server ended, calls again, or ends; and with the window where ends are not seen.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct server_call);
} server_calls SEC(".maps");

/* Calls whose caller has called again, or ended: the server still has work with them. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct server_reference);
	__type(value, struct server_call);
} abandoned_calls SEC(".maps");

/*
 * Other messages in mailboxes of servers, by ErtsMessage. An entry goes when the message is taken.
 * User space removes what is left: that of servers that ended, and of messages that a garbage
 * collection has moved to another ErtsMessage.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct server_message);
} server_messages SEC(".maps");

/* Processes by pid. One that is evicted is learned again. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct server_process);
} server_processes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SERVER_SLOTS);
	__type(key, struct server_module);
	__type(value, __u32);
} server_modules SEC(".maps");

/* Slots of tags of the requests to one module. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SERVER_SLOTS);
	__type(key, struct server_tag);
	__type(value, __u32);
} server_tags SEC(".maps");

/* The number of tags that have slots, by the slot of their module. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SERVER_SLOTS);
	__type(key, __u32);
	__type(value, __u32);
} server_tagged SEC(".maps");

/* The number of slots that are taken. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} server_taken SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SERVER_SLOTS);
	__type(key, __u32);
	__type(value, struct server_stats);
} server_stats SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct server_edge);
	__type(value, struct server_edge_total);
} server_edges SEC(".maps");

/* Count one more, and return how many there are on this CPU. */
static __always_inline __u64 count(enum server_count which)
{
	__u32 key = which;
	__u64 *value = bpf_map_lookup_elem(&server_counts, &key);

	if (!value)
		return 0; /* cannot be: the key is within the map */
	__sync_fetch_and_add(value, 1);
	return *value;
}

/* The time, if this hit is on the target and counts; otherwise 0. */
static __always_inline __u64 enter(enum server_count program)
{
	__u32 first = 0;

	if (bpf_get_current_pid_tgid() >> 32 != settings.tgid)
		return 0;
	__u64 hits = count(program);

	return in_window(bpf_map_lookup_elem(&server_window, &first), hits);
}

/* Whether messages are counted when they are sent, and nothing else is seen. */
static __always_inline bool is_light(void)
{
	__u32 first = 0;
	struct server_window *window = bpf_map_lookup_elem(&server_window, &first);

	return window && window->light;
}

static __always_inline bool read_words(__u64 *words, __u32 bytes, __u64 address)
{
	if (!bpf_probe_read_user(words, bytes, (const void *)address))
		return true;
	count(SERVER_UNREADABLE);
	return false;
}

static __always_inline __u64 word(__u64 address)
{
	__u64 value = 0;

	read_words(&value, sizeof(value), address);
	return value;
}

static __always_inline struct server_stats *stats_of(__u32 slot)
{
	return bpf_map_lookup_elem(&server_stats, &slot);
}

#define OBSERVE(stats, which, duration)                                                            \
	do {                                                                                       \
		__u64 _ns = (duration);                                                            \
		__u32 _bucket = bucket_of(_ns);                                                    \
		if (_bucket < SERVER_BUCKETS) {                                                    \
			__sync_fetch_and_add(&(stats)->which##_ns, _ns);                           \
			__sync_fetch_and_add(&(stats)->which[_bucket], 1);                         \
		}                                                                                  \
	} while (0)

#endif
