/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the profiler's programs share: their settings, the target's schedulers, and how a process
 * and its Erlang stack are read.
 */
#ifndef SAMPLE_BPF_H
#define SAMPLE_BPF_H

#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "build.h"
#include "events.generated.h"

const volatile struct sample_settings settings; /* the only thing in .rodata */

/* The schedulers, by tid; user space adds them. OTP allows 3 x 1024 of them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct sampled_thread);
} threads SEC(".maps");

/* Samples of any length; user space sets the size. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} samples SEC(".maps");

enum sample_count { SAMPLES_TAKEN, SAMPLES_LOST, SAMPLE_COUNTS };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SAMPLE_COUNTS);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

static __always_inline void count(enum sample_count what)
{
	__u32 key = what;
	__u64 *value = bpf_map_lookup_elem(&counts, &key);

	if (value)
		__sync_fetch_and_add(value, 1);
}

/* A word of the target, 0 where it cannot be read; that is counted in the sample. */
static __always_inline __u64 word(struct sample *sample, __u64 address)
{
	__u64 value = 0;

	if (bpf_probe_read_user(&value, sizeof(value), (const void *)address))
		sample->failed++;
	return value;
}

static __always_inline __u64 field(struct sample *sample, __u64 base, __u32 offset)
{
	return offset ? word(sample, base + offset) : 0;
}

/* Who is at *process*, and where its stack lies. A Process begins with its pid. */
static __always_inline void read_process(struct sample *sample, __u64 process)
{
	sample->process = process;
	if (!process)
		return;
	sample->pid = word(sample, process);
	sample->heap = field(sample, process, settings.process_heap);
	sample->stop = field(sample, process, settings.process_stop);
	sample->hend = field(sample, process, settings.process_hend);
	sample->frame_pointer = field(sample, process, settings.process_frame_pointer);
	sample->i = field(sample, process, settings.process_i);
	sample->current = field(sample, process, settings.process_current);
	if (sample->hend)
		sample->bottom = word(sample, sample->hend - 8);
}

#endif
