/* SPDX-License-Identifier: GPL-2.0-only */
/* The life of a call: sent, taken, passed on, replied to, given up. */
#ifndef SERVER_CALLS_BPF_H
#define SERVER_CALLS_BPF_H

#include "server_messages.bpf.h"
#include "server_processes.bpf.h"

static __always_inline void block(struct server_call *call, __u64 calls, __u64 ns)
{
	struct server_edge key = {.caller = call->caller_slot, .callee = call->slot};
	struct server_edge_total *total = bpf_map_lookup_elem(&server_edges, &key), fresh = {};

	if (!total) {
		bpf_map_update_elem(&server_edges, &key, &fresh, BPF_NOEXIST);
		total = bpf_map_lookup_elem(&server_edges, &key);
	}
	if (!total) {
		count(SERVER_LOST);
		return;
	}
	__sync_fetch_and_add(&total->calls, calls);
	__sync_fetch_and_add(&total->blocked_ns, ns);
}

static __always_inline bool is_of(struct server_call *call, struct server_reference *reference)
{
	return call->first == reference->first && call->second == reference->second;
}

/* The call *reference* of *caller*, also where that has given up; NULL if its send was not seen. */
static __always_inline struct server_call *call_of(__u64 caller, struct server_reference *reference)
{
	struct server_call *call = bpf_map_lookup_elem(&server_calls, &caller);

	if (call && is_of(call, reference))
		return call;
	return bpf_map_lookup_elem(&abandoned_calls, reference);
}

/*
 * The caller of an open call calls again, or ends: it has given up, unless it makes several calls
 * at a time.
 */
static __noinline int abandon(struct server_call *call, __u64 now, bool timed_out)
{
	struct server_reference key;
	struct server_stats *stats;

	if (!call)
		return 0;
	key.first = call->first;
	key.second = call->second;
	call->timed_out = timed_out;
	stats = stats_of(call->slot);
	if (stats && timed_out)
		__sync_fetch_and_add(&stats->timeouts, 1);
	block(call, 0, now - call->sent_ns);
	if (bpf_map_update_elem(&abandoned_calls, &key, call, BPF_ANY))
		count(SERVER_LOST);
	return 0;
}

/* A reply to the call *reference* of *caller* is sent; false if it is none to a call that is known.
 */
static __noinline int reply(__u64 caller, struct server_reference *reference, __u64 now)
{
	struct server_stats *stats;
	struct server_call *call;

	if (!reference)
		return 0;
	call = call_of(caller, reference);
	if (!call || call->replied_ns)
		return 0;
	call->replied_ns = now;
	stats = stats_of(call->server_slot);
	if (stats && call->taken_ns)
		OBSERVE(stats, service, now - call->taken_ns);
	return 1;
}

/*
 * Another process than its caller sends a request: a server passes on a call that it does not reply
 * to itself. Its work on it ends, that of the next server begins.
 */
static __noinline int pass_on(struct parsed *parsed, __u32 slot, __u64 now)
{
	struct server_stats *stats;
	struct server_call *call;

	if (!parsed)
		return 0;
	call = call_of(parsed->caller, &parsed->reference);
	if (!call || call->replied_ns)
		return 0;
	stats = stats_of(call->server_slot);
	if (stats && call->taken_ns)
		OBSERVE(stats, service, now - call->taken_ns);
	call->server_slot = slot;
	call->queued_ns = now;
	call->taken_ns = 0;
	call->late = 0;
	return 1;
}

