/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * dist: the way to other nodes.
 *
 * Hooks:  erts_suspend, erts_dist_command, dist_ctrl_get_data_1;
 *         or erlang:dist__output, dist__outputv
 * Counts: dist_busy; dist_output by port and process (a connection held by a process, as with TLS)
 * Emits:  dist_busy, dist_output
 */
#include "usdt.bpf.h"

/*
 * A send to a node whose buffer is full suspends the sender from within erts_dsig_send, so the
 * address that erts_suspend returns to tells this suspend from all others.
 */
SEC("uprobe")
int BPF_KPROBE(dist_busy_entry, __u64 process)
{
	struct dist_busy_record *busy;
	__u64 caller;
	__u32 tid;

	if (!enter(PROGRAM_DIST_BUSY_ENTRY, &tid))
		return 0;
	caller = vm_word(KIND_DIST_BUSY, PT_REGS_SP(ctx), 0);
	if (caller < settings.dsig_send_start || caller >= settings.dsig_send_end)
		return 0;
	count(KIND_DIST_BUSY, 0);
	busy = record(KIND_DIST_BUSY, 0, 0, tid, id_of(KIND_DIST_BUSY, process));
	if (busy)
		emit(busy);
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
