/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * process: Erlang processes are spawned, hibernate and exit.
 *
 * Hooks:  erl_create_process entry and return, erts_do_exit_process, erts_hibernate;
 *         or erlang:process__spawn, process__exit, process__hibernate
 * Counts: spawn, exit by class of its reason, hibernate; lifetimes of exits, and crashes, by symbol
 * Emits:  spawn, exit, hibernate
 */
#include "origin.bpf.h"
#include "terms.bpf.h"
#include "usdt.bpf.h"

struct spawning {
	__u64 parent, module, function;
};

/* Spawns under way, by thread; removed by the return probe of the same call. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_THREADS);
	__type(key, __u32);
	__type(value, struct spawning);
} spawns SEC(".maps");

/*
 * When each process was spawned. LRU, because processes that exit while exits are not counted are
 * never removed; so of more live processes than this the oldest are forgotten.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, __u64);
} births SEC(".maps");

/* Crashes by what they have in common; those that find no room are failures of exit. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct crash);
	__type(value, __u64);
} crashes SEC(".maps");

SEC("uprobe")
int BPF_KPROBE(spawn_entry, __u64 parent, __u64 module, __u64 function)
{
	struct spawning spawning = {.module = module, .function = function};
	__u32 tid;

	if (!enter_program(PROGRAM_SPAWN_ENTRY, &tid))
		return 0;
	spawning.parent = id_of(KIND_SPAWN, parent);
	if (bpf_map_update_elem(&spawns, &tid, &spawning, BPF_ANY))
		count_failure(KIND_SPAWN);
	return 0;
}

SEC("uretprobe")
int BPF_KRETPROBE(spawn_return, __u64 child)
{
	struct spawning *spawning;
	struct spawn_record *spawn;
	__u64 now;
	__u32 tid;

	if (!enter_program(PROGRAM_SPAWN_RETURN, &tid))
		return 0;
	spawning = bpf_map_lookup_elem(&spawns, &tid);
	if (!is_pid(child)) { /* the table is full, or an argument is bad */
		bpf_map_delete_elem(&spawns, &tid);
		return 0;
	}
	/* Of named processes those count that they spawn: the child is in no map yet. */
	if (!is_wanted(0, spawning ? spawning->parent : 0)) {
		bpf_map_delete_elem(&spawns, &tid);
		return 0;
	}
	count_event(KIND_SPAWN, 0);
	now = bpf_ktime_get_ns();
	if (bpf_map_update_elem(&births, &child, &now, BPF_ANY))
		count_failure(KIND_SPAWN);
	spawn = reserve_record(KIND_SPAWN, 0, 0, tid, child);
	if (spawn) {
		if (spawning) {
			spawn->parent = spawning->parent;
			spawn->module = spawning->module;
			spawn->function = spawning->function;
		}
		submit_record(spawn);
	}
	bpf_map_delete_elem(&spawns, &tid);
	return 0;
}

SEC("uprobe")
int BPF_KPROBE(spawn_usdt)
{
	struct spawn_record *spawn;
	__u32 tid;

	if (!enter_program(PROGRAM_SPAWN_USDT, &tid))
		return 0;
	count_event(KIND_SPAWN, 0);
	spawn = reserve_record(KIND_SPAWN, 0, FLAG_TEXT_PID, tid, usdt_pid(ctx, 0));
	if (spawn)
		submit_record(spawn);
	return 0;
}

static __always_inline __u8 atom_class(__u64 atom)
{
	if (atom == target.am_normal)
		return EXIT_NORMAL;
	if (atom == target.am_shutdown)
		return EXIT_SHUTDOWN;
	if (atom == target.am_killed)
		return EXIT_KILLED;
	return EXIT_OTHER;
}

/* What is seen of an exit reason. */
struct seen_reason {
	__u64 tag;   /* what names it, where it is no atom */
	__u64 trace; /* the stack trace of an error */
};

/*
 * The class of an exit reason. {shutdown, _} is a shutdown; the VM turns an error or an uncaught
 * throw into {_, Stacktrace}. A tuple is a boxed pointer to its header and its elements.
 */
static __noinline __u8 reason_class(__u64 reason, struct seen_reason *seen)
{
	__u64 tuple[3], cell = 0;

	if (!seen)
		return EXIT_UNKNOWN;

	if (!target.am_normal)
		return EXIT_UNKNOWN; /* the atom table could not be read */
	if (is_atom(reason))
		return atom_class(reason);
	if (!is_boxed(reason))
		return EXIT_OTHER;
	if (bpf_probe_read_user(tuple, sizeof(tuple), untag(reason))) {
		count_failure(KIND_EXIT);
		return EXIT_UNKNOWN;
	}
	if (tuple[0] != tuple_header(2)) {
		seen->tag = reason_name(reason);
		return EXIT_OTHER;
	}
	seen->tag = reason_name(tuple[1]);
	if (tuple[1] == target.am_shutdown)
		return EXIT_SHUTDOWN;
	if (!is_list(tuple[2]))
		return EXIT_OTHER;
	/* A stack trace is a list whose first element is the tuple {M, F, A, Location}. */
	if (bpf_probe_read_user(&cell, sizeof(cell), untag(tuple[2])) ||
	    bpf_probe_read_user(&cell, sizeof(cell), untag(cell))) {
		count_failure(KIND_EXIT);
		return EXIT_UNKNOWN;
	}
	if (cell != tuple_header(4))
		return EXIT_OTHER;
	seen->trace = tuple[2];
	return EXIT_ERROR;
}

