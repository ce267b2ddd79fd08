/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * server: calls, casts and other messages of servers, counted and timed by callback module.
 *
 * Hooks:  erts_send_message where it queues the message, erts_proc_sig_send_to_alias or
 * erts_proc_sig_send_altact_msg, beam_jit_remove_message, erts_schedule, erts_do_exit_process
 * Counts: server_stats by module, server_edges by calling and called module
 * Emits:  nothing
 *
 * In a light window requests are counted when they are sent, and nothing is followed.
 *
 * What a message is shows its term: {'$gen_call', {Caller, Tag}, Request}, {'$gen_cast', Request},
 * {Tag, Reply}, {'DOWN', Reference, ...} (OTP 24 to 29 lib/stdlib/src/gen.erl). The callback module
 * of a server is in '$initial_call' of its dictionary, where proc_lib puts it.
 */
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "build.h"
#include "events.generated.h"
#include "server_calls.bpf.h"

/* ERTS_PSFLG_ACTIVE (OTP-25.2.3 and 27.3.4.1 erl_process.h). */
#define ACTIVE (1U << 13)
/* Words of a reference with the pid that it is an alias of, without the header. */
#define ALIAS_WORDS 3
/* A receive that is this many words deeper than the server's loop is one within a callback. */
#define NESTED 4

/* At the call of erts_queue_proc_message, as in message.bpf.c; the last argument is the term. */
SEC("uprobe")
int BPF_KPROBE(server_send, __u64 sender, __u64 receiver, __u64 locks, __u64 message, __u64 term)
{
	struct server_message waiting = {};
	struct server_process *server;
	struct parsed parsed = {};
	__u64 now = enter(SERVER_SEND), id, from;
	struct server_stats *stats;
	bool served, light;
	__u32 slot;

	if (!now || !receiver)
		return 0;
	light = is_light();
	parse(term, &parsed);
	served = parsed.kind == MESSAGE_CALL || parsed.kind == MESSAGE_CAST;
	if (light && !served)
		return 0;
	id = word(receiver);
	if (parsed.kind == MESSAGE_REPLY && reply(id, &parsed.reference, now))
		return 0; /* its caller waits for it: it is no message of its own */
	server = process_of(receiver, id, served);
	if (!server || !server->is_server)
		return 0;
	slot = slot_of_request(server->slot, parsed.request);
	from = sender ? word(sender) : 0;
	if (parsed.kind == MESSAGE_CALL && parsed.caller) {
		begin(sender, from, slot, &parsed, light ? 0 : now);
		return 0;
	}
	stats = stats_of(slot);
	if (stats && parsed.kind == MESSAGE_CAST)
		__sync_fetch_and_add(&stats->sent_casts, 1);
	if (light)
		return 0;
	waiting.sent_ns = now;
	waiting.receiver = id;
	waiting.sender = from;
	waiting.slot = slot;
	if (bpf_map_update_elem(&server_messages, &message, &waiting, BPF_ANY))
		count(SERVER_LOST);
	return 0;
}

/* At the entry: the third argument is the alias, which ends in the pid of who made it. */
SEC("uprobe")
int BPF_KPROBE(server_reply, __u64 sender, __u64 from, __u64 alias)
{
	struct server_reference reference;
	__u64 now = enter(SERVER_REPLY), words[4] = {};

	if (!now || !is_boxed(alias) || !read_words(words, sizeof(words), (__u64)untag(alias)))
		return 0;
	if (header_subtag(words[0]) != REFERENCE || words[0] >> 6 != ALIAS_WORDS)
		return 0;
	reference.first = words[1];
	reference.second = words[2];
	reply(words[3], &reference, now);
	return 0;
}

/* The save pointer of the queue points to the message that is taken; the fourth argument is the
 * stack pointer of the process. */
