/* SPDX-License-Identifier: GPL-2.0-only */
/* Which processes are servers, and the slots of their modules and of tags of requests. */
#ifndef SERVER_PROCESSES_BPF_H
#define SERVER_PROCESSES_BPF_H

#include "server_maps.bpf.h"
#include "terms.bpf.h"

/* The key of processes that are no servers in server_modules. */
#define NO_SERVER 1
/* Keys in one slot of a process's dictionary that are read. */
#define COLLISIONS 8
/* Slots that tags leave to modules. */
#define KEPT_FOR_MODULES 64

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

#endif