/* A call is sent; it is not followed where *now* is 0. */
static __always_inline void begin(__u64 sender, __u64 sender_id, __u32 slot, struct parsed *parsed,
				  __u64 now)
{
	struct server_call call = {.sent_ns = now, .queued_ns = now}, *before;
	struct server_process *from = NULL;
	struct server_stats *stats = stats_of(slot);

	call.slot = call.server_slot = slot;
	call.first = parsed->reference.first;
	call.second = parsed->reference.second;
	if (sender_id)
		from = process_of(sender, sender_id, false);
	if (from)
		call.caller_slot = from->slot;
	if (stats)
		__sync_fetch_and_add(&stats->calls, 1);
	block(&call, 1, 0);
	if (!now)
		return;
	if (sender_id != parsed->caller) {
		pass_on(parsed, slot, now);
		return;
	}
	before = bpf_map_lookup_elem(&server_calls, &parsed->caller);
	if (before)
		abandon(before, now, !(from && from->asynchronous));
	if (bpf_map_update_elem(&server_calls, &parsed->caller, &call, BPF_ANY))
		count(SERVER_LOST);
}

/* The caller *id* takes a reply, or the news that the server has ended. True if it was one. */
static __noinline int finish(__u64 id, struct parsed *parsed, __u64 now)
{
	struct server_stats *stats, *served;
	struct server_process *caller;
	struct server_call *call;
	bool again = false;

	if (!parsed)
		return 0;
	call = bpf_map_lookup_elem(&server_calls, &id);
	if (!call || !is_of(call, &parsed->reference)) {
		call = bpf_map_lookup_elem(&abandoned_calls, &parsed->reference);
		again = true;
	}
	if (!call)
		return 0;
	stats = stats_of(call->slot);
	if (!stats)
		return 0;
	if (parsed->kind == MESSAGE_DOWN) {
		__sync_fetch_and_add(&stats->down, 1);
	} else {
		__sync_fetch_and_add(&stats->answered, 1);
		OBSERVE(stats, call, now - call->sent_ns);
	}
	if (!again) {
		block(call, 0, now - call->sent_ns);
		bpf_map_delete_elem(&server_calls, &id);
		return 1;
	}
	/* It has not given up, it has several calls open. */
	if (call->timed_out)
		__sync_fetch_and_add(&stats->timeouts, -1);
	served = stats_of(call->server_slot);
	if (call->late && served)
		__sync_fetch_and_add(&served->abandoned, -1);
	caller = bpf_map_lookup_elem(&server_processes, &id);
	if (caller)
		caller->asynchronous = 1;
	bpf_map_delete_elem(&abandoned_calls, &parsed->reference);
	return 1;
}

/* The server takes a request; false if its send was not seen. */
static __noinline int take_call(struct parsed *parsed, __u64 now)
{
	struct server_stats *stats;
	struct server_call *call;

	if (!parsed)
		return 0;
	call = call_of(parsed->caller, &parsed->reference);
	if (!call || call->taken_ns)
		return 0;
	/* Set when the caller gave up. */
	call->late = call->timed_out;
	call->taken_ns = now;
	stats = stats_of(call->server_slot);
	if (!stats)
		return 0;
	OBSERVE(stats, queue, now - call->queued_ns);
	if (call->late)
		__sync_fetch_and_add(&stats->abandoned, 1);
	return 1;
}

/*
 * When the message was sent that *receiver* takes; 0 if that was not seen. The entry of another
 * message that lay at the same address goes as well.
 */
static __noinline __u64 sent_at(__u64 message, __u64 receiver, __u64 sender)
{
	struct server_message *waiting = bpf_map_lookup_elem(&server_messages, &message);
	__u64 sent_ns = 0;

	if (!waiting)
		return 0;
	if (waiting->receiver == receiver && waiting->sender == sender)
		sent_ns = waiting->sent_ns;
	bpf_map_delete_elem(&server_messages, &message);
	return sent_ns;
}

/* The server's work on a message that has no reply ends. */
static __always_inline void end_work(struct server_process *server, __u64 now)
{
	struct server_stats *stats = stats_of(server->work_slot);

	if (stats && server->since_ns && server->one_way && settings.sees_idle)
		OBSERVE(stats, service, now - server->since_ns);
	server->since_ns = 0;
}

#endif
