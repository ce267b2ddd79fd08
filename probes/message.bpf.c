/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * message: messages between processes.
 *
 * Hooks:  erts_send_message and erts_proc_sig_send_to_alias where they queue the message,
 * erts_dsig_send_msg, erts_dsig_send_reg_msg, beam_jit_remove_message; or erlang:message__send,
 * message__receive
 * Counts: send by local and remote, receive
 * Emits:  send, receive
 *
 * Messages from timers, ports, the VM itself and NIFs (enif_send) are no sends of a process and are
 * not counted as sends; they are counted when they are received.
 */
#include "usdt.bpf.h"

static __always_inline int sent(__u8 class, __u8 flags, __u32 tid, __u64 from, __u64 to,
				__u64 words, __u64 message)
{
	struct send_record *send;

	count(KIND_SEND, class);
	send = record(KIND_SEND, class, flags, tid, from);
	if (send) {
		send->receiver = to;
		send->size = words;
		send->message = message;
		emit(send);
	}
	return 0;
}

/*
 * At the call of erts_queue_proc_message the two processes are the arguments that they are at the
 * entry, and the message stands beside them (OTP-25.2.3 and 27.3.4.1 erl_message.c).
 */
SEC("uprobe")
int BPF_KPROBE(send_local, __u64 sender, __u64 receiver)
{
	__u64 from = 0, to = 0, message = 0;
	__u32 tid;

	if (!enter(PROGRAM_SEND_LOCAL, &tid))
		return 0;
	if (settings.streamed & (1ULL << KIND_SEND)) {
		from = id_of(KIND_SEND, sender);
		to = id_of(KIND_SEND, receiver);
		if (settings.send_message_register)
			bpf_probe_read_kernel(&message, sizeof(message),
					      (void *)ctx + settings.send_message_register);
	}
	return sent(SEND_LOCAL, 0, tid, from, to, UNKNOWN, message);
}

/*
 * Messages to an alias, a reference that stands for a process: signals until their receiver has
 * seen that the alias is still one, and then the messages that they were. At the call of
 * proc_queue_signal sender and receiver are pids, and the message stands beside them
 * (OTP-25.2.3, 27.3.4.1 and, by another name, 28.0 erl_proc_sig_queue.c).
 */
SEC("uprobe")
int BPF_KPROBE(send_alias, __u64 sender, __u64 from, __u64 receiver)
{
	__u64 to = 0, message = 0;
	__u32 tid;

	if (!enter(PROGRAM_SEND_ALIAS, &tid))
		return 0;
	if (settings.send_alias_register) {
		to = receiver;
		bpf_probe_read_kernel(&message, sizeof(message),
				      (void *)ctx + settings.send_alias_register);
	}
	return sent(SEND_LOCAL, 0, tid, from, to, UNKNOWN, message);
}

/* The sender of ErtsDSigSendContext stands behind other fields that move; it is left out. */
SEC("uprobe")
int BPF_KPROBE(send_remote)
{
	__u32 tid;

	if (!enter(PROGRAM_SEND_REMOTE, &tid))
		return 0;
	return sent(SEND_REMOTE, 0, tid, 0, 0, UNKNOWN, 0);
}

SEC("uprobe")
int BPF_KPROBE(send_remote_name)
{
	__u32 tid;

	if (!enter(PROGRAM_SEND_REMOTE_NAME, &tid))
		return 0;
	return sent(SEND_REMOTE, 0, tid, 0, 0, UNKNOWN, 0);
}

/* message__send fires for remote sends as well; only a receiver of this node reads as <0.N.S>. */
SEC("uprobe")
int BPF_KPROBE(send_usdt)
{
	__u64 from = 0, to;
	__u32 tid;

	if (!enter(PROGRAM_SEND_USDT, &tid))
		return 0;
	to = usdt_pid(ctx, 1);
	if (settings.streamed & (1ULL << KIND_SEND))
		from = usdt_pid(ctx, 0);
	return sent(to ? SEND_LOCAL : SEND_REMOTE, FLAG_TEXT_PID, tid, from, to,
		    usdt_argument(ctx, 2), 0);
}

static __always_inline int received(__u8 flags, __u32 tid, __u64 process, __u64 message,
				    __u64 words, __u64 sender)
{
	struct receive_record *receive;

	count(KIND_RECEIVE, 0);
	receive = record(KIND_RECEIVE, 0, flags, tid, process);
	if (receive) {
		receive->message = message;
		receive->size = words;
		receive->sender = sender;
		emit(receive);
	}
	return 0;
}

/* The message being taken is what the save pointer of the queue points to. */
SEC("uprobe")
int BPF_KPROBE(receive_entry, __u64 process)
{
	__u64 id = 0, message = 0, sender = 0;
	__u32 tid;

	if (!enter(PROGRAM_RECEIVE_ENTRY, &tid))
		return 0;
	if (settings.streamed & (1ULL << KIND_RECEIVE)) {
		id = id_of(KIND_RECEIVE, process);
		message = vm_field(KIND_RECEIVE, process, settings.process_sig_save);
		if (message)
			message = vm_word(KIND_RECEIVE, message, 0);
		if (message)
			sender = vm_field(KIND_RECEIVE, message, settings.message_sender);
	}
	return received(0, tid, id, message, UNKNOWN, sender);
}

SEC("uprobe")
int BPF_KPROBE(receive_usdt)
{
	__u64 process = 0;
	__u32 tid;

	if (!enter(PROGRAM_RECEIVE_USDT, &tid))
		return 0;
	if (settings.streamed & (1ULL << KIND_RECEIVE))
		process = usdt_pid(ctx, 0);
	return received(FLAG_TEXT_PID, tid, process, 0, usdt_argument(ctx, 1), 0);
}

char LICENSE[] SEC("license") = "GPL";
