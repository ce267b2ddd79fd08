/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * gc: how long garbage collection stops Erlang processes, and what it frees.
 *
 * Hooks:  entry and return of erts_garbage_collect, _nobump, _literals, _hibernate and
 *         erts_gc_after_bif_call_lhf; or erlang:gc_{minor,major}__{start,end}
 * Counts: gc by minor, major and hibernate; durations
 * Emits:  gc
 *
 * Some calls delay the collection or hand it to a dirty scheduler: then nothing has changed, or the
 * process has abandoned its heap until the collection (OTP-25.2.3 erl_gc.c,
 * delay_garbage_collection). A collection moves the heap, changes gen_gcs (a minor one adds 1, a
 * major one sets it to 0), or changes the words in use; the heap address alone proves nothing,
 * since a heap may be moved back to its old address. erlang:statistics(garbage_collection) does not
 * count collections of hibernate, so it agrees with minor + major.
 */
#include "usdt.bpf.h"

/* check_for_possibly_long_gc hands heaps of this size or more to dirty schedulers (erl_gc.c). */
#define LONG_GC_WORDS (128 * 1024)

struct collecting {
	__u64 since, process, heap, used, abandoned;
	__u16 gen_gcs;
};

/*
 * Collections under way, by thread: each starts and ends on the same thread. LRU, because a VM that
 * is killed during one never reaches the end.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_THREADS);
	__type(key, __u32);
	__type(value, struct collecting);
} collections SEC(".maps");

/* Words in use: the young heap, the old heap, and the message buffers that become heap. */
static __noinline __u64 used_words(__u64 process)
{
	__u64 young = vm_field(KIND_GC, process, settings.process_htop) -
		      vm_field(KIND_GC, process, settings.process_heap);
	__u64 old = vm_field(KIND_GC, process, settings.process_old_htop) -
		    vm_field(KIND_GC, process, settings.process_old_heap);

	return young / 8 + old / 8 + vm_field(KIND_GC, process, settings.process_mbuf_sz);
}

static __always_inline __u16 gen_gcs(__u64 process)
{
	return (__u16)vm_field(KIND_GC, process, settings.process_gen_gcs);
}

static __always_inline int count_gc(__u8 class, __u8 flags, __u32 tid, __u64 process,
				    __u64 duration, __u64 before, __u64 after)
{
	struct gc_record *gc;

	if (duration < settings.shortest_ns || !is_wanted(flags, process))
		return 0;
	count_event(KIND_GC, class);
	if (duration != UNKNOWN)
		observe_duration(KIND_GC, class, duration);
	gc = reserve_record(KIND_GC, class, flags, tid, process);
	if (gc) {
		gc->duration_ns = duration;
		gc->reclaimed = before >= after ? before - after : UNKNOWN;
		gc->live = after;
		submit_record(gc);
	}
	return 0;
}

SEC("uprobe")
int BPF_KPROBE(gc_entry, __u64 process)
{
	struct collecting collecting = {.process = process};
	__u32 tid;

	if (!enter_program(PROGRAM_GC_ENTRY, &tid))
		return 0;
	collecting.gen_gcs = gen_gcs(process);
	collecting.heap = vm_field(KIND_GC, process, settings.process_heap);
	collecting.used = used_words(process);
	collecting.abandoned = vm_field(KIND_GC, process, settings.process_abandoned_heap);
	collecting.since = bpf_ktime_get_ns();
	if (bpf_map_update_elem(&collections, &tid, &collecting, BPF_ANY))
		count_failure(KIND_GC);
	return 0;
}

