/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * starts: a VM that comes up, told when its first scheduler gets its name.
 *
 * Hooks:  task_rename
 * Counts: starts that were not told, in missed: no room in the ring, or too many of a user
 * Emits:  a header: when, and the pid of the VM in tid; of a process one a second
 *
 * At an exec there is no VM yet, and its file may have any name. When the first scheduler is named
 * the VM's tables are there, and it happens once in each VM. Every exec and every new name of a
 * thread on the host runs this, so a name that is not ours costs one short read.
 *
 * Any program may call a thread so, and as often as it likes. So each is told once a second, and no
 * more than a number of a user's and of all; user space looks for itself where more were missed.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "build.h"
#include "events.generated.h"

#define COMM_BYTES 16
/* 512 starts at once; user space looks at every process of the host if there were more. */
#define RING_BYTES 32768
#define SECOND	   1000000000ull
/* Starts a second that are told, of one user and of the host: user space takes 0.2 ms for each. */
#define OF_USER 32
#define OF_HOST 128

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING_BYTES);
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} missed SEC(".maps");

/* When each process was last told. LRU: a process that ends tells nobody; who falls out of it is
 * told once more, within what its user may.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, __u64);
} told SEC(".maps");

/* How many were told within a second from since on. */
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

union name {
	char text[COMM_BYTES];
	__u64 words[COMM_BYTES / 8];
};

static __always_inline bool same(const union name *one, const union name *other)
{
	return one->words[0] == other->words[0] && one->words[1] == other->words[1];
}

/* Until OTP 25, and since 26 (erts/emulator/beam/erl_process.c). */
static __always_inline bool is_first_scheduler(const union name *name)
{
	const union name old = {"1_scheduler"}, new = {"erts_sched_1"};

	return same(name, &old) || same(name, &new);
}

/* A second of two CPUs may overlap: then a few more are told than most. */
static __always_inline bool within(struct rate *rate, __u64 now, __u64 most)
{
	if (now - rate->since > SECOND) {
		rate->since = now;
		rate->count = 0;
	}
	return __sync_fetch_and_add(&rate->count, 1) < most;
}

static __always_inline bool user_may(__u64 now)
{
	struct rate none = {}, *rate;
	__u32 user = bpf_get_current_uid_gid();

	rate = bpf_map_lookup_elem(&users, &user);
	if (!rate) {
		bpf_map_update_elem(&users, &user, &none, BPF_NOEXIST);
		rate = bpf_map_lookup_elem(&users, &user);
	}
	return rate && within(rate, now, OF_USER);
}

static __always_inline bool host_may(__u64 now)
{
	struct rate *rate;
	__u32 first = 0;

	rate = bpf_map_lookup_elem(&host, &first);
	return rate && within(rate, now, OF_HOST);
}

/* task_rename(struct task_struct *task, const char *comm); a thread names itself, or its sibling.
 */
SEC("raw_tp/task_rename")
int vm_start(struct bpf_raw_tracepoint_args *ctx)
{
	struct {
		struct header header;
		__u64 body[4];
	} * room;
	union name name = {};
	__u64 now, *last, *count;
	__u32 pid, first = 0;

	if (bpf_probe_read_kernel_str(name.text, sizeof(name.text), (const void *)ctx->args[1]) < 0)
		return 0; /* nobody can rename a thread to what cannot be read */
	if (!is_first_scheduler(&name))
		return 0;
	pid = bpf_get_current_pid_tgid() >> 32;
	now = bpf_ktime_get_ns();
	last = bpf_map_lookup_elem(&told, &pid);
	if (last && now - *last < SECOND)
		return 0; /* user space looks at it once more when that second is over */
	bpf_map_update_elem(&told, &pid, &now, BPF_ANY);
	room = user_may(now) && host_may(now) ? bpf_ringbuf_reserve(&ring, sizeof(*room), 0) : 0;
	if (!room) {
		count = bpf_map_lookup_elem(&missed, &first);
		if (count)
			__sync_fetch_and_add(count, 1);
		return 0;
	}
	__builtin_memset(room, 0, sizeof(*room));
	room->header.time_ns = now;
	room->header.tid = pid;
	bpf_ringbuf_submit(room, BPF_RB_FORCE_WAKEUP);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
