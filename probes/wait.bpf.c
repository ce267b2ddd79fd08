/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * wait: what Erlang processes wait in, from when they leave a scheduler until they get one again.
 *
 * Hooks:  erts_schedule (out) and copy_in_registers (in)
 * Counts: wait_sites: time and times by the code that waits, and why; all of it, exactly
 * Emits:  sample with the Erlang stack, one for each period_ns of a process's waiting
 *
 * The stack is copied when the process comes back: it is the one that it left with, and only then
 * it is known how long it was. Both hooks are the hottest of the VM, so they do little.
 */
#include <stddef.h>
#include "sample.bpf.h"

#define MAX_STACK 8192
/* Bits of a process's state (ERTS_PSFLG_*, OTP-25.2.3 and 27.3.4.1 erl_process.h). */
#define EXITING	  (1U << 11)
#define ACTIVE	  (1U << 13)
#define SUSPENDED (1U << 16)
#define DIRTY	  (3U << 26 | 1U << 28) /* CPU or I/O job, or a collection there */

struct short_sample {
	struct sample sample;
	__u8 data[MAX_STACK];
};

/*
 * Processes by address; user space adds those that wait when it begins, an exit takes one out.
 * Allocated beforehand (25 MB): before Linux 6.1 a hash that allocates while a program runs is
 * unsafe in one that traces, and the kernel warns of it.
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

static __always_inline bool ours(void)
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

static __always_inline __u64 at_random(void)
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

	if (!ours() || dirty_scheduler || !process)
		return 0;
	if (bpf_probe_read_user(&state, sizeof(state),
				(void *)(process + settings.process_state)) ||
	    bpf_probe_read_user(&i, sizeof(i), (void *)(process + settings.process_i))) {
		count(SAMPLES_LOST);
		return 0;
	}
	if (state & EXITING) {
		/* Its place in memory will be another's. */
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
	fresh.point_ns = at_random();
	fresh.i = i;
	fresh.reason = reason_of(state);
	fresh.seen = 1;
	fresh.since_ns = bpf_ktime_get_ns();
	if (bpf_map_update_elem(&processes, &process, &fresh, BPF_ANY))
		count(SAMPLES_LOST);
	return 0;
}

static __always_inline void add_up(struct waiting *waiting, __u64 duration)
{
	struct wait_site site = {.i = waiting->i, .reason = waiting->reason};
	struct wait_total *total = bpf_map_lookup_elem(&wait_sites, &site), fresh = {};

	if (!total) {
		if (bpf_map_update_elem(&wait_sites, &site, &fresh, BPF_NOEXIST))
			count(SAMPLES_LOST);
		total = bpf_map_lookup_elem(&wait_sites, &site);
		if (!total)
			return;
	}
	__sync_fetch_and_add(&total->ns, duration);
	__sync_fetch_and_add(&total->count, 1);
}

/*
 * What part of a process's waiting this wait stands for. All its waits, one after the other, are
 * cut into stretches of period_ns, and a point of each is taken at random: the wait that holds it
 * stands for the stretch.
 */
static __always_inline __u64 weigh(struct waiting *waiting, __u64 duration)
{
	__u64 position = waiting->position_ns, end = position + duration, weight = 0;

	if (position <= waiting->point_ns && waiting->point_ns < end)
		weight = settings.period_ns;
	if (end >= settings.period_ns) {
		weight += (end / settings.period_ns - 1) * settings.period_ns;
		end %= settings.period_ns;
		waiting->point_ns = at_random();
		if (waiting->point_ns < end)
			weight += settings.period_ns;
	}
	waiting->position_ns = end;
	return weight;
}

static __always_inline void emit(__u64 process, struct waiting *waiting, __u64 now, __u64 weight)
{
	struct short_sample *record = bpf_ringbuf_reserve(&samples, sizeof(*record), 0);
	struct sample *sample;
	__u64 size;

	count(SAMPLES_TAKEN);
	if (!record) {
		count(SAMPLES_LOST);
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
	if (size > MAX_STACK)
		size = MAX_STACK;
	if (bpf_probe_read_user(record->data, size, (void *)sample->stop))
		sample->failed++;
	else
		sample->erlang_bytes = size;
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
}

/* The breakpoint may lie some instructions into the function, where its process has been moved. */
SEC("uprobe")
int BPF_KPROBE(wait_in)
{
	__u64 process = 0, now, duration, weight;
	struct waiting *waiting;

	if (!ours())
		return 0;
	bpf_probe_read_kernel(&process, sizeof(process),
			      (void *)ctx + settings.schedule_in_register);
	waiting = bpf_map_lookup_elem(&processes, &process);
	if (!waiting || !waiting->since_ns)
		return 0; /* new, or there since before we came */
	now = bpf_ktime_get_ns();
	duration = now - waiting->since_ns;
	waiting->since_ns = 0;
	waiting->seen = 1;
	add_up(waiting, duration);
	weight = weigh(waiting, duration);
	if (weight)
		emit(process, waiting, now, weight);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
