/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * dist: connections to other nodes.
 *
 * Hooks:  erts_suspend, erts_resume_processes, erts_dist_command, dist_ctrl_get_data_1,
 *         erts_do_net_exits; or erlang:dist__output, dist__outputv
 * Counts: dist_busy, and how long processes were suspended; dist_output by port and process (a
 *         connection that a process controls, as with TLS); dist_down, by symbol also by peer and
 *         reason
 * Emits:  dist_busy, dist_output, dist_down
 */
#include "terms.bpf.h"
#include "usdt.bpf.h"

/* Since when each process is suspended. LRU: one that is killed meanwhile is never resumed. */
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
/* Processes that one call resumes; beyond these they have no duration. */
#define MAX_RESUMED 128

/*
 * A send to a node whose buffer is full suspends the sender in erts_dsig_send, so the return
 * address of erts_suspend distinguishes this call from all others.
 */
SEC("uprobe")
int BPF_KPROBE(dist_busy_entry, __u64 process)
{
	struct dist_busy_record *busy;
	__u64 caller, id, now;
	__u32 tid;

	if (!enter_program(PROGRAM_DIST_BUSY_ENTRY, &tid))
		return 0;
	caller = vm_word(KIND_DIST_BUSY, PT_REGS_SP(ctx), 0) - target.base;
	if (caller < settings.dsig_send_start || caller >= settings.dsig_send_end)
		return 0;
	id = id_of(KIND_DIST_BUSY, process);
	if (!is_wanted(0, id))
		return 0;
	count_event(KIND_DIST_BUSY, 0);
	now = bpf_ktime_get_ns();
	if (bpf_map_update_elem(&suspended, &id, &now, BPF_ANY))
		count_failure(KIND_DIST_BUSY);
	busy = reserve_record(KIND_DIST_BUSY, 0, 0, tid, id);
	if (busy)
		submit_record(busy);
	return 0;
}

/* A process is resumed. Not inlined, so that the verifier walks it once and not 128 times. */
__noinline int end_suspension(__u64 pid, __u64 now)
{
	__u64 *since = bpf_map_lookup_elem(&suspended, &pid);

	if (!since)
		return 0; /* suspended by a port, or before counting began */
	if (!started_before_gate(KIND_DIST_BUSY, *since))
		observe_duration(KIND_DIST_BUSY, 0, now - *since);
	bpf_map_delete_elem(&suspended, &pid);
	return 0;
}

SEC("uprobe")
int BPF_KPROBE(dist_resume, __u64 list)
{
	__u64 now = bpf_ktime_get_ns();
	struct proc_list one = {};
	__u32 tid;

	if (!enter_program(PROGRAM_DIST_RESUME, &tid))
		return 0;
	for (int i = 0; list && i < MAX_RESUMED; i++) {
		if (bpf_probe_read_user(&one, sizeof(one), (const void *)list)) {
			count_failure(KIND_DIST_BUSY);
			return 0;
		}
		list = one.next;
		end_suspension(one.pid, now);
	}
	return 0;
}

static __always_inline int count_output(__u8 class, __u8 flags, __u32 tid, __u64 process,
					__u64 port)
{
	struct dist_output_record *output;

	if (!is_wanted(flags, process))
		return 0;
	count_event(KIND_DIST_OUTPUT, class);
	output = reserve_record(KIND_DIST_OUTPUT, class, flags, tid, process);
	if (output) {
		output->port = port;
		submit_record(output);
	}
	return 0;
}

SEC("uprobe")
int BPF_KPROBE(dist_output_port, __u64 port)
{
	__u32 tid;

	if (!enter_program(PROGRAM_DIST_OUTPUT_PORT, &tid))
		return 0;
	return count_output(DIST_OUTPUT_PORT, 0, tid,
			    vm_field(KIND_DIST_OUTPUT, port, settings.port_connected),
			    id_of(KIND_DIST_OUTPUT, port));
}

SEC("uprobe")
int BPF_KPROBE(dist_output_process, __u64 process)
{
	__u32 tid;

	if (!enter_program(PROGRAM_DIST_OUTPUT_PROCESS, &tid))
		return 0;
	return count_output(DIST_OUTPUT_PROCESS, 0, tid, id_of(KIND_DIST_OUTPUT, process), 0);
}

SEC("uprobe")
int BPF_KPROBE(dist_output_usdt)
{
	__u32 tid;

	if (!enter_program(PROGRAM_DIST_OUTPUT_USDT, &tid))
		return 0;
	return count_output(DIST_OUTPUT_PORT, FLAG_TEXT_PID, tid, 0, 0);
}

/* Connections that were lost, by peer and reason; those that find no room are failures. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, struct node_down);
	__type(value, __u64);
} downs SEC(".maps");

static __noinline int count_down(__u64 peer, __u64 reason)
{
	struct node_down down = {.peer = peer >> 6, .reason = reason >> 6};
	__u64 one = 1, *count = bpf_map_lookup_elem(&downs, &down);

	if (!count && !bpf_map_update_elem(&downs, &down, &one, BPF_NOEXIST))
		return 0;
	if (!count) /* another CPU was first, or there is no room */
		count = bpf_map_lookup_elem(&downs, &down);
	if (count)
		__sync_fetch_and_add(count, 1);
	else
		count_failure(KIND_DIST_DOWN);
	return 0;
}

/* A connection that was made has ended. */
SEC("uprobe")
int BPF_KPROBE(dist_node_down, __u64 entry, __u64 reason)
{
	struct dist_down_record *down;
	__u64 peer;
	__u32 tid;

	if (!enter_program(PROGRAM_DIST_NODE_DOWN, &tid))
		return 0;
	count_event(KIND_DIST_DOWN, 0);
	peer = vm_word(KIND_DIST_DOWN, entry, settings.dist_sysname);
	reason = is_atom(reason) ? reason : 0;
	count_down(peer, reason);
	down = reserve_record(KIND_DIST_DOWN, 0, 0, tid, 0);
	if (down) {
		down->peer = peer;
		down->reason = reason;
		submit_record(down);
	}
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
