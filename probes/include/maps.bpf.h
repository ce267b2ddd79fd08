/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Settings and maps that all event probes share. Each probe is an object of its own; the first one
 * that is loaded creates the maps named here and in quota.bpf.h, the others are given them.
 */
#ifndef SCOPE_MAPS_BPF_H
#define SCOPE_MAPS_BPF_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "events.generated.h"

#define UNKNOWN	     (~0ULL)
#define COUNTER_KEYS (KINDS * CLASSES)

const volatile struct settings settings; /* the only thing in .rodata, so it lies at offset 0 */
struct target target;			 /* the only thing in .bss, for the same reason */

/* The size is set before load, a power of two; one page where nothing is streamed. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTER_KEYS);
	__type(key, __u32);
	__type(value, struct counters);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTER_KEYS);
	__type(key, __u32);
	__type(value, struct histogram);
} histograms SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PROGRAMS);
	__type(key, __u32);
	__type(value, __u64);
} hits SEC(".maps");

/*
 * Processes of which alone events count, where settings say so: their ids, see is_wanted(). Made
 * MAX_WANTED large where they do.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, __u64);
} wanted SEC(".maps");

/* 1 while events count, so that all hooks start and stop at the same time, however long attaching
 * takes. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} gate SEC(".maps");

#endif
