/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * link: packets of connections to other nodes.
 *
 * Hooks:  erts_encode_ext_dist_header_finalize, erts_net_message
 * Counts: dist_out by what is in a packet, dist_in by packet and tick
 * Emits:  dist_out, dist_in
 *
 * Both functions run once for each packet, in the order of the connection and with its port
 * locked, or in the one process that controls it (OTP-25.2.3 and 27.3.4.1 dist.c). So the packets
 * are numbered here: a record that is lost does not move the number of another one.
 */
#include "scope.bpf.h"
#include "terms.bpf.h"

/* One direction of a connection. */
struct direction {
	__u64 entry; /* DistEntry */
	__u32 connection;
	__u32 out;
};

struct packets {
	__u64 count;
	__u64 last; /* of those out: the ErtsDistOutputBuf */
};

/* Packets so far. LRU: a connection that has ended has no packets any more. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct direction);
	__type(value, struct packets);
} packets SEC(".maps");

/* Tags of the external format (OTP's erl_ext_dist): the version, headers of a packet, and terms. */
#define VERSION_MAGIC	131
#define PASS_THROUGH	112
#define DIST_HEADER	68
#define FIRST_FRAGMENT	69
#define NEXT_FRAGMENT	70
#define SMALL_TUPLE	104
#define SMALL_INTEGER	97
#define CACHED_ATOM	82
#define ATOM		100
#define SMALL_ATOM	115
#define UTF8_ATOM	118
#define SMALL_UTF8_ATOM 119
#define NEW_PID		88
#define NEWER_REF	90
/* Bytes of the control tuple that are read: {Operation, From, To, Reference}. */
#define CONTROL_BYTES 56
/* Bytes of a pid and of an atom, where atoms are of the packet's cache. */
#define PID_BYTES    15
#define ATOM_BYTES   2
#define REMOTE_SHIFT 62
#define SERIAL_SHIFT 28

static __always_inline struct packets *packets_of(enum kind kind, __u64 entry, __u32 connection,
						  __u32 out)
{
	struct direction key = {.entry = entry, .connection = connection, .out = out};
	struct packets none = {}, *found = bpf_map_lookup_elem(&packets, &key);

	if (found)
		return found;
	if (bpf_map_update_elem(&packets, &key, &none, BPF_NOEXIST))
		count_failure(kind);
	return bpf_map_lookup_elem(&packets, &key);
}

/* Hash of the last 8 bytes of a packet, never 0. */
static __always_inline __u32 hash_of(__u64 last)
{
	__u32 hash = (__u32)last ^ (__u32)(last >> 32) * 0x9e3779b1;

	return hash ? hash : 1;
}

/* That of the bytes before *end*; 0 if there are fewer than 8. */
static __always_inline __u32 check_of(enum kind kind, __u64 end, __u64 length)
{
	return length < 8 ? 0 : hash_of(vm_word(kind, end - 8, 0));
}

/*
 * That of what the last two of *count* parts have, at *parts*: a short message is a part of its own
 * behind its control tuple. The first two parts are the header, which is not that of the wire yet.
 */
static __always_inline __u32 check_of_parts(enum kind kind, __u64 parts, __u32 count)
{
	__u64 last = parts + 16ULL * (count - 1), tail = 0, before;
	__u64 base = vm_word(kind, last, 0), length = vm_word(kind, last, 8);
	__u64 end, left;

	if (length >= 8 || count < 4)
		return check_of(kind, base + length, length);
	left = vm_word(kind, last - 16, 8);
	end = vm_word(kind, last - 16, 0) + left;
	if (left < 8 || bpf_probe_read_user(&tail, length & 7, (const void *)base))
		return 0;
	before = vm_word(kind, end - 8, 0);
	return hash_of(length ? before >> 8 * length | tail << 8 * (8 - length) : before);
}

static __always_inline __u32 big_endian(const __u8 *bytes)
{
	return (__u32)bytes[0] << 24 | bytes[1] << 16 | bytes[2] << 8 | bytes[3];
}

