/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * starts: a VM that comes up, told when its first scheduler gets its name.
 *
 * Hooks:  task_rename
 * Counts: starts that found no room in the ring, in missed
 * Emits:  a header: when, and the pid of the VM in tid
 *
 * At an exec there is no VM yet, and its file may have any name. When the first scheduler is named
 * the VM's tables are there, and it happens once in each VM. Every exec and every new name of a
 * thread on the host runs this, so a name that is not ours costs one short read.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "build.h"
#include "events.generated.h"

#define COMM_BYTES 16
/* 512 starts at once; user space looks at every process of the host if there were more. */
#define RING_BYTES 32768

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
	__u32 first = 0;
	__u64 *count;

	if (bpf_probe_read_kernel_str(name.text, sizeof(name.text), (const void *)ctx->args[1]) < 0)
		return 0; /* nobody can rename a thread to what cannot be read */
	if (!is_first_scheduler(&name))
		return 0;
	room = bpf_ringbuf_reserve(&ring, sizeof(*room), 0);
	if (!room) {
		count = bpf_map_lookup_elem(&missed, &first);
		if (count)
			__sync_fetch_and_add(count, 1);
		return 0;
	}
	__builtin_memset(room, 0, sizeof(*room));
	room->header.time_ns = bpf_ktime_get_ns();
	room->header.tid = bpf_get_current_pid_tgid() >> 32;
	bpf_ringbuf_submit(room, BPF_RB_FORCE_WAKEUP);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
