/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * wait: where Erlang processes wait, from being scheduled out until being scheduled in.
 *
 * Hooks:  erts_schedule (out) and copy_in_registers (in)
 * Counts: wait_sites: time and number of all waits, by the code that waits and the reason
 * Emits:  sample with the Erlang stack, one for each period_ns of a process's waiting
 *
 * The stack is copied when the process is scheduled in: it has not changed since it was scheduled
 * out, and only then the length of the wait is known. These are the hottest hooks of the VM, so
 * they do little.
 */
#include <stddef.h>
#include "sample.bpf.h"

/* Bits of a process's state (ERTS_PSFLG_*, OTP-25.2.3 and 27.3.4.1 erl_process.h). */
#define EXITING	  (1U << 11)
#define ACTIVE	  (1U << 13)
#define SUSPENDED (1U << 16)
#define DIRTY	  (3U << 26 | 1U << 28) /* CPU or I/O job, or a collection there */

struct short_sample {
	struct sample sample;
	__u8 data[OFF_CPU_STACK_BYTES];
};

/*
 * Processes by address; user space adds those that wait at the start, an exit removes one.
 * Preallocated (25 MB): before Linux 6.1 a hash that allocates is unsafe in a tracing program, and
 * the kernel warns of it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__type(key, __u64);
	__type(value, struct waiting);
} processes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct wait_site);
	__type(value, struct wait_total);
} wait_sites SEC(".maps");

/* 1 while waits count. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} gate SEC(".maps");

/* True if the target runs here and waits count. */
static __always_inline bool is_counted(void)
{
	__u32 first = 0;
	__u64 *open;

	if (bpf_get_current_pid_tgid() >> 32 != settings.tgid)
		return false;
	open = bpf_map_lookup_elem(&gate, &first);
	return open && *open;
}

static __always_inline __u32 reason_of(__u32 state)
{
	if (state & SUSPENDED)
		return WAIT_SUSPENDED;
	if (state & DIRTY)
		return WAIT_DIRTY;
	return state & ACTIVE ? WAIT_RUN_QUEUE : WAIT_RECEIVE;
}

static __always_inline __u64 random_point(void)
{
	return bpf_get_prandom_u32() % settings.period_ns;
}

/* The first argument is NULL on a normal scheduler, the second the process that was running. */
SEC("uprobe")
int BPF_KPROBE(wait_out, __u64 dirty_scheduler, __u64 process)
{
	struct waiting *known, fresh = {};
	__u32 state = 0;
	__u64 i = 0;

	if (!is_counted() || dirty_scheduler || !process)
		return 0;
	if (bpf_probe_read_user(&state, sizeof(state),
				(void *)(process + settings.process_state)) ||
	    bpf_probe_read_user(&i, sizeof(i), (void *)(process + settings.process_i))) {
		count_sample(SAMPLES_LOST);
		return 0;
	}
	if (state & EXITING) {
		/* Its memory will be reused by another process. */
		bpf_map_delete_elem(&processes, &process);
		return 0;
	}
	known = bpf_map_lookup_elem(&processes, &process);
	if (known) {
		known->i = i;
		known->reason = reason_of(state);
		known->seen = 1;
		known->since_ns = bpf_ktime_get_ns();
		return 0;
	}
	fresh.point_ns = random_point();
	fresh.i = i;
	fresh.reason = reason_of(state);
	fresh.seen = 1;
	fresh.since_ns = bpf_ktime_get_ns();
	if (bpf_map_update_elem(&processes, &process, &fresh, BPF_ANY))
		count_sample(SAMPLES_LOST);
	return 0;
}

static __always_inline void add_wait(struct waiting *waiting, __u64 duration)
{
	struct wait_site site = {.i = waiting->i, .reason = waiting->reason};
	struct wait_total *total = bpf_map_lookup_elem(&wait_sites, &site), fresh = {};

	if (!total) {
		if (bpf_map_update_elem(&wait_sites, &site, &fresh, BPF_NOEXIST))
			count_sample(SAMPLES_LOST);
		total = bpf_map_lookup_elem(&wait_sites, &site);
		if (!total)
			return;
	}
	__sync_fetch_and_add(&total->ns, duration);
	__sync_fetch_and_add(&total->count, 1);
}

/*
 * The time that this wait represents, ns; 0 if it gets no sample. All waits of a process, one after
 * the other, are divided into periods of period_ns, each with a random point: the wait that
 * contains the point represents the period.
 */
static __always_inline __u64 weigh_wait(struct waiting *waiting, __u64 duration)
{
	__u64 position = waiting->position_ns, end = position + duration, weight = 0;

	if (position <= waiting->point_ns && waiting->point_ns < end)
		weight = settings.period_ns;
	if (end >= settings.period_ns) {
		weight += (end / settings.period_ns - 1) * settings.period_ns;
		end %= settings.period_ns;
		waiting->point_ns = random_point();
		if (waiting->point_ns < end)
			weight += settings.period_ns;
	}
	waiting->position_ns = end;
	return weight;
}

static __always_inline void submit_sample(__u64 process, struct waiting *waiting, __u64 now,
					  __u64 weight)
{
	struct short_sample *record = bpf_ringbuf_reserve(&samples, sizeof(*record), 0);
	struct sample *sample;
	__u64 size;

	count_sample(SAMPLES_TAKEN);
	if (!record) {
		count_sample(SAMPLES_LOST);
		return;
	}
	sample = &record->sample;
	__builtin_memset(sample, 0, sizeof(*sample));
	sample->time_ns = now;
	sample->weight_ns = weight;
	sample->tid = (__u32)bpf_get_current_pid_tgid();
	sample->reason = waiting->reason;
	read_process(sample, process);
	sample->i = waiting->i;
	sample->erlang_from = sample->stop;
	size = sample->hend - sample->stop;
	if (size > OFF_CPU_STACK_BYTES)
		size = OFF_CPU_STACK_BYTES;
	if (bpf_probe_read_user(record->data, size, (void *)sample->stop))
		sample->failed++;
	else
		sample->erlang_bytes = size;
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
}

/* The hook may be some instructions into the function, where the process is in another register. */
SEC("uprobe")
int BPF_KPROBE(wait_in)
{
	__u64 process = 0, now, duration, weight;
	struct waiting *waiting;

	if (!is_counted())
		return 0;
	bpf_probe_read_kernel(&process, sizeof(process),
			      (void *)ctx + settings.schedule_in_register);
	waiting = bpf_map_lookup_elem(&processes, &process);
	if (!waiting || !waiting->since_ns)
		return 0; /* new, or it has waited since before the start */
	now = bpf_ktime_get_ns();
	duration = now - waiting->since_ns;
	waiting->since_ns = 0;
	waiting->seen = 1;
	add_wait(waiting, duration);
	weight = weigh_wait(waiting, duration);
	if (weight)
		submit_sample(process, waiting, now, weight);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