/* What a packet's operation does (OTP-27.3.4.1 dist.h, enum dop). */
static __always_inline __u8 class_of(__u8 operation)
{
	switch (operation) {
	case 2:
	case 6:
	case 12:
	case 16:
	case 22:
	case 23:
	case 33:
	case 34:
		return DIST_OUT_MESSAGE;
	case 19:
	case 20:
	case 21:
	case 28:
		return DIST_OUT_MONITOR;
	case 1:
	case 4:
	case 35:
	case 36:
		return DIST_OUT_LINK;
	case 3:
	case 8:
	case 13:
	case 18:
	case 24:
	case 25:
	case 26:
	case 27:
		return DIST_OUT_EXIT;
	case 29:
	case 30:
	case 31:
	case 32:
		return DIST_OUT_SPAWN;
	default:
		return DIST_OUT_OTHER;
	}
}

/* What is known of a packet that is sent. */
struct sent {
	__u64 from, receiver;
	__u8 class, operation;
};

/* A message that is sent in fragments: its connection and the number that its fragments have. */
struct fragmented {
	__u64 entry, sequence;
	__u64 connection;
};

/* Sender and receiver of messages whose fragments are under way. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct fragmented);
	__type(value, struct sent);
} fragments SEC(".maps");

static __always_inline __u64 big_endian_word(const __u8 *bytes)
{
	return (__u64)big_endian(bytes) << 32 | big_endian(bytes + 4);
}

/* REMOTE_NAME and the atom at *place* of the cache behind *atoms*; 0 if it has no such place. */
static __always_inline __u64 name_of(__u64 atoms, __u8 places, __u8 place)
{
	__u32 index = 0;
	__u8 bytes[4];

	/* Each place has two bytes, then the index of the atom. */
	if (place >= places ||
	    bpf_probe_read_user(bytes, sizeof(bytes), (const void *)(atoms + 6ULL * place + 2)))
		return 0;
	index = big_endian(bytes);
	return (__u64)REMOTE_NAME << REMOTE_SHIFT | index;
}

/* REMOTE_REF and the low bits of the reference at *at*: two bytes of length, the node, its
 * creation, then the numbers. 0 if there is none. */
static __always_inline __u64 reference_of(const __u8 *at)
{
	if (at[0] != NEWER_REF || at[3] != CACHED_ATOM)
		return 0;
	return (__u64)REMOTE_REF << REMOTE_SHIFT | (big_endian(at + 9) & 0x3ffff) |
	       (__u64)big_endian(at + 13) << 18;
}

/* Read the control tuple behind the header of a packet; what is not understood stays 0. */
static __noinline int read_control(struct sent *sent, __u64 atoms, __u8 places)
{
	__u8 bytes[CONTROL_BYTES] = {};
	const __u8 *to;

	if (!sent)
		return 0;
	if (bpf_probe_read_user(bytes, sizeof(bytes), (const void *)(atoms + 6ULL * places)))
		return 0;
	if (bytes[0] != SMALL_TUPLE || bytes[2] != SMALL_INTEGER)
		return 0;
	sent->operation = bytes[3];
	sent->class = class_of(bytes[3]);
	if (bytes[4] != NEW_PID || bytes[5] != CACHED_ATOM)
		return 0;
	sent->from = big_endian(bytes + 7) | (__u64)big_endian(bytes + 11) << 32;
	to = bytes + 4 + PID_BYTES;
	switch (sent->operation) {
	case 6: /* REG_SEND: a cookie, then the name */
	case 16:
		if (to[0] == CACHED_ATOM && to[2] == CACHED_ATOM)
			sent->receiver = name_of(atoms, places, to[3]);
		break;
	case 22: /* SEND_SENDER */
	case 23:
		if (to[0] == NEW_PID && to[1] == CACHED_ATOM)
			sent->receiver = (__u64)REMOTE_PID << REMOTE_SHIFT |
					 (big_endian(to + 3) & ((1U << SERIAL_SHIFT) - 1)) |
					 (__u64)big_endian(to + 7) << SERIAL_SHIFT;
		break;
	case 19: /* MONITOR_P: a pid or a name, then the reference */
		sent->receiver = reference_of(to + (to[0] == NEW_PID ? PID_BYTES : ATOM_BYTES));
		break;
	case 33: /* ALIAS_SEND */
	case 34:
		sent->receiver = reference_of(to);
		break;
	}
	return 0;
}

