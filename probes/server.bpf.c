/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * server: calls, casts and other messages of servers, counted and timed by callback module.
 *
 * Hooks:  erts_send_message where it queues the message, erts_proc_sig_send_to_alias or
 * erts_proc_sig_send_altact_msg, beam_jit_remove_message, erts_schedule, erts_do_exit_process
 * Counts: server_stats by module, server_edges by calling and called module
 * Emits:  nothing
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
#include "buckets.bpf.h"
#include "events.generated.h"
#include "terms.bpf.h"

/* ERTS_PSFLG_ACTIVE (OTP-25.2.3 and 27.3.4.1 erl_process.h). */
#define ACTIVE (1U << 13)
/* The subtag of a reference of this node's in its header (erl_term.h). */
#define REFERENCE 0x10
/* Words of a reference with the pid that it is an alias of, without the header. */
#define ALIAS_WORDS 3
/* The key of processes that are no servers in server_modules. */
#define NO_SERVER 1
/* Keys in one slot of a process's dictionary that are read. */
#define COLLISIONS 8
/* Slots that tags leave to modules. */
#define KEPT_FOR_MODULES 64
/* A receive that is this many words deeper than the server's loop is one within a callback. */
#define NESTED 4

const volatile struct server_settings settings; /* the only thing in .rodata */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct server_window);
} server_window SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SERVER_COUNTS);
	__type(key, __u32);
	__type(value, __u64);
} server_counts SEC(".maps");

/*
 * Open calls by the caller's pid. An entry goes when the caller takes the reply, or is informed
 * that the server ended, calls again, or ends; and with the window where ends are not seen.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct server_call);
} server_calls SEC(".maps");

/* Calls whose caller has called again, or ended: the server still has work with them. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct server_reference);
	__type(value, struct server_call);
} abandoned_calls SEC(".maps");

/*
 * Other messages in mailboxes of servers, by ErtsMessage. An entry goes when the message is taken.
 * User space removes what is left: that of servers that ended, and of messages that a garbage
 * collection has moved to another ErtsMessage.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct server_message);
} server_messages SEC(".maps");

/* Processes by pid. One that is evicted is learned again. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct server_process);
} server_processes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SERVER_SLOTS);
	__type(key, struct server_module);
	__type(value, __u32);
} server_modules SEC(".maps");

/* Slots of tags of the requests to one module. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SERVER_SLOTS);
	__type(key, struct server_tag);
	__type(value, __u32);
} server_tags SEC(".maps");

/* The number of tags that have slots, by the slot of their module. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SERVER_SLOTS);
	__type(key, __u32);
	__type(value, __u32);
} server_tagged SEC(".maps");

/* The number of slots that are taken. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} server_taken SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SERVER_SLOTS);
	__type(key, __u32);
	__type(value, struct server_stats);
} server_stats SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct server_edge);
	__type(value, struct server_edge_total);
} server_edges SEC(".maps");

/* Count one more, and return how many there are on this CPU. */
static __always_inline __u64 count(enum server_count which)
{
	__u32 key = which;
	__u64 *value = bpf_map_lookup_elem(&server_counts, &key);

	if (!value)
		return 0; /* cannot be: the key is within the map */
	__sync_fetch_and_add(value, 1);
	return *value;
}

/* The time, if this hit is on the target and counts; otherwise 0. */
static __always_inline __u64 enter(enum server_count program)
{
	__u32 first = 0;

	if (bpf_get_current_pid_tgid() >> 32 != settings.tgid)
		return 0;
	__u64 hits = count(program);

	return in_window(bpf_map_lookup_elem(&server_window, &first), hits);
}

static __always_inline bool read_words(__u64 *words, __u32 bytes, __u64 address)
{
	if (!bpf_probe_read_user(words, bytes, (const void *)address))
		return true;
	count(SERVER_UNREADABLE);
	return false;
}

static __always_inline __u64 word(__u64 address)
{
	__u64 value = 0;

	read_words(&value, sizeof(value), address);
	return value;
}

