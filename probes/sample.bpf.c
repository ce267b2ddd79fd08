/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * sample: samples of the threads of a VM, by a timer.
 *
 * Hooks:  a timer of every CPU (perf event)
 * Counts: samples taken and lost
 * Emits:  sample, with the words of the Erlang stack and of the C stack behind it
 *
 * The program only copies; user space walks the stacks. A timer runs with interrupts off, so each
 * CPU runs one of these at a time, and a sample is consistent.
 */
#include <linux/bpf_perf_event.h>
#include "sample.bpf.h"
#include "task.bpf.h"

#define MAX_ERLANG 0x8000 /* bytes of each stack: powers of two, for the masks */
#define MAX_NATIVE 0x8000
#define PAGE	   4096
/* Erlang code stores its stack pointer only sometimes: this much of the stack may lie above it. */
#define ABOVE_STOP 4096

/*
 * Ticks of a CPU's timer. It runs TICKS_PER_SAMPLE times faster than samples are taken, and one of
 * so many ticks is drawn at random: work with the period of the samples is not sampled at the same
 * phase each time.
 */
struct ticks {
	__u64 last_ns;
	__u32 count;
	__u32 drawn;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ticks);
} ticks SEC(".maps");

struct full_sample {
	struct sample sample;
	__u8 data[MAX_ERLANG + MAX_NATIVE + PAGE];
};

/* A buffer for each CPU in which it assembles a sample; user space sets the number. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct full_sample);
} scratch SEC(".maps");

/* The thread's registers in user space, which entering the kernel saved on its kernel stack. */
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

/* The Erlang stack from its top; if the top is only known approximately, from a little above. */
static __always_inline void copy_erlang(struct full_sample *full)
{
	struct sample *sample = &full->sample;
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
	if (bpf_probe_read_user(full->data, size, (const void *)from)) {
		sample->failed++;
		return;
	}
	sample->erlang_from = from;
	sample->erlang_bytes = size;
}

/* The C stack, page by page, up to its beginning or to a page that is not mapped. */
static __always_inline __u32 copy_native(struct full_sample *full, __u32 offset)
{
	struct sample *sample = &full->sample;
	__u64 at = sample->sp, end = at + MAX_NATIVE - PAGE, size;
	__u32 start = offset;

	if (sample->stack_top > at && sample->stack_top < end)
		end = sample->stack_top;
	for (int page = 0; page < MAX_NATIVE / PAGE; page++) {
		size = PAGE - (at & (PAGE - 1));
		if (at >= end)
			break;
		if (size > end - at)
			size = end - at;
		if (offset >= MAX_ERLANG + MAX_NATIVE - PAGE)
			break;
		/* At most a page; the verifier of Linux 5.10 needs a mask right here to see it. */
		asm volatile("" : "+r"(size));
		size &= 2 * PAGE - 1;
		if (bpf_probe_read_user(full->data + offset, size, (const void *)at))
			break;
		at += size;
		offset += size;
	}
	return offset - start;
}

static __always_inline void read_scheduler(struct sample *sample, __u32 tid)
{
	struct sampled_thread *thread = bpf_map_lookup_elem(&threads, &tid);
	__u64 port;

	if (!thread)
		return; /* a thread that runs no processes */
	sample->stack_top = thread->stack_top;
	read_process(sample, read_field(sample, thread->scheduler, settings.scheduler_process));
	sample->nif = read_field(sample, thread->scheduler, settings.scheduler_nif);
	port = read_field(sample, thread->scheduler, settings.scheduler_port);
	if (port)
		sample->port = read_word(sample, port);
}

/* The time that this tick represents, ns; 0 if another one is drawn. A tick that is far too late
 * represents one period. */
static __always_inline __u64 draw_tick(__u64 now)
{
	__u32 first = 0;
	struct ticks *tick = bpf_map_lookup_elem(&ticks, &first);
	__u64 weight;
	bool hit;

	if (!tick)
		return 0; /* cannot be: the key is within the map */
	weight = TICKS_PER_SAMPLE * (now - tick->last_ns);
	tick->last_ns = now;
	if (!tick->count)
		tick->drawn = bpf_get_prandom_u32() % TICKS_PER_SAMPLE;
	hit = tick->count == tick->drawn;
	tick->count = (tick->count + 1) % TICKS_PER_SAMPLE;
	if (!hit)
		return 0;
	return weight < 4 * settings.period_ns ? weight : settings.period_ns;
}

SEC("perf_event")
int take_sample(struct bpf_perf_event_data *ctx)
{
	__u64 both = bpf_get_current_pid_tgid();
	__u64 now = bpf_ktime_get_ns(), weight = draw_tick(now);
	__u32 cpu = bpf_get_smp_processor_id(), tid = (__u32)both, size;
	struct full_sample *full;
	struct sample *sample;
	long kernel;

	if (!weight || both >> 32 != settings.tgid)
		return 0;
	full = bpf_map_lookup_elem(&scratch, &cpu);
	if (!full)
		return 0; /* a CPU that was added after the start */
	sample = &full->sample;
	__builtin_memset(sample, 0, sizeof(*sample));
	sample->time_ns = now;
	sample->weight_ns = weight;
	sample->tid = tid;
	read_registers(sample);
	kernel = bpf_get_stack(ctx, sample->kernel, sizeof(sample->kernel), 0);
	if (kernel > 0)
		sample->kernel_frames = kernel / 8;
	read_scheduler(sample, tid);
	copy_erlang(full);
	size = sample->erlang_bytes & (MAX_ERLANG - 1);
	if (sample->sp < sample->heap || sample->sp > sample->hend) {
		sample->native_bytes = copy_native(full, size);
		size += sample->native_bytes;
	}
	size &= MAX_ERLANG + MAX_NATIVE - 1;
	count_sample(SAMPLES_TAKEN);
	if (bpf_ringbuf_output(&samples, full, sizeof(*sample) + size, BPF_RB_NO_WAKEUP))
		count_sample(SAMPLES_LOST);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
