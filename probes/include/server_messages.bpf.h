/* SPDX-License-Identifier: GPL-2.0-only */
/* What a message to a server is, as its term shows: server.bpf.c lists the terms. */
#ifndef SERVER_MESSAGES_BPF_H
#define SERVER_MESSAGES_BPF_H

#include "server_maps.bpf.h"
#include "terms.bpf.h"

/* The subtag of a reference of this node's in its header (erl_term.h). */
#define REFERENCE 0x10

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

#endif