/* Where the atom at *at* ends, which is spelled out; 0 if it is none. */
static __always_inline __u64 behind_atom(__u64 at)
{
	__u8 head[3] = {};

	if (bpf_probe_read_user(head, sizeof(head), (const void *)at))
		return 0;
	switch (head[0]) {
	case SMALL_ATOM:
	case SMALL_UTF8_ATOM:
		return at + 2 + head[1];
	case ATOM:
	case UTF8_ATOM:
		return at + 3 + ((__u32)head[1] << 8 | head[2]);
	default:
		return 0;
	}
}

/* Read number and serial of the pid at *at*, whose node is spelled out. Where the pid ends; 0 if
 * there is none. */
static __always_inline __u64 plain_pid(__u64 at, __u64 *pid)
{
	__u8 tag = 0, bytes[8] = {};

	bpf_probe_read_user(&tag, sizeof(tag), (const void *)at);
	at = tag == NEW_PID ? behind_atom(at + 1) : 0;
	if (!at || bpf_probe_read_user(bytes, sizeof(bytes), (const void *)at))
		return 0;
	*pid = big_endian(bytes) | (__u64)big_endian(bytes + 4) << 32;
	return at + 12; /* number, serial, creation */
}

/*
 * Read the control tuple for a node that has no cache of atoms, as of erl_interface: with the
 * version before it, and all atoms spelled out, so that a name is no index of the VM's own.
 */
static __noinline int read_plain_control(struct sent *sent, __u64 base)
{
	__u64 at = base + 5, pid = 0;
	__u8 head[5] = {};

	if (!sent || bpf_probe_read_user(head, sizeof(head), (const void *)base))
		return 0;
	if (head[0] != VERSION_MAGIC || head[1] != SMALL_TUPLE || head[3] != SMALL_INTEGER)
		return 0;
	sent->operation = head[4];
	sent->class = class_of(head[4]);
	/* SEND has a cookie before the receiver, all others their sender. */
	at = head[4] == 2 ? behind_atom(at) : plain_pid(at, &sent->from);
	if (at && (head[4] == 2 || head[4] == 22) && plain_pid(at, &pid))
		sent->receiver = (__u64)REMOTE_PID << REMOTE_SHIFT |
				 (pid & ((1U << SERIAL_SHIFT) - 1)) | (pid >> 32) << SERIAL_SHIFT;
	return 0;
}

/*
 * Read the header of a packet at *base*, which is not encoded for the wire yet: its atoms are the
 * VM's own (OTP-25.2.3 external.c). Only the first fragment of a message has its control tuple;
 * sender and receiver of the others are those of the first one with their sequence number.
 */
static __always_inline void read_packet(struct sent *sent, __u64 base, __u64 entry,
					__u32 connection)
{
	struct fragmented key = {.entry = entry, .connection = connection};
	struct sent *first;
	__u8 head[20] = {};
	__u32 more;

	if (bpf_probe_read_user(head, sizeof(head), (const void *)base) || head[0] != VERSION_MAGIC)
		return;
	key.sequence = big_endian_word(head + 2);
	if (head[1] == NEXT_FRAGMENT) {
		first = bpf_map_lookup_elem(&fragments, &key);
		if (first) {
			sent->from = first->from;
			sent->receiver = first->receiver;
			sent->operation = first->operation;
			if (big_endian_word(head + 10) == 1)
				bpf_map_delete_elem(&fragments, &key);
		}
		sent->class = DIST_OUT_FRAGMENT;
		return;
	}
	if (head[1] != DIST_HEADER && head[1] != FIRST_FRAGMENT)
		return;
	more = head[1] == FIRST_FRAGMENT ? 16 : 0; /* sequence and number of the fragment */
	/* Flags, the number of atoms, the atoms. */
	read_control(sent, base + more + 4, more ? head[19] : head[3]);
	if (more && bpf_map_update_elem(&fragments, &key, sent, BPF_ANY))
		count_failure(KIND_DIST_OUT);
}

