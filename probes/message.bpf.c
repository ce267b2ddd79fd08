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
 * Messages from timers, ports, the VM itself and NIFs (enif_send) are not sends of a process: they
 * are not counted as sends, but are counted when they are received.
 */
#include "form.bpf.h"
#include "usdt.bpf.h"

static __always_inline int count_send(__u8 class, __u8 flags, __u32 tid, __u64 from, __u64 to,
				      __u64 words, __u64 message, __u64 form)
{
	struct send_record *send;

	if (!is_wanted(flags, from))
		return 0;
	count_event(KIND_SEND, class);
	send = reserve_record(KIND_SEND, class, flags, tid, from);
	if (send) {
		send->receiver = to;
		send->size = words;
		send->message = message;
		send->form = form;
		submit_record(send);
	}
	return 0;
}

/*
 * At the call of erts_queue_proc_message the two processes are in the same registers as at the
 * function's entry, and the message is in another one (OTP-25.2.3 and 27.3.4.1 erl_message.c).
 */
SEC("uprobe")
int BPF_KPROBE(send_local, __u64 sender, __u64 receiver)
{
	__u64 from = 0, to = 0, message = 0, term = 0;
	__u32 tid;

	if (!enter_program(PROGRAM_SEND_LOCAL, &tid))
		return 0;
	if (needs_process(KIND_SEND))
		from = id_of(KIND_SEND, sender);
	if (is_streamed(KIND_SEND)) {
		to = id_of(KIND_SEND, receiver);
		if (settings.send_message_register)
			bpf_probe_read_kernel(&message, sizeof(message),
					      (void *)ctx + settings.send_message_register);
		if (settings.send_term_register)
			bpf_probe_read_kernel(&term, sizeof(term),
					      (void *)ctx + settings.send_term_register);
	}
	return count_send(SEND_LOCAL, 0, tid, from, to, UNKNOWN, message, form_of(KIND_SEND, term));
}

/*
 * Messages to an alias, a reference to a process. They are sent as signals; the receiver turns them
 * into messages if the alias is still active. At the call of proc_queue_signal sender and receiver
 * are pids, and the message is in another register (OTP-25.2.3, 27.3.4.1 and, under another
 * name, 28.0 erl_proc_sig_queue.c).
 */
SEC("uprobe")
int BPF_KPROBE(send_alias, __u64 sender, __u64 from, __u64 receiver)
{
	__u64 to = 0, message = 0;
	__u32 tid;

	if (!enter_program(PROGRAM_SEND_ALIAS, &tid))
		return 0;
	if (settings.send_alias_register) {
		to = receiver;
		bpf_probe_read_kernel(&message, sizeof(message),
				      (void *)ctx + settings.send_alias_register);
	}
	return count_send(SEND_LOCAL, 0, tid, from, to, UNKNOWN, message, 0);
}

/*
 * A message to another node. *context* is its ErtsDSigSendContext, in which the sender stands
 * where settings say so (OTP-25.2.3 and 27.3.4.1 dist.h).
 */
static __always_inline int count_remote(__u32 tid, __u64 context, __u64 term)
{
	__u64 from = 0;

	if (needs_process(KIND_SEND)) {
		from = vm_field(KIND_SEND, context, settings.dsig_from);
		if (!is_pid(from))
			from = 0;
	}
	return count_send(SEND_REMOTE, 0, tid, from, 0, UNKNOWN, 0, form_of(KIND_SEND, term));
}

/* From OTP 28 on the third argument is another one: then the settings do not have the sender. */
SEC("uprobe")
int BPF_KPROBE(send_remote, __u64 context, __u64 receiver, __u64 term)
{
	__u32 tid;

	if (!enter_program(PROGRAM_SEND_REMOTE, &tid))
		return 0;
	return count_remote(tid, context, settings.dsig_from ? term : 0);
}

SEC("uprobe")
int BPF_KPROBE(send_remote_name, __u64 context, __u64 name, __u64 full, __u64 term)
{
	__u32 tid;

	if (!enter_program(PROGRAM_SEND_REMOTE_NAME, &tid))
		return 0;
	return count_remote(tid, context, settings.dsig_from ? term : 0);
}

/* message__send fires for remote sends as well; only a receiver of this node reads as <0.N.S>. */
SEC("uprobe")
int BPF_KPROBE(send_usdt)
{
	__u64 from = 0, to;
	__u32 tid;

	if (!enter_program(PROGRAM_SEND_USDT, &tid))
		return 0;
	to = usdt_pid(ctx, 1);
	if (needs_process(KIND_SEND))
		from = usdt_pid(ctx, 0);
	return count_send(to ? SEND_LOCAL : SEND_REMOTE, FLAG_TEXT_PID, tid, from, to,
			  usdt_argument(ctx, 2), 0, 0);
}

static __always_inline int count_receive(__u8 flags, __u32 tid, __u64 process, __u64 message,
					 __u64 words, __u64 sender, __u64 form)
{
	struct receive_record *receive;

	if (!is_wanted(flags, process))
		return 0;
	count_event(KIND_RECEIVE, 0);
	receive = reserve_record(KIND_RECEIVE, 0, flags, tid, process);
	if (receive) {
		receive->message = message;
		receive->size = words;
		receive->sender = sender;
		receive->form = form;
		submit_record(receive);
	}
	return 0;
}

/* The save pointer of the queue points to the message that is taken. */
SEC("uprobe")
int BPF_KPROBE(receive_entry, __u64 process)
{
	__u64 id = 0, message = 0, sender = 0, term = 0;
	__u32 tid;

	if (!enter_program(PROGRAM_RECEIVE_ENTRY, &tid))
		return 0;
	if (needs_process(KIND_RECEIVE))
		id = id_of(KIND_RECEIVE, process);
	if (is_streamed(KIND_RECEIVE)) {
		message = vm_field(KIND_RECEIVE, process, settings.process_sig_save);
		if (message)
			message = vm_word(KIND_RECEIVE, message, 0);
		/* m[0] is the message, m[2] its sender. */
		if (message && settings.message_sender) {
			sender = vm_word(KIND_RECEIVE, message, settings.message_sender);
			term = vm_word(KIND_RECEIVE, message, settings.message_sender - 16);
		}
	}
	return count_receive(0, tid, id, message, UNKNOWN, sender, form_of(KIND_RECEIVE, term));
}

SEC("uprobe")
int BPF_KPROBE(receive_usdt)
{
	__u64 process = 0;
	__u32 tid;

	if (!enter_program(PROGRAM_RECEIVE_USDT, &tid))
		return 0;
	if (needs_process(KIND_RECEIVE))
		process = usdt_pid(ctx, 0);
	return count_receive(FLAG_TEXT_PID, tid, process, 0, usdt_argument(ctx, 1), 0, 0);
}

char LICENSE[] SEC("license") = "GPL";