static __always_inline int finish_gc(__u32 tid, __u64 now, bool hibernate)
{
	struct collecting *started = bpf_map_lookup_elem(&collections, &tid);
	__u64 process, duration, after;
	bool began_before, same;
	__u8 class;

	if (!started || !started->since)
		return 0; /* it began before counting */
	process = started->process;
	duration = now - started->since;
	began_before = started_before_gate(KIND_GC, started->since);
	started->since = 0;
	if (began_before)
		return 0; /* it began in an earlier window, which ended before it did */
	if (!settings.process_heap)
		return count_gc(GC_UNKNOWN, 0, tid, id_of(KIND_GC, process), duration, 0, UNKNOWN);
	if (vm_field(KIND_GC, process, settings.process_abandoned_heap))
		return 0; /* delayed */
	after = used_words(process);
	class = gen_gcs(process) == (__u16)(started->gen_gcs + 1) ? GC_MINOR : GC_MAJOR;
	same = started->heap == vm_field(KIND_GC, process, settings.process_heap) &&
	       started->gen_gcs == gen_gcs(process) && started->used == after;
	if (hibernate) {
		class = GC_HIBERNATE;
		same = same &&
		       started->used >= LONG_GC_WORDS; /* a smaller heap may keep its address */
	}
	if (same)
		return 0; /* handed to a dirty scheduler */
	/* How much an abandoned heap held is not known. */
	return count_gc(class, 0, tid, id_of(KIND_GC, process), duration,
			started->abandoned ? 0 : started->used, after);
}

SEC("uretprobe")
int BPF_KRETPROBE(gc_return)
{
	__u64 now = bpf_ktime_get_ns();
	__u32 tid;

	if (!enter_program(PROGRAM_GC_RETURN, &tid))
		return 0;
	return finish_gc(tid, now, false);
}

SEC("uretprobe")
int BPF_KRETPROBE(gc_hibernate_return)
{
	__u64 now = bpf_ktime_get_ns();
	__u32 tid;

	if (!enter_program(PROGRAM_GC_HIBERNATE_RETURN, &tid))
		return 0;
	return finish_gc(tid, now, true);
}

SEC("uprobe")
int BPF_KPROBE(gc_start_usdt)
{
	struct collecting collecting = {};
	__u32 tid;

	if (!enter_program(PROGRAM_GC_START_USDT, &tid))
		return 0;
	collecting.since = bpf_ktime_get_ns();
	if (bpf_map_update_elem(&collections, &tid, &collecting, BPF_ANY))
		count_failure(KIND_GC);
	return 0;
}

/* The end probe has the words that were reclaimed, not the live ones. */
static __always_inline int finish_gc_usdt(struct pt_regs *ctx, __u8 class, __u32 tid, __u64 now)
{
	struct collecting *started = bpf_map_lookup_elem(&collections, &tid);
	__u64 duration = UNKNOWN, process = usdt_pid(ctx, 0);
	struct gc_record *gc;

	if (started && started->since && !started_before_gate(KIND_GC, started->since))
		duration = now - started->since;

	if (started)
		started->since = 0;
	if (settings.shortest_ns && (duration == UNKNOWN || duration < settings.shortest_ns))
		return 0; /* also one of which the beginning was not seen */
	if (!is_wanted(FLAG_TEXT_PID, process))
		return 0;
	count_event(KIND_GC, class);
	if (duration != UNKNOWN)
		observe_duration(KIND_GC, class, duration);
	gc = reserve_record(KIND_GC, class, FLAG_TEXT_PID, tid, process);
	if (gc) {
		gc->duration_ns = duration;
		gc->reclaimed = usdt_argument(ctx, 1);
		gc->live = UNKNOWN;
		submit_record(gc);
	}
	return 0;
}

SEC("uprobe")
int BPF_KPROBE(gc_minor_end_usdt)
{
	__u64 now = bpf_ktime_get_ns();
	__u32 tid;

	if (!enter_program(PROGRAM_GC_MINOR_END_USDT, &tid))
		return 0;
	return finish_gc_usdt(ctx, GC_MINOR, tid, now);
}

SEC("uprobe")
int BPF_KPROBE(gc_major_end_usdt)
{
	__u64 now = bpf_ktime_get_ns();
	__u32 tid;

	if (!enter_program(PROGRAM_GC_MAJOR_END_USDT, &tid))
		return 0;
	return finish_gc_usdt(ctx, GC_MAJOR, tid, now);
}

char LICENSE[] SEC("license") = "GPL";
