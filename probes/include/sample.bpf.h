/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the profiler's programs share: settings, the target's schedulers, and reading a process.
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
#include "work.bpf.h"

/* A profile's events begin to count once. */
#define WORK_GATE 1

const volatile struct sample_settings settings; /* the only thing in .rodata */

/* The schedulers, by tid; user space adds them. OTP allows 3 x 1024 of them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct sampled_thread);
} threads SEC(".maps");

/* What its processes work on; user space sets the size, or shares the map of telemetry. */
struct works works SEC(".maps");

/* Samples of any length; user space sets the size. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} samples SEC(".maps");

/* By enum sample_count. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SAMPLE_COUNTS);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

static __always_inline void count_sample(enum sample_count which)
{
	__u32 key = which;
	__u64 *value = bpf_map_lookup_elem(&counts, &key);

	if (value)
		__sync_fetch_and_add(value, 1);
}

/* A word of the target; 0 if it cannot be read, which is counted in the sample. */
static __always_inline __u64 read_word(struct sample *sample, __u64 address)
{
	__u64 value = 0;

	if (bpf_probe_read_user(&value, sizeof(value), (const void *)address))
		sample->failed++;
	return value;
}

/* The same; 0 also if the offset is unknown. */
static __always_inline __u64 read_field(struct sample *sample, __u64 base, __u32 offset)
{
	return offset ? read_word(sample, base + offset) : 0;
}

/* Read the Process at *process*: its pid, which is its first word, and where its stack is. */
static __always_inline void read_process(struct sample *sample, __u64 process)
{
	sample->process = process;
	if (!process)
		return;
	sample->pid = read_word(sample, process);
	sample->work = work_of(&works, sample->pid, WORK_GATE);
	sample->heap = read_field(sample, process, settings.process_heap);
	sample->stop = read_field(sample, process, settings.process_stop);
	sample->hend = read_field(sample, process, settings.process_hend);
	sample->frame_pointer = read_field(sample, process, settings.process_frame_pointer);
	sample->i = read_field(sample, process, settings.process_i);
	sample->current = read_field(sample, process, settings.process_current);
	if (sample->hend)
		sample->bottom = read_word(sample, sample->hend - 8);
}

#endif
