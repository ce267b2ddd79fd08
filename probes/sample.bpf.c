/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * sample: what the threads of a VM are doing, so many times a second.
 *
 * Hooks:  a timer of every CPU (perf event)
 * Counts: samples taken and lost
 * Emits:  sample, with the words of the Erlang stack and of the C stack behind it
 *
 * Only copies; walking the stacks is left to user space. A timer runs with interrupts off, so a CPU
 * has one of these at a time, and what is read is of one instant.
 */
#include <linux/bpf_perf_event.h>
#include "sample.bpf.h"
#include "task.bpf.h"

#define MAX_ERLANG 0x8000 /* bytes of each stack: powers of two, as masks need them */
#define MAX_NATIVE 0x8000
#define PAGE	   4096
/* Erlang code puts its stack pointer down only sometimes: this much may lie above it. */
#define ABOVE_STOP 4096

/*
 * The timer runs faster than samples are taken: of each so many ticks one is drawn, so that what
 * repeats itself as often as samples are taken is not met at the same place over and over.
 */
#define DRAWN_FROM 2 /* as in kernel/observers/sampler.py */

struct tick {
	__u64 last_ns;
	__u32 count;
	__u32 drawn;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tick);
} ticks SEC(".maps");

struct whole {
	struct sample sample;
	__u8 data[MAX_ERLANG + MAX_NATIVE + PAGE];
};

/* Where a sample is put together, one for each CPU; user space sets how many. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct whole);
} scratch SEC(".maps");

/* The thread's registers in user space: it left them on its kernel stack, be it for the timer. */
static __always_inline void read_registers(struct sample *sample)
{
	struct pt_regs user;

	if (bpf_probe_read_kernel(&user, sizeof(user),
				  registers_of((struct task_struct *)bpf_get_current_task()))) {
		sample->failed++;
		return;
	}
	sample->ip = user.rip;
	sample->sp = user.rsp;
	sample->rbp = user.rbp;
	sample->rbx = user.rbx;
	sample->r12 = user.r12;
	sample->r13 = user.r13;
	sample->r14 = user.r14;
	sample->r15 = user.r15;
}

/* The Erlang stack, from its top; where that is not known yet, from a little above. */
static __always_inline void copy_erlang(struct whole *whole)
{
	struct sample *sample = &whole->sample;
	__u64 from = sample->stop - ABOVE_STOP, size;

	if (!sample->hend || sample->heap >= sample->hend)
		return;
	if (from < sample->heap || sample->stop < ABOVE_STOP)
		from = sample->heap;
	if (sample->sp >= sample->heap && sample->sp <= sample->hend)
		from = sample->sp;
	if (from > sample->hend)
		return;
	size = sample->hend - from;
	if (size >= MAX_ERLANG)
		size = MAX_ERLANG - 8;
	size &= MAX_ERLANG - 1;
	if (bpf_probe_read_user(whole->data, size, (const void *)from)) {
		sample->failed++;
		return;
	}
	sample->erlang_from = from;
	sample->erlang_bytes = size;
}

/* The C stack, page after page, up to where it began or where no page is left. */
static __always_inline __u32 copy_native(struct whole *whole, __u32 place)
{
	struct sample *sample = &whole->sample;
	__u64 at = sample->sp, end = at + MAX_NATIVE - PAGE, size;
	__u32 start = place;

	if (sample->stack_top > at && sample->stack_top < end)
		end = sample->stack_top;
	for (int page = 0; page < MAX_NATIVE / PAGE; page++) {
		size = PAGE - (at & (PAGE - 1));
		if (at >= end)
			break;
		if (size > end - at)
			size = end - at;
		if (place >= MAX_ERLANG + MAX_NATIVE - PAGE)
			break;
		/* No longer than a page; Linux 5.10 believes it only of a mask right here. */
		asm volatile("" : "+r"(size));
		size &= 2 * PAGE - 1;
		if (bpf_probe_read_user(whole->data + place, size, (const void *)at))
			break;
		at += size;
		place += size;
	}
	return place - start;
}

static __always_inline void read_scheduler(struct sample *sample, __u32 tid)
{
	struct sampled_thread *thread = bpf_map_lookup_elem(&threads, &tid);
	__u64 port;

	if (!thread)
		return; /* a thread that runs no processes */
	sample->stack_top = thread->stack_top;
	read_process(sample, field(sample, thread->scheduler, settings.scheduler_process));
	sample->nif = field(sample, thread->scheduler, settings.scheduler_nif);
	port = field(sample, thread->scheduler, settings.scheduler_port);
	if (port)
		sample->port = word(sample, port);
}

/* How much time this tick stands for; 0 if another was drawn. One far too late stands for a period.
 */
static __always_inline __u64 draw(__u64 now)
{
	__u32 first = 0;
	struct tick *tick = bpf_map_lookup_elem(&ticks, &first);
	__u64 weight;
	bool hit;

	if (!tick)
		return 0; /* cannot be: the key is within the map */
	weight = DRAWN_FROM * (now - tick->last_ns);
	tick->last_ns = now;
	if (!tick->count)
		tick->drawn = bpf_get_prandom_u32() % DRAWN_FROM;
	hit = tick->count == tick->drawn;
	tick->count = (tick->count + 1) % DRAWN_FROM;
	if (!hit)
		return 0;
	return weight < 4 * settings.period_ns ? weight : settings.period_ns;
}

SEC("perf_event")
int take_sample(struct bpf_perf_event_data *ctx)
{
	__u64 both = bpf_get_current_pid_tgid();
	__u64 now = bpf_ktime_get_ns(), weight = draw(now);
	__u32 cpu = bpf_get_smp_processor_id(), tid = (__u32)both, size;
	struct whole *whole;
	struct sample *sample;
	long kernel;

	if (!weight || both >> 32 != settings.tgid)
		return 0;
	whole = bpf_map_lookup_elem(&scratch, &cpu);
	if (!whole)
		return 0; /* a CPU that came after us */
	sample = &whole->sample;
	__builtin_memset(sample, 0, sizeof(*sample));
	sample->time_ns = now;
	sample->weight_ns = weight;
	sample->tid = tid;
	read_registers(sample);
	kernel = bpf_get_stack(ctx, sample->kernel, sizeof(sample->kernel), 0);
	if (kernel > 0)
		sample->kernel_frames = kernel / 8;
	read_scheduler(sample, tid);
	copy_erlang(whole);
	size = sample->erlang_bytes & (MAX_ERLANG - 1);
	if (sample->sp < sample->heap || sample->sp > sample->hend) {
		sample->native_bytes = copy_native(whole, size);
		size += sample->native_bytes;
	}
	size &= MAX_ERLANG + MAX_NATIVE - 1;
	count(SAMPLES_TAKEN);
	if (bpf_ringbuf_output(&samples, whole, sizeof(*sample) + size, BPF_RB_NO_WAKEUP))
		count(SAMPLES_LOST);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