static __always_inline struct server_stats *stats_of(__u32 slot)
{
	return bpf_map_lookup_elem(&server_stats, &slot);
}

#define OBSERVE(stats, which, duration)                                                            \
	do {                                                                                       \
		__u64 _ns = (duration);                                                            \
		__u32 _bucket = bucket_of(_ns);                                                    \
		if (_bucket < SERVER_BUCKETS) {                                                    \
			__sync_fetch_and_add(&(stats)->which##_ns, _ns);                           \
			__sync_fetch_and_add(&(stats)->which[_bucket], 1);                         \
		}                                                                                  \
	} while (0)

/* Messages ---------------------------------------------------------------------------------- */

enum message {
	MESSAGE_CALL,
	MESSAGE_CAST,
	MESSAGE_INFO,
	MESSAGE_REPLY,
	MESSAGE_DOWN,
	MESSAGE_SYSTEM
};

struct parsed {
	enum message kind;
	__u64 caller;  /* of a call: a pid of this node, otherwise 0 */
	__u64 request; /* of a call or a cast: what its server is asked for */
	struct server_reference reference;
};

/* Read a reference of this node's; false if *term* is none. */
static __always_inline bool read_reference(__u64 term, struct server_reference *reference)
{
	__u64 words[3] = {};

	if (!is_boxed(term) || !read_words(words, sizeof(words), (__u64)untag(term)) ||
	    header_subtag(words[0]) != REFERENCE)
		return false;
	reference->first = words[1];
	reference->second = words[2];
	return true;
}

/* The tag of a call is Ref, [alias|Ref], or [[alias|Ref]|_]. */
static __always_inline bool read_tag(__u64 term, struct server_reference *reference)
{
	__u64 cell[2] = {};

	if (is_list(term)) {
		if (!read_words(cell, sizeof(cell), (__u64)untag(term)))
			return false;
		if (is_list(cell[0]) && !read_words(cell, sizeof(cell), (__u64)untag(cell[0])))
			return false;
		if (cell[0] != settings.am_alias)
			return false;
		term = cell[1];
	}
	return read_reference(term, reference);
}

/* {From, Tag} of a call; false if *term* is none. */
static __always_inline bool read_from(__u64 term, __u64 label, struct parsed *parsed)
{
	__u64 from[3] = {};

	if (!is_boxed(term) || !read_words(from, sizeof(from), (__u64)untag(term)) ||
	    from[0] != tuple_header(2))
		return false;
	if (label != settings.am_gen_call && label != from[1])
		return false;
	if (is_pid(from[1]))
		parsed->caller = from[1];
	/* A caller on another node has a reference of that node, which no one is asked for. */
	return read_tag(from[2], &parsed->reference) || !parsed->caller;
}

static __always_inline void parse(__u64 term, struct parsed *parsed)
{
	__u64 words[4] = {};

	parsed->kind = MESSAGE_INFO;
	if (!is_boxed(term) || bpf_probe_read_user(words, sizeof(words), untag(term)) ||
	    !is_tuple_header(words[0]))
		return;
	if (words[0] == tuple_header(2)) {
		/* gen_event:notify sends {notify, Event}. */
		if (words[1] == settings.am_gen_cast || words[1] == settings.am_notify)
			parsed->kind = MESSAGE_CAST;
		if (parsed->kind == MESSAGE_CAST)
			parsed->request = words[2];
		else if (is_pointer(words[1]) && read_tag(words[1], &parsed->reference))
			parsed->kind = MESSAGE_REPLY;
	} else if (words[0] == tuple_header(3)) {
		/* gen_event takes the caller's pid in place of '$gen_call'. */
		if ((words[1] == settings.am_gen_call || is_pid(words[1])) &&
		    read_from(words[2], words[1], parsed))
			parsed->kind = MESSAGE_CALL;
		else if (words[1] == settings.am_system)
			parsed->kind = MESSAGE_SYSTEM;
		if (parsed->kind == MESSAGE_CALL)
			parsed->request = words[3];
	} else if (words[0] == tuple_header(5) && words[1] == settings.am_down) {
		if (read_reference(words[2], &parsed->reference))
			parsed->kind = MESSAGE_DOWN;
	}
}

/* Processes --------------------------------------------------------------------------------- */

/* Find {Module, Function, Arity} of '$initial_call' in a process's dictionary; false if it has
 * none. The VM's hash of an atom is its index (erl_process_dict.c). */
static __noinline int read_initial_call(__u64 process, __u64 *call)
{
	__u64 table = word(process + settings.process_dictionary), head[2] = {}, pair[3] = {};
	__u32 mask, used, index;
	__u64 term, rest;

	if (!call || !table || !read_words(head, sizeof(head), table))
		return 0;
	mask = (__u32)head[0];
	used = head[0] >> 32;
	index = (__u32)(settings.am_initial_call >> 6) & mask;
	if (index >= used)
		index &= mask >> 1;
	term = word(table + 24 + (__u64)index * 8);
	for (int i = 0; i < COLLISIONS; i++) {
		__u64 cell[2] = {};

		rest = 0;
		if (is_list(term)) {
			if (!read_words(cell, sizeof(cell), (__u64)untag(term)))
				return 0;
			term = cell[0];
			rest = cell[1];
		}
		if (!is_boxed(term) || !read_words(pair, sizeof(pair), (__u64)untag(term)))
			return 0;
		if (pair[0] == tuple_header(2) && pair[1] == settings.am_initial_call) {
			__u64 triple[4] = {};

			if (!is_boxed(pair[2]) ||
			    !read_words(triple, sizeof(triple), (__u64)untag(pair[2])) ||
			    triple[0] != tuple_header(3) || !is_atom(triple[1]) ||
			    !is_atom(triple[2]))
				return 0;
			call[0] = triple[1];
			call[1] = triple[2];
			call[2] = triple[3] >> 4;
			return 1;
		}
		term = rest;
	}
	return 0;
}

/* The number of a slot that was free, of which *kept* are not given away; otherwise SLOT_OTHER. */
static __always_inline __u32 take_slot(__u32 kept)
{
	__u32 first = 0, slot, *taken = bpf_map_lookup_elem(&server_taken, &first);

	if (!taken || *taken >= SERVER_SLOTS - SLOT_FIRST - kept)
		return SLOT_OTHER;
	slot = __sync_fetch_and_add(taken, 1) + SLOT_FIRST;
	return slot < SERVER_SLOTS ? slot : SLOT_OTHER;
}

static __noinline __u32 slot_of(__u64 module, __u64 function)
{
	struct server_module key = {.module = module, .function = function};
	__u32 slot, *known = bpf_map_lookup_elem(&server_modules, &key);

	if (known)
		return *known;
	slot = take_slot(0);
	if (slot == SLOT_OTHER)
		return SLOT_OTHER;
	/* Where another CPU was first, this number stays unused. */
	if (bpf_map_update_elem(&server_modules, &key, &slot, BPF_NOEXIST)) {
		known = bpf_map_lookup_elem(&server_modules, &key);
		return known ? *known : SLOT_OTHER;
	}
	return slot;
}

/*
 * The slot of a request to the module of *slot*: that of the module, or of the request's tag. The
 * slot of the module also takes what is no request or has no tag, and the tags without a slot.
 */
static __noinline __u32 slot_of_request(__u32 slot, __u64 request)
{
	struct server_tag key = {.slot = slot, .tag = request};
	__u32 *known, *tagged, own;
	__u64 words[2] = {};

	if (!settings.by_tag || slot < SLOT_FIRST)
		return slot;
	if (is_boxed(request)) {
		if (!read_words(words, sizeof(words), (__u64)untag(request)) ||
		    !is_tuple_header(words[0]) || words[0] == tuple_header(0))
			return slot;
		key.tag = words[1];
	}
	if (!is_atom(key.tag))
		return slot;
	known = bpf_map_lookup_elem(&server_tags, &key);
	if (known)
		return *known;
	tagged = bpf_map_lookup_elem(&server_tagged, &slot);
	if (!tagged || *tagged >= SERVER_TAGS || __sync_fetch_and_add(tagged, 1) >= SERVER_TAGS)
		return slot;
	own = take_slot(KEPT_FOR_MODULES);
	if (own == SLOT_OTHER)
		return slot;
	/* Where another CPU was first, this number stays unused. */
	if (bpf_map_update_elem(&server_tags, &key, &own, BPF_NOEXIST)) {
		known = bpf_map_lookup_elem(&server_tags, &key);
		return known ? *known : slot;
	}
	return own;
}

/*
 * Find out what the process at *address* is, and remember it. One that is sent a call or a cast is
 * a server even if its first function is not init/1, as that of an agent is not.
 */
static __noinline int learn(__u64 address, __u64 id, bool served)
{
	struct server_process found = {}, *known;
	__u64 call[3] = {}, module;

	if (read_initial_call(address, call)) {
		found.is_server = served || (call[1] == settings.am_init && call[2] == 1);
		if (!found.is_server)
			found.slot = slot_of(call[0], NO_SERVER);
		else if (call[1] == settings.am_init || call[0] == settings.am_supervisor)
			found.slot =
			    slot_of(call[0] == settings.am_supervisor ? call[1] : call[0], 0);
		else
			found.slot = slot_of(call[0], call[1]);
	} else {
		module = word(address + settings.process_module);
		found.is_server = served;
		found.unsure = module == settings.am_proc_lib;
		if (!is_atom(module) || module == settings.am_erlang || found.unsure)
			found.slot = SLOT_PROCESSES;
		else
			found.slot = slot_of(module, served ? 0 : NO_SERVER);
	}
	known = bpf_map_lookup_elem(&server_processes, &id);
	if (known) {
		found.depth = known->depth;
		found.asynchronous = known->asynchronous;
	}
	if (bpf_map_update_elem(&server_processes, &id, &found, BPF_ANY))
		count(SERVER_LOST);
	return 0;
}

/* What is known of a process, which is learned where nothing is. NULL where the map is full. */
static __always_inline struct server_process *process_of(__u64 address, __u64 id, bool served)
{
	struct server_process *found = bpf_map_lookup_elem(&server_processes, &id);

	if (!found || found->unsure || (served && !found->is_server)) {
		learn(address, id, served);
		found = bpf_map_lookup_elem(&server_processes, &id);
	}
	return found;
}

/* Calls ------------------------------------------------------------------------------------- */

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

/* A call is sent. */
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

/* Programs ---------------------------------------------------------------------------------- */

/* At the call of erts_queue_proc_message, as in message.bpf.c; the last argument is the term. */
SEC("uprobe")
int BPF_KPROBE(server_send, __u64 sender, __u64 receiver, __u64 locks, __u64 message, __u64 term)
{
	struct server_message waiting = {};
	struct server_process *server;
	struct parsed parsed = {};
	__u64 now = enter(SERVER_SEND), id, from;
	bool served;
	__u32 slot;

	if (!now || !receiver)
		return 0;
	parse(term, &parsed);
	id = word(receiver);
	if (parsed.kind == MESSAGE_REPLY && reply(id, &parsed.reference, now))
		return 0; /* its caller waits for it: it is no message of its own */
	served = parsed.kind == MESSAGE_CALL || parsed.kind == MESSAGE_CAST;
	server = process_of(receiver, id, served);
	if (!server || !server->is_server)
		return 0;
	slot = slot_of_request(server->slot, parsed.request);
	from = sender ? word(sender) : 0;
	if (parsed.kind == MESSAGE_CALL && parsed.caller) {
		begin(sender, from, slot, &parsed, now);
		return 0;
	}
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
	if (parsed.kind == MESSAGE_CAST)
		__sync_fetch_and_add(&stats->casts, 1);
	else if (parsed.kind == MESSAGE_CALL && !parsed.caller)
		__sync_fetch_and_add(&stats->calls, 1); /* from another node */
	else if (parsed.kind != MESSAGE_CALL && parsed.kind != MESSAGE_SYSTEM)
		__sync_fetch_and_add(&stats->infos, 1);
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
