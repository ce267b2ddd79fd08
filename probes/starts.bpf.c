/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * starts: reports each VM that starts, when its first scheduler thread is named.
 *
 * Hooks:  task_rename
 * Counts: starts that were not reported, in missed: the ring was full, or a rate limit was exceeded
 * Emits:  a header: the time, and the pid of the VM in tid; at most one a second for each process
 *
 * At an exec there is no VM yet, and its file may have any name. When the first scheduler is named,
 * the VM's tables exist, and that happens once in each VM. The program runs at each exec and each
 * rename of a thread on the host, so another name costs one short read.
 *
 * Any program may give a thread this name, as often as it likes. So a process is reported once a
 * second, and the starts of a user and of the host are limited; user space scans /proc when starts
 * were missed.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "build.h"
#include "events.generated.h"

#define COMM_BYTES 16
#define SECOND_NS  1000000000ull
/* Starts a second that are reported, of one user and of the host: user space takes 0.2 ms each. */
#define USER_LIMIT 32
#define HOST_LIMIT 128

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, STARTS_RING_BYTES);
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} missed SEC(".maps");

/* When each process was last reported. LRU, because ends of processes are not seen; a process that
 * is evicted may be reported once more, within the limits.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, __u64);
} reported SEC(".maps");

/* Starts in the second that began at since. */
struct rate {
	__u64 since;
	__u64 count;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024); /* users who start VMs at a time */
	__type(key, __u32);
	__type(value, struct rate);
} users SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct rate);
} host SEC(".maps");

union comm {
	char text[COMM_BYTES];
	__u64 words[COMM_BYTES / 8];
};

static __always_inline bool is_equal(const union comm *one, const union comm *other)
{
	return one->words[0] == other->words[0] && one->words[1] == other->words[1];
}

/* Until OTP 25, and since 26 (erts/emulator/beam/erl_process.c). */
static __always_inline bool is_first_scheduler(const union comm *comm)
{
	const union comm old = {"1_scheduler"}, new = {"erts_sched_1"};

	return is_equal(comm, &old) || is_equal(comm, &new);
}

/* Count a start; false above *limit* a second. Two CPUs at once may exceed it by a few. */
static __always_inline bool within_rate(struct rate *rate, __u64 now, __u64 limit)
{
	if (now - rate->since > SECOND_NS) {
		rate->since = now;
		rate->count = 0;
	}
	return __sync_fetch_and_add(&rate->count, 1) < limit;
}

static __always_inline bool within_user_limit(__u64 now)
{
	struct rate none = {}, *rate;
	__u32 user = bpf_get_current_uid_gid();

	rate = bpf_map_lookup_elem(&users, &user);
	if (!rate) {
		bpf_map_update_elem(&users, &user, &none, BPF_NOEXIST);
		rate = bpf_map_lookup_elem(&users, &user);
	}
	return rate && within_rate(rate, now, USER_LIMIT);
}

static __always_inline bool within_host_limit(__u64 now)
{
	struct rate *rate;
	__u32 first = 0;

	rate = bpf_map_lookup_elem(&host, &first);
	return rate && within_rate(rate, now, HOST_LIMIT);
}

/* task_rename(struct task_struct *task, const char *comm): of the thread itself or a sibling. */
SEC("raw_tp/task_rename")
int vm_start(struct bpf_raw_tracepoint_args *ctx)
{
	struct record *record;
	union comm comm = {};
	__u64 now, *last, *count;
	__u32 pid, first = 0;

	if (bpf_probe_read_kernel_str(comm.text, sizeof(comm.text), (const void *)ctx->args[1]) < 0)
		return 0; /* cannot be: the kernel has just read it */
	if (!is_first_scheduler(&comm))
		return 0;
	pid = bpf_get_current_pid_tgid() >> 32;
	now = bpf_ktime_get_ns();
	last = bpf_map_lookup_elem(&reported, &pid);
	if (last && now - *last < SECOND_NS)
		return 0; /* user space inspects it again after that second */
	bpf_map_update_elem(&reported, &pid, &now, BPF_ANY);
	record = NULL;
	if (within_user_limit(now) && within_host_limit(now))
		record = bpf_ringbuf_reserve(&ring, sizeof(*record), 0);
	if (!record) {
		count = bpf_map_lookup_elem(&missed, &first);
		if (count)
			__sync_fetch_and_add(count, 1);
		return 0;
	}
	__builtin_memset(record, 0, sizeof(*record));
	record->header.time_ns = now;
	record->header.tid = pid;
	bpf_ringbuf_submit(record, BPF_RB_FORCE_WAKEUP);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