/*
 * The lifetime of a process, if spawns and exits were counted without interruption in between:
 * windows would see only processes that live briefly. Global, so that the verifier follows what
 * comes after it once, and not once for each of its ends.
 */
__noinline int observe_lifetime(__u8 class, __u64 id)
{
	__u64 now = bpf_ktime_get_ns(), *since = bpf_map_lookup_elem(&births, &id);

	if (!since)
		return 0; /* it was spawned before counting began */
	if (fully_observed(KIND_SPAWN, *since, now) && fully_observed(KIND_EXIT, *since, now))
		observe_duration(KIND_EXIT, class, now - *since);
	bpf_map_delete_elem(&births, &id);
	return 0;
}

static __always_inline bool is_crash(__u8 class)
{
	return class == EXIT_ERROR || class == EXIT_KILLED || class == EXIT_OTHER;
}

static __noinline void count_crash(const struct origin *origin, __u64 reason, __u8 class)
{
	struct crash crash = {.reason = is_atom(reason) ? reason >> 6 : 0, .class = class};
	__u64 one = 1, *count;

	if (!origin)
		return;
	crash.module = origin->module;
	crash.function = origin->function;
	crash.line = origin->line;
	crash.name = origin->name;
	count = bpf_map_lookup_elem(&crashes, &crash);
	if (!count && !bpf_map_update_elem(&crashes, &crash, &one, BPF_NOEXIST))
		return;
	if (!count) /* another CPU was first, or there is no room */
		count = bpf_map_lookup_elem(&crashes, &crash);
	if (count)
		__sync_fetch_and_add(count, 1);
	else
		count_failure(KIND_EXIT);
}

SEC("uprobe")
int BPF_KPROBE(exit_entry, __u64 process, __u64 reason)
{
	struct seen_reason seen = {};
	struct origin origin = {};
	struct exit_record *exit;
	__u64 id;
	__u8 class;
	__u32 tid;

	if (!enter_program(PROGRAM_EXIT_ENTRY, &tid))
		return 0;
	id = id_of(KIND_EXIT, process);
	if (!is_wanted(0, id))
		return 0;
	class = reason_class(reason, &seen);
	count_event(KIND_EXIT, class);
	observe_lifetime(class, id);
	if (!is_crash(class) && !is_streamed(KIND_EXIT))
		return 0;
	origin.name = name_of(process);
	if (seen.trace)
		find_crash(seen.trace, &origin);
	else if (is_crash(class))
		find_start(process, &origin);
	if (is_crash(class))
		count_crash(&origin, is_atom(reason) ? reason : seen.tag, class);
	exit = reserve_record(KIND_EXIT, class, 0, tid, id);
	if (exit) {
		exit->reason = reason;
		exit->tag = seen.tag;
		exit->module = origin.module;
		exit->function = origin.function;
		exit->line = origin.line;
		exit->name = origin.name;
		submit_record(exit);
	}
	return 0;
}

static __always_inline bool starts_with(const char *text, const char *with, __u32 length)
{
	for (__u32 i = 0; i < length; i++)
		if (text[i] != with[i])
			return false;
	return true;
}

/* The same classes, from the first 64 bytes of OTP's text of the reason. */
static __noinline __u8 text_class(const char *address)
{
	char text[64] = {};

	if (bpf_probe_read_user_str(text, sizeof(text), address) < 0) {
		count_failure(KIND_EXIT);
		return EXIT_UNKNOWN;
	}
	if (starts_with(text, "normal", 7))
		return EXIT_NORMAL;
	if (starts_with(text, "shutdown", 9) || starts_with(text, "{shutdown,", 10))
		return EXIT_SHUTDOWN;
	if (starts_with(text, "killed", 7))
		return EXIT_KILLED;
	if (text[0] != '{')
		return EXIT_OTHER;
	for (__u32 i = 1; i < sizeof(text) - 3; i++)
		if (starts_with(text + i, ",[{", 3))
			return EXIT_ERROR;
	return EXIT_OTHER;
}

SEC("uprobe")
int BPF_KPROBE(exit_usdt)
{
	struct exit_record *exit;
	__u64 process;
	__u8 class;
	__u32 tid;

	if (!enter_program(PROGRAM_EXIT_USDT, &tid))
		return 0;
	process = usdt_pid(ctx, 0);
	if (!is_wanted(FLAG_TEXT_PID, process))
		return 0;
	class = text_class((const char *)usdt_argument(ctx, 1));
	count_event(KIND_EXIT, class);
	exit = reserve_record(KIND_EXIT, class, FLAG_TEXT_PID, tid, process);
	if (exit)
		submit_record(exit);
	return 0;
}

static __always_inline int count_hibernate(__u8 flags, __u32 tid, __u64 process)
{
	struct hibernate_record *hibernate;

	if (!is_wanted(flags, process))
		return 0;
	count_event(KIND_HIBERNATE, 0);
	hibernate = reserve_record(KIND_HIBERNATE, 0, flags, tid, process);
	if (hibernate)
		submit_record(hibernate);
	return 0;
}

SEC("uprobe")
int BPF_KPROBE(hibernate_entry, __u64 process)
{
	__u32 tid;

	if (!enter_program(PROGRAM_HIBERNATE_ENTRY, &tid))
		return 0;
	return count_hibernate(0, tid, id_of(KIND_HIBERNATE, process));
}

SEC("uprobe")
int BPF_KPROBE(hibernate_usdt)
{
	__u32 tid;

	if (!enter_program(PROGRAM_HIBERNATE_USDT, &tid))
		return 0;
	return count_hibernate(FLAG_TEXT_PID, tid, usdt_pid(ctx, 0));
}

char LICENSE[] SEC("license") = "GPL";
