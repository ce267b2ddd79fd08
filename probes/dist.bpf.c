/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * dist: the way to other nodes.
 *
 * Hooks:  erts_suspend, erts_resume_processes, erts_dist_command, dist_ctrl_get_data_1;
 *         or erlang:dist__output, dist__outputv
 * Counts: dist_busy, and how long processes were suspended; dist_output by port and process (a
 * connection held by a process, as with TLS) Emits:  dist_busy, dist_output
 */
#include "usdt.bpf.h"

/* Since when each process waits. LRU: one that is killed while it waits is never resumed. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u64);
} suspended SEC(".maps");

/* struct ErtsProcList_, OTP 24 to 29 (erl_process.h) */
struct proc_list {
	__u64 pid, started_interval, next;
};
/* Those of one connection that are resumed at once; of more, the rest has no duration. */
#define MAX_RESUMED 128

/*
 * A send to a node whose buffer is full suspends the sender from within erts_dsig_send, so the
 * address that erts_suspend returns to tells this suspend from all others.
 */
SEC("uprobe")
int BPF_KPROBE(dist_busy_entry, __u64 process)
{
	struct dist_busy_record *busy;
	__u64 caller, id, now;
	__u32 tid;

	if (!enter(PROGRAM_DIST_BUSY_ENTRY, &tid))
		return 0;
	caller = vm_word(KIND_DIST_BUSY, PT_REGS_SP(ctx), 0) - target.base;
	if (caller < settings.dsig_send_start || caller >= settings.dsig_send_end)
		return 0;
	count(KIND_DIST_BUSY, 0);
	id = id_of(KIND_DIST_BUSY, process);
	now = bpf_ktime_get_ns();
	if (bpf_map_update_elem(&suspended, &id, &now, BPF_ANY))
		refuse(KIND_DIST_BUSY);
	busy = record(KIND_DIST_BUSY, 0, 0, tid, id);
	if (busy)
		emit(busy);
	return 0;
}

/* One waits no longer. A function of its own, so that the verifier walks it once, not 128 times. */
__noinline int resumed(__u64 pid, __u64 now)
{
	__u64 *since = bpf_map_lookup_elem(&suspended, &pid);

	if (!since)
		return 0; /* it waited for a port, or began to before we came */
	if (!stale(KIND_DIST_BUSY, *since))
		observe(KIND_DIST_BUSY, 0, now - *since);
	bpf_map_delete_elem(&suspended, &pid);
	return 0;
}

SEC("uprobe")
int BPF_KPROBE(dist_resume, __u64 list)
{
	__u64 now = bpf_ktime_get_ns();
	struct proc_list one = {};
	__u32 tid;

	if (!enter(PROGRAM_DIST_RESUME, &tid))
		return 0;
	for (int place = 0; list && place < MAX_RESUMED; place++) {
		if (bpf_probe_read_user(&one, sizeof(one), (const void *)list)) {
			refuse(KIND_DIST_BUSY);
			return 0;
		}
		list = one.next;
		resumed(one.pid, now);
	}
	return 0;
}

static __always_inline int output(__u8 class, __u8 flags, __u32 tid, __u64 process, __u64 port)
{
	struct dist_output_record *output;

	count(KIND_DIST_OUTPUT, class);
	output = record(KIND_DIST_OUTPUT, class, flags, tid, process);
	if (output) {
		output->port = port;
		emit(output);
	}
	return 0;
}

SEC("uprobe")
int BPF_KPROBE(dist_output_port, __u64 port)
{
	__u32 tid;

	if (!enter(PROGRAM_DIST_OUTPUT_PORT, &tid))
		return 0;
	return output(DIST_OUTPUT_PORT, 0, tid,
		      vm_field(KIND_DIST_OUTPUT, port, settings.port_connected),
		      id_of(KIND_DIST_OUTPUT, port));
}

SEC("uprobe")
int BPF_KPROBE(dist_output_process, __u64 process)
{
	__u32 tid;

	if (!enter(PROGRAM_DIST_OUTPUT_PROCESS, &tid))
		return 0;
	return output(DIST_OUTPUT_PROCESS, 0, tid, id_of(KIND_DIST_OUTPUT, process), 0);
}

SEC("uprobe")
int BPF_KPROBE(dist_output_usdt)
{
	__u32 tid;

	if (!enter(PROGRAM_DIST_OUTPUT_USDT, &tid))
		return 0;
	return output(DIST_OUTPUT_PORT, FLAG_TEXT_PID, tid, 0, 0);
}

char LICENSE[] SEC("license") = "GPL";