/* A packet out: iov[1] of the ErlIOVec of its ErtsDistOutputBuf has its header. */
SEC("uprobe")
int BPF_KPROBE(dist_packet_out, __u64 buffer, __u64 entry)
{
	__u64 vector, parts, size, head;
	struct dist_out_record *out;
	struct packets *seen;
	struct sent sent = {};
	__u32 tid, connection, count;
	__u8 first = 0;

	if (!enter_program(PROGRAM_DIST_PACKET_OUT, &tid))
		return 0;
	connection = vm_word(KIND_DIST_OUT, entry, settings.dist_state - 4);
	seen = packets_of(KIND_DIST_OUT, entry, connection, 1);
	vector = vm_word(KIND_DIST_OUT, buffer, 16);
	count = vm_word(KIND_DIST_OUT, vector, 0);
	size = vm_word(KIND_DIST_OUT, vector, 8);
	parts = vm_word(KIND_DIST_OUT, vector, 16);
	if (!seen || count < 2)
		return 0;
	head = vm_word(KIND_DIST_OUT, parts, 16);
	bpf_probe_read_user(&first, sizeof(first), (const void *)head);
	/* What waited for a handshake is encoded in steps, with a call for each. */
	if (first != VERSION_MAGIC && first != PASS_THROUGH && seen->last == buffer)
		return 0;
	seen->last = buffer;
	seen->count++;
	if (first == PASS_THROUGH && count > 2)
		read_plain_control(&sent, vm_word(KIND_DIST_OUT, parts + 32, 0));
	else
		read_packet(&sent, head, entry, connection);
	count_event(KIND_DIST_OUT, sent.class);
	out = reserve_record(KIND_DIST_OUT, sent.class, FLAG_TEXT_PID, tid, sent.from);
	if (!out)
		return 0;
	out->peer = vm_word(KIND_DIST_OUT, entry, settings.dist_sysname);
	out->receiver = sent.receiver;
	out->number = seen->count;
	out->size = size;
	out->check = check_of_parts(KIND_DIST_OUT, parts, count);
	out->connection = connection;
	out->operation = sent.operation;
	submit_record(out);
	return 0;
}

/* A packet in. Its last two arguments are on the stack: where it lies, and its bytes; none for a
 * tick. */
SEC("uprobe")
int BPF_KPROBE(dist_packet_in, __u64 port, __u64 entry, __u64 id)
{
	__u64 place, length;
	struct dist_in_record *in;
	struct packets *seen;
	__u8 class;
	__u32 tid;

	if (!enter_program(PROGRAM_DIST_PACKET_IN, &tid))
		return 0;
	place = vm_word(KIND_DIST_IN, PT_REGS_SP(ctx), 8);
	length = vm_word(KIND_DIST_IN, PT_REGS_SP(ctx), 16);
	class = length ? DIST_IN_PACKET : DIST_IN_TICK;
	seen = packets_of(KIND_DIST_IN, entry, id, 0);
	if (!seen)
		return 0;
	if (length)
		seen->count++;
	count_event(KIND_DIST_IN, class);
	in = reserve_record(KIND_DIST_IN, class, 0, tid, 0);
	if (!in)
		return 0;
	in->peer = vm_word(KIND_DIST_IN, entry, settings.dist_sysname);
	in->number = length ? seen->count : 0;
	in->size = length;
	in->check = check_of(KIND_DIST_IN, place + length, length);
	in->connection = id;
	submit_record(in);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