SEC("uprobe")
int BPF_KPROBE(server_take, __u64 process, __u64 fcalls, __u64 htop, __u64 stack)
{
	__u64 now = enter(SERVER_TAKE), message, id, sent_ns, words[3] = {};
	struct server_process *server;
	struct parsed parsed = {};
	struct server_stats *stats;
	bool served, seen, reply_like;
	__u32 depth, known, slot;

	if (!now || !process)
		return 0;
	message = word(word(process + settings.process_sig_save));
	/* The term, a token, and the sender (erl_message.h: ERL_MESSAGE_FROM). */
	if (!read_words(words, sizeof(words), message + settings.message_term))
		return 0;
	parse(words[0], &parsed);
	id = word(process);
	sent_ns = sent_at(message, id, words[2]);
	if ((parsed.kind == MESSAGE_REPLY || parsed.kind == MESSAGE_DOWN) &&
	    finish(id, &parsed, now))
		return 0;
	served = parsed.kind == MESSAGE_CALL || parsed.kind == MESSAGE_CAST;
	server = process_of(process, id, served);
	if (!server || !server->is_server)
		return 0;
	slot = slot_of_request(server->slot, parsed.request);
	stats = stats_of(slot);
	if (!stats)
		return 0;
	depth = (word(process + settings.process_hend) - stack) / 8;
	if (sent_ns)
		OBSERVE(stats, queue, now - sent_ns);
	seen = parsed.kind == MESSAGE_CALL && parsed.caller && take_call(&parsed, now);
	known = server->depth;
	/*
	 * The reply to a call from before counting began looks like a message of its own, and in a
	 * window that may be all that is seen of a server.
	 */
	reply_like = parsed.kind == MESSAGE_REPLY || parsed.kind == MESSAGE_DOWN;
	if (!known && reply_like && !settings.sees_idle)
		return 0;
	if (!known || depth < known)
		server->depth = depth;
	if (!known && reply_like)
		return 0;
	if (depth > server->depth + NESTED)
		return 0; /* within a callback: part of the work on the message before */
	end_work(server, now);
	if (parsed.kind == MESSAGE_CAST) {
		__sync_fetch_and_add(&stats->casts, 1);
		if (!is_pid(words[2]))
			__sync_fetch_and_add(&stats->remote_casts, 1);
	} else if (parsed.kind == MESSAGE_CALL && !parsed.caller) {
		__sync_fetch_and_add(&stats->calls, 1);
		__sync_fetch_and_add(&stats->remote_calls, 1);
	} else if (parsed.kind != MESSAGE_CALL && parsed.kind != MESSAGE_SYSTEM) {
		__sync_fetch_and_add(&stats->infos, 1);
	}
	server->since_ns = now;
	server->work_slot = slot;
	server->one_way = !seen && (parsed.kind != MESSAGE_CALL || !parsed.caller);
	return 0;
}

/* The second argument is the process that leaves its scheduler. */
SEC("uprobe")
int BPF_KPROBE(server_out, __u64 dirty_scheduler, __u64 process)
{
	__u64 now = enter(SERVER_OUT), id, hend, stop;
	struct server_process *server;
	__u32 state = 0;

	if (!now || !process)
		return 0;
	id = word(process);
	server = bpf_map_lookup_elem(&server_processes, &id);
	if (!server || !server->since_ns)
		return 0;
	if (bpf_probe_read_user(&state, sizeof(state),
				(void *)(process + settings.process_state)) ||
	    state & ACTIVE)
		return 0; /* it goes on with what it does */
	hend = word(process + settings.process_hend);
	stop = word(process + settings.process_stop);
	if ((hend - stop) / 8 <= server->depth + NESTED)
		end_work(server, now);
	return 0;
}

/*
 * A caller that ends with an open call: it has waited for too long if its reason says so, or if it
 * ended itself later. What else ended it does not matter.
 */
SEC("uprobe")
int BPF_KPROBE(server_exit, __u64 process, __u64 reason)
{
	__u64 now = enter(SERVER_EXIT), id, words[2] = {};
	struct server_process *caller;
	struct server_call *call;
	bool timed_out;

	if (!now || !process)
		return 0;
	id = word(process);
	call = bpf_map_lookup_elem(&server_calls, &id);
	if (call) {
		if (is_boxed(reason))
			read_words(words, sizeof(words), (__u64)untag(reason));
		timed_out = reason == settings.am_normal ||
			    (words[0] == tuple_header(2) && words[1] == settings.am_timeout);
		caller = bpf_map_lookup_elem(&server_processes, &id);
		abandon(call, now, timed_out && !(caller && caller->asynchronous));
		bpf_map_delete_elem(&server_calls, &id);
	}
	bpf_map_delete_elem(&server_processes, &id);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
