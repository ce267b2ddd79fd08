/* SPDX-License-Identifier: GPL-2.0-only */
/* Made by probes/generate.py from probes/events.toml; not written by hand. */
#ifndef SCOPE_EVENTS_GENERATED_H
#define SCOPE_EVENTS_GENERATED_H

#define KINDS 20
#define RECORD_BYTES 56
#define CLASSES 8 /* classes of one kind; kind * CLASSES + class is the index in counters and histograms */
#define HISTOGRAM_SLOTS 40 /* slot N counts 2^N ns up to 2^(N+1); the last is open */
#define WINDOW_BOUNDS 2 /* start and end of a window; kind * WINDOW_BOUNDS + bound is the key in counter_samples */
#define USDT_ARGUMENTS 8 /* arguments of one USDT site */
#define MAX_TARGETS 64 /* targets whose threads are watched at a time */
#define THREAD_TYPES 6 /* types of threads of a target, each with a row of thread_totals */
#define MAX_NIFS 4096 /* NIFs of all targets that are counted */
#define SAMPLE_HZ 97 /* samples a second that threads.bpf.c takes of each CPU: a prime, so that it keeps step with nothing */
#define TICKS_PER_SAMPLE 2 /* ticks of the profiler's timer of which one, drawn at random, becomes a sample */
#define OFF_CPU_STACK_BYTES 8192 /* of the Erlang stack of a process that waits */
#define STARTS_RING_BYTES 32768 /* 512 starts of VMs at once */
#define MAX_BREAKPOINT_SITES 64 /* versions of functions, and return addresses, in one run */
#define CAPTURES 14 /* terms of a call whose words are copied */
#define CAPTURE_WORDS 8 /* of each: the term, then the first seven words that it points to */
#define MAX_PROBED_FUNCTIONS 4 /* functions that interpreted.bpf.c watches at a time */
#define TELEMETRY_ATOMS 8 /* of the name of a telemetry event */
#define TELEMETRY_LABELS 4 /* labels of a telemetry event */
#define TELEMETRY_STEPS 4 /* steps of the path to a label */
#define TELEMETRY_MEASURES 4 /* measurements of a telemetry event that are added up; durations of the first are a histogram */
#define TELEMETRY_TEXT_BYTES 64 /* of a binary that is a label */
#define TELEMETRY_SLOTS 160 /* four for each power of two: slot 4 N + Q counts from 2^N (1 + Q / 4) up to 2^N (1 + (Q + 1) / 4) */
#define TELEMETRY_STEP_ELEMENT 4 /* a step to an element of a tuple: this, and its number << 4 */
#define TELEMETRY_STEP_CLASS 8 /* a step to what names an exception: an atom, the struct of a map, the first element of a tuple */
#define MAX_OPEN_WORKS 4096 /* processes of one target whose work the daemon knows at a time */
#define MAX_WORK_ROWS 514 /* works of one target that the daemon counts apart, and WORK_OUTSIDE and WORK_OTHER */
#define WORK_DEPTH 4 /* works of one process within each other that are followed; a power of two */
#define WORK_OUTSIDE 0 /* in the place of a telemetry_row's number: a process that works on nothing that is known */
#define WORK_OTHER 1 /* in that place: work for which the map of rows had no room */
#define SERVER_SLOTS 256 /* modules whose servers are counted apart; the first are those of enum server_slot */
#define SERVER_BUCKETS 448 /* sixteen to each octave of nanoseconds; the first takes all that is shorter, the last all that is longer */
#define SERVER_FIRST_OCTAVE 10 /* bucket 0 begins at 2^10 ns */
#define SERVER_TAGS 8 /* tags of requests that are counted apart of one module; its other ones are counted together */
#define MARK_SLOTS 4096 /* marked functions that are counted apart, of those that are called; the first slot is of the others */
#define MARK_OPEN_CALLS 16 /* open calls of one process that are followed; a power of two */
#define MARK_CALLERS 16384 /* pairs of a marked function and a place that its calls return to; calls of others are of unknown callers */
#define MAX_WANTED 16384 /* processes of which alone events are counted, where that is asked for */
#define FUNCTION_TEXT_BYTES 256 /* M:F/A as the interpreter's function probes write it: DTRACE_TERM_BUF_SIZE */

enum kind {
	KIND_SPAWN = 0,
	KIND_EXIT = 1,
	KIND_SEND = 2,
	KIND_RECEIVE = 3,
	KIND_SCHEDULE = 4,
	KIND_GC = 5,
	KIND_HIBERNATE = 6,
	KIND_PORT_OPEN = 7,
	KIND_PORT_CLOSE = 8,
	KIND_PORT_BUSY = 9,
	KIND_DIST_BUSY = 10,
	KIND_DIST_OUTPUT = 11,
	KIND_CODE_LOAD = 12,
	KIND_LONG_CALL = 13,
	KIND_THREAD = 14,
	KIND_DIST_OUT = 15,
	KIND_DIST_IN = 16,
	KIND_DIST_DOWN = 17,
	KIND_MARK_CALLBACK = 18,
	KIND_MARK_FUNCTION = 19,
};

enum exit_class {
	EXIT_UNKNOWN = 0,
	EXIT_NORMAL = 1,
	EXIT_SHUTDOWN = 2,
	EXIT_KILLED = 3,
	EXIT_ERROR = 4,
	EXIT_OTHER = 5,
};

enum send_class {
	SEND_LOCAL = 0,
	SEND_REMOTE = 1,
};

enum schedule_class {
	SCHEDULE_IN = 0,
	SCHEDULE_OUT = 1,
};

enum gc_class {
	GC_UNKNOWN = 0,
	GC_MINOR = 1,
	GC_MAJOR = 2,
	GC_HIBERNATE = 3,
};

enum port_busy_class {
	PORT_BUSY_BUSY = 0,
	PORT_BUSY_NOT_BUSY = 1,
};

enum dist_output_class {
	DIST_OUTPUT_PORT = 0,
	DIST_OUTPUT_PROCESS = 1,
};

enum long_call_class {
	LONG_CALL_NIF = 0,
	LONG_CALL_BIF = 1,
	LONG_CALL_DIRTY_NIF = 2,
	LONG_CALL_DIRTY_BIF = 3,
};

enum thread_class {
	THREAD_ON = 0,
	THREAD_OFF = 1,
	THREAD_WOKEN = 2,
};

enum dist_out_class {
	DIST_OUT_OTHER = 0,
	DIST_OUT_MESSAGE = 1,
	DIST_OUT_MONITOR = 2,
	DIST_OUT_LINK = 3,
	DIST_OUT_EXIT = 4,
	DIST_OUT_SPAWN = 5,
	DIST_OUT_FRAGMENT = 6,
};

enum dist_in_class {
	DIST_IN_PACKET = 0,
	DIST_IN_TICK = 1,
};

enum mark_callback_class {
	MARK_CALLBACK_ENTRY = 0,
	MARK_CALLBACK_RETURN = 1,
	MARK_CALLBACK_CAUGHT = 2,
	MARK_CALLBACK_CATCH = 3,
	MARK_CALLBACK_TAIL = 4,
};

enum mark_function_class {
	MARK_FUNCTION_ENTRY = 0,
	MARK_FUNCTION_RETURN = 1,
};

enum flags {
	FLAG_TEXT_PID = 1, /* process, and any other pid of the record, is number | serial << 32, read from a USDT text */
};

/* System calls in which a thread waits for work (x86_64): a futex for schedulers, a poll for threads that watch sockets. */
enum waiting_call {
	CALL_POLL = 7,
	CALL_SELECT = 23,
	CALL_FUTEX = 202,
	CALL_EPOLL_WAIT = 232,
	CALL_PSELECT6 = 270,
	CALL_PPOLL = 271,
	CALL_EPOLL_PWAIT = 281,
	CALL_EPOLL_PWAIT2 = 441,
};

/* What a message is: the highest byte of the field form, whose low 50 bits are the reference of the call. */
enum form {
	FORM_UNKNOWN = 0,
	FORM_INFO = 1,
	FORM_CALL = 2,
	FORM_CAST = 3,
	FORM_REPLY = 4,
	FORM_DOWN = 5,
	FORMS = 6,
};

/* What a receiver on another node is: the two highest bits of a field with the unit remote. */
enum remote {
	REMOTE_PID = 1,
	REMOTE_NAME = 2,
	REMOTE_REF = 3,
};

/* ErtsSchedulerSleepInfo.flags, OTP 24 to 29 (erl_process.h). */
enum sleep_flag {
	SSI_POLL_SLEEPING = 2,
	SSI_TSE_SLEEPING = 4,
	SSI_WAITING = 8,
};

/* Keys of the profiler's map counts. */
enum sample_count {
	SAMPLES_TAKEN = 0,
	SAMPLES_LOST = 1,
	SAMPLE_COUNTS = 2,
};

/* Keys of call_state in function.bpf.c: calls and returns so far, of all sites, and 1 while calls count. */
enum call_state {
	CALL_STATE_CALLS = 0,
	CALL_STATE_RETURNS = 1,
	CALL_STATE_OPEN = 2,
	CALL_STATES = 3,
};

/* Keys of call_state in interpreted.bpf.c: calls so far, of all functions, and how many are counted at most. */
enum probed_state {
	PROBED_STATE_CALLS = 0,
	PROBED_STATE_LIMIT = 1,
	PROBED_STATES = 2,
};

/* Keys of the map counts in telemetry.bpf.c. */
enum telemetry_count {
	TELEMETRY_EVENTS = 0,
	TELEMETRY_OWN = 1,
	TELEMETRY_NO_FRAME = 2,
	TELEMETRY_UNREADABLE = 3,
	TELEMETRY_NAME = 4,
	TELEMETRY_LARGE_MAP = 5,
	TELEMETRY_MEASURE = 6,
	TELEMETRY_LABEL = 7,
	TELEMETRY_OVERFLOW = 8,
	TELEMETRY_LOST = 9,
	TELEMETRY_STARTS = 10,
	TELEMETRY_HITS = 11,
	TELEMETRY_COUNTS = 12,
};

/* A label that is no immediate term; a text also has its size in bytes << 4. */
enum telemetry_label {
	LABEL_MISSING = 0,
	LABEL_TEXT = 4,
	LABEL_REFUSED = 8,
	LABEL_OTHER = 12,
	TELEMETRY_LABEL_KINDS = 4,
};

/* Slots of server_stats that belong to no module. */
enum server_slot {
	SLOT_PROCESSES = 0,
	SLOT_OTHER = 1,
	SLOT_REMOTE = 2,
	SLOT_FIRST = 3,
};

/* Keys of server_counts: hits of each program, then what could not be counted. */
enum server_count {
	SERVER_SEND = 0,
	SERVER_REPLY = 1,
	SERVER_TAKE = 2,
	SERVER_OUT = 3,
	SERVER_EXIT = 4,
	SERVER_LOST = 5,
	SERVER_UNREADABLE = 6,
	SERVER_COUNTS = 7,
};

/* Keys of mark_counts: hits of each class of marker, then what could not be counted. */
enum mark_count {
	MARKS_CALLBACK = 0,
	MARKS_FUNCTION = 1,
	MARKS_UNKNOWN = 2,
	MARKS_NO_ROOM = 3,
	MARKS_UNREADABLE = 4,
	MARKS_UNTOLD = 5,
	MARK_COUNTS = 6,
};

/* What a line of the stream of marks says. */
enum mark_line {
	LINE_ENTERED = 1,
	LINE_UNFOLLOWED = 2,
	LINE_RETURNED = 3,
	LINE_HANDED = 4,
	LINE_FAILED = 5,
	LINE_LEFT = 6,
	MARK_LINES = 6,
};

/* What the frames of the VM's stacks have, as erts_frame_layout says. */
enum mark_frames {
	MARK_FRAMES_ANY = 0,
	MARK_FRAMES_RETURN = 1,
	MARK_FRAMES_LINKED = 2,
};

/* Which atom of a callback was counted. */
enum mark_way {
	WAY_TAG = 0,
	WAY_RESULT = 1,
};

/* Why a thread is off its CPU. */
enum off_reason {
	OFF_IDLE = 0,
	OFF_BLOCKED = 1,
	OFF_PREEMPTED = 2,
	OFF_QUEUED = 3,
	OFF_THROTTLED = 4,
	OFF_REASONS = 5,
};

/* Why a process is off its scheduler. */
enum wait_reason {
	WAIT_RECEIVE = 0,
	WAIT_RUN_QUEUE = 1,
	WAIT_SUSPENDED = 2,
	WAIT_DIRTY = 3,
	WAIT_REASONS = 4,
};

/* The form of a USDT argument. */
enum argument_form {
	ARGUMENT_NONE = 0,
	ARGUMENT_CONSTANT = 1,
	ARGUMENT_REGISTER = 2,
	ARGUMENT_MEMORY = 3,
	ARGUMENT_ABSOLUTE = 4,
};

/* One number for each program: its key in the map hits. */
enum program {
	PROGRAM_SPAWN_ENTRY = 0,
	PROGRAM_SPAWN_RETURN = 1,
	PROGRAM_SPAWN_USDT = 2,
	PROGRAM_EXIT_ENTRY = 3,
	PROGRAM_EXIT_USDT = 4,
	PROGRAM_HIBERNATE_ENTRY = 5,
	PROGRAM_HIBERNATE_USDT = 6,
	PROGRAM_SEND_LOCAL = 7,
	PROGRAM_SEND_ALIAS = 8,
	PROGRAM_SEND_REMOTE = 9,
	PROGRAM_SEND_REMOTE_NAME = 10,
	PROGRAM_SEND_USDT = 11,
	PROGRAM_RECEIVE_ENTRY = 12,
	PROGRAM_RECEIVE_USDT = 13,
	PROGRAM_SCHEDULE_IN = 14,
	PROGRAM_SCHEDULE_OUT = 15,
	PROGRAM_SCHEDULE_IN_USDT = 16,
	PROGRAM_SCHEDULE_OUT_USDT = 17,
	PROGRAM_GC_ENTRY = 18,
	PROGRAM_GC_RETURN = 19,
	PROGRAM_GC_HIBERNATE_RETURN = 20,
	PROGRAM_GC_START_USDT = 21,
	PROGRAM_GC_MINOR_END_USDT = 22,
	PROGRAM_GC_MAJOR_END_USDT = 23,
	PROGRAM_PORT_OPEN_ENTRY = 24,
	PROGRAM_PORT_OPEN_RETURN = 25,
	PROGRAM_PORT_OPEN_USDT = 26,
	PROGRAM_PORT_CLOSE_ENTRY = 27,
	PROGRAM_PORT_CLOSE_USDT = 28,
	PROGRAM_PORT_BUSY_ENTRY = 29,
	PROGRAM_PORT_BUSY_COPY = 30,
	PROGRAM_PORT_BUSY_USDT = 31,
	PROGRAM_PORT_NOT_BUSY_USDT = 32,
	PROGRAM_DIST_BUSY_ENTRY = 33,
	PROGRAM_DIST_RESUME = 34,
	PROGRAM_DIST_OUTPUT_PORT = 35,
	PROGRAM_DIST_OUTPUT_PROCESS = 36,
	PROGRAM_DIST_OUTPUT_USDT = 37,
	PROGRAM_CODE_LOAD_ENTRY = 38,
	PROGRAM_CODE_LOAD_RETURN = 39,
	PROGRAM_NIF_ENTRY = 40,
	PROGRAM_CALL_RETURN = 41,
	PROGRAM_BIF_ENTRY = 42,
	PROGRAM_DIRTY_NIF_ENTRY = 43,
	PROGRAM_DIRTY_BIF_ENTRY = 44,
	PROGRAM_SWITCHED = 45,
	PROGRAM_WOKEN = 46,
	PROGRAM_DIST_PACKET_OUT = 47,
	PROGRAM_DIST_PACKET_IN = 48,
	PROGRAM_DIST_NODE_DOWN = 49,
	PROGRAM_MARKED_CALLBACK = 50,
	PROGRAM_MARKED_FUNCTION = 51,
	PROGRAMS = 52,
};

static __always_inline enum kind kind_of(enum program program)
{
	switch (program) {
	case PROGRAM_SPAWN_ENTRY:
		return KIND_SPAWN;
	case PROGRAM_SPAWN_RETURN:
		return KIND_SPAWN;
	case PROGRAM_SPAWN_USDT:
		return KIND_SPAWN;
	case PROGRAM_EXIT_ENTRY:
		return KIND_EXIT;
	case PROGRAM_EXIT_USDT:
		return KIND_EXIT;
	case PROGRAM_HIBERNATE_ENTRY:
		return KIND_HIBERNATE;
	case PROGRAM_HIBERNATE_USDT:
		return KIND_HIBERNATE;
	case PROGRAM_SEND_LOCAL:
		return KIND_SEND;
	case PROGRAM_SEND_ALIAS:
		return KIND_SEND;
	case PROGRAM_SEND_REMOTE:
		return KIND_SEND;
	case PROGRAM_SEND_REMOTE_NAME:
		return KIND_SEND;
	case PROGRAM_SEND_USDT:
		return KIND_SEND;
	case PROGRAM_RECEIVE_ENTRY:
		return KIND_RECEIVE;
	case PROGRAM_RECEIVE_USDT:
		return KIND_RECEIVE;
	case PROGRAM_SCHEDULE_IN:
		return KIND_SCHEDULE;
	case PROGRAM_SCHEDULE_OUT:
		return KIND_SCHEDULE;
	case PROGRAM_SCHEDULE_IN_USDT:
		return KIND_SCHEDULE;
	case PROGRAM_SCHEDULE_OUT_USDT:
		return KIND_SCHEDULE;
	case PROGRAM_GC_ENTRY:
		return KIND_GC;
	case PROGRAM_GC_RETURN:
		return KIND_GC;
	case PROGRAM_GC_HIBERNATE_RETURN:
		return KIND_GC;
	case PROGRAM_GC_START_USDT:
		return KIND_GC;
	case PROGRAM_GC_MINOR_END_USDT:
		return KIND_GC;
	case PROGRAM_GC_MAJOR_END_USDT:
		return KIND_GC;
	case PROGRAM_PORT_OPEN_ENTRY:
		return KIND_PORT_OPEN;
	case PROGRAM_PORT_OPEN_RETURN:
		return KIND_PORT_OPEN;
	case PROGRAM_PORT_OPEN_USDT:
		return KIND_PORT_OPEN;
	case PROGRAM_PORT_CLOSE_ENTRY:
		return KIND_PORT_CLOSE;
	case PROGRAM_PORT_CLOSE_USDT:
		return KIND_PORT_CLOSE;
	case PROGRAM_PORT_BUSY_ENTRY:
		return KIND_PORT_BUSY;
	case PROGRAM_PORT_BUSY_COPY:
		return KIND_PORT_BUSY;
	case PROGRAM_PORT_BUSY_USDT:
		return KIND_PORT_BUSY;
	case PROGRAM_PORT_NOT_BUSY_USDT:
		return KIND_PORT_BUSY;
	case PROGRAM_DIST_BUSY_ENTRY:
		return KIND_DIST_BUSY;
	case PROGRAM_DIST_RESUME:
		return KIND_DIST_BUSY;
	case PROGRAM_DIST_OUTPUT_PORT:
		return KIND_DIST_OUTPUT;
	case PROGRAM_DIST_OUTPUT_PROCESS:
		return KIND_DIST_OUTPUT;
	case PROGRAM_DIST_OUTPUT_USDT:
		return KIND_DIST_OUTPUT;
	case PROGRAM_CODE_LOAD_ENTRY:
		return KIND_CODE_LOAD;
	case PROGRAM_CODE_LOAD_RETURN:
		return KIND_CODE_LOAD;
	case PROGRAM_NIF_ENTRY:
		return KIND_LONG_CALL;
	case PROGRAM_CALL_RETURN:
		return KIND_LONG_CALL;
	case PROGRAM_BIF_ENTRY:
		return KIND_LONG_CALL;
	case PROGRAM_DIRTY_NIF_ENTRY:
		return KIND_LONG_CALL;
	case PROGRAM_DIRTY_BIF_ENTRY:
		return KIND_LONG_CALL;
	case PROGRAM_SWITCHED:
		return KIND_THREAD;
	case PROGRAM_WOKEN:
		return KIND_THREAD;
	case PROGRAM_DIST_PACKET_OUT:
		return KIND_DIST_OUT;
	case PROGRAM_DIST_PACKET_IN:
		return KIND_DIST_IN;
	case PROGRAM_DIST_NODE_DOWN:
		return KIND_DIST_DOWN;
	case PROGRAM_MARKED_CALLBACK:
		return KIND_MARK_CALLBACK;
	case PROGRAM_MARKED_FUNCTION:
		return KIND_MARK_FUNCTION;
	default:
		return KINDS; /* no kind */
	}
}

/* What every record starts with: 24 of the 56 bytes. */
struct header {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u16 kind; /* which record this is */
	__u8 class; /* which class of its kind */
	__u8 flags; /* FLAG_* bits */
	__u32 tid; /* the OS thread it happened on */
	__u64 process; /* the Erlang process it happened to, eterm */
};

/* Set once before the programs are loaded; constants to the verifier. An offset of 0 is unknown. */
struct settings {
	__u64 streamed; /* bit N: records of kind N go to the ring */
	__u64 slow_call_ns; /* a call shorter than this is not counted, ns */
	__u64 pidns_dev; /* pid namespace of the observer; 0 if it is the host's */
	__u64 pidns_ino; /* the same */
	__u64 dsig_send_start; /* code of erts_dsig_send, address in the file, address */
	__u64 dsig_send_end; /* the first byte after it, address */
	__u32 process_heap; /* offsets into struct process, bytes */
	__u32 process_htop; /* the same, bytes */
	__u32 process_old_heap; /* the same, bytes */
	__u32 process_old_htop; /* the same, bytes */
	__u32 process_mbuf_sz; /* the same, bytes */
	__u32 process_gen_gcs; /* the same, bytes */
	__u32 process_sig_save; /* the same, bytes */
	__u32 port_connected; /* offsets into struct _erl_drv_port, bytes */
	__u32 port_state; /* the same, bytes */
	__u32 schedule_in_register; /* offset in struct pt_regs of the process that copy_in_registers was given, bytes */
	__u32 process_abandoned_heap; /* one more offset into struct process, bytes */
	__u32 process_state; /* the same, bytes */
	__u32 send_message_register; /* offset in struct pt_regs of a sent message; 0 if the hook is too early to know, bytes */
	__u32 message_sender; /* offset into ErtsMessage, bytes */
	__u32 send_alias_register; /* like send_message_register, for a message to an alias, bytes */
	__u32 send_term_register; /* like send_message_register, of the message's term, bytes */
	__u32 dist_sysname; /* offsets into DistEntry, bytes */
	__u32 dist_state; /* the same, bytes */
	__u32 dsig_from; /* offset into ErtsDSigSendContext, bytes */
	__u32 process_registered; /* offsets into struct process, bytes */
	__u32 process_dictionary; /* the same, bytes */
	__u32 process_module; /* the same, of the function that it was started with, bytes */
	__u32 registered_name; /* offset into RegProc, bytes */
	__u32 map_subtag; /* type in the header word of a map; 0 if it is unknown */
	__u64 shortest_ns; /* a collection and a schedule shorter than this are not counted, ns */
	__u64 filtered; /* 1: only what happens to processes in the map wanted counts */
	__u32 process_hend; /* one more offset into struct process, bytes */
	__u32 mark_frames; /* MARK_FRAMES_* */
	__u32 mark_in_register; /* 1 if the hook of mark_function lies where the id is in rdi, and the process in r13 only */
	__u32 padding; /* named, so that it is zero */
};

/* The process that loaded programs observe. It changes when programs are reused, so it is not a constant. An atom of 0 is unknown. */
struct target {
	__u64 base; /* added to an address of its file, address */
	__u64 am_normal; /* atoms that classify an exit reason, eterm */
	__u64 am_shutdown; /* the same, eterm */
	__u64 am_killed; /* the same, eterm */
	__u64 am_gen_call; /* atoms that give the form of a message, eterm */
	__u64 am_gen_cast; /* the same, eterm */
	__u64 am_system; /* the same, eterm */
	__u64 am_alias; /* the same, eterm */
	__u64 am_down; /* the same, eterm */
	__u64 am_initial_call; /* atoms by which the origin of a crash is found, eterm */
	__u64 am_line; /* the same, eterm */
	__u64 am_struct; /* the same, eterm */
	__u32 tgid; /* its pid, in the pid namespace of the observer */
	__u32 padding; /* named, so that it is zero */
};

/* Counts of one class of one kind, per CPU, from 0. */
struct counters {
	__u64 count; /* how often it happened */
	__u64 lost; /* records that found no room in the ring */
	__u64 refused; /* reads of the VM's memory that failed, and map entries that could not be made */
};

/* Durations of one class of one kind, per CPU, from 0. */
struct histogram {
	__u64 total_ns; /* sum, ns */
	__u64 slots[40]; /* log2 histogram */
};

/* What crashes that are counted together have in common: atoms by their index, 0 for none. */
struct crash {
	__u32 module; /* as in the record of an exit, atom_index */
	__u32 function; /* the same, atom_index */
	__u32 line; /* the same */
	__u32 name; /* the same, atom_index */
	__u32 reason; /* the reason, or what names it, atom_index */
	__u32 class; /* of the exit */
};

/* What lost connections that are counted together have in common: atoms by their index, 0 for none. */
struct node_down {
	__u32 peer; /* the other node, atom_index */
	__u32 reason; /* as in the record, atom_index */
};

/* How often the hooks of one kind may still be hit before the programs stop counting. */
struct quota {
	__u64 limited; /* 0: there is no limit, and the rest means nothing */
	__s64 left; /* hits left; each CPU takes SPENT_AT_ONCE at a time */
	__u64 opened_ns; /* when counting was enabled, ns */
	__u64 exhausted_ns; /* when the last hit was used up, or the window ended; 0 while hits count, ns */
	__u64 until_ns; /* when the window ends; 0 outside windows, ns */
	__u64 started; /* 1 after the first hit of a window */
};

/* Counters of the VM that grow with the events of one kind; their sum is read when a window starts and ends. */
struct reference_counter {
	__u64 address; /* the first word, address */
	__u32 stride; /* from one word to the next, bytes */
	__u32 words; /* how many there are */
	__u64 second_address; /* the same of a second counter, address */
	__u32 second_stride; /* from one of its words to the next, bytes */
	__u32 second_words; /* 0 where there is none */
};

/* A kind's reference counters at the start of a window (its first hit) or at its end (the hit that ended it). */
struct counter_sample {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u64 value; /* the sum of the words, modulo 2^64 */
	__u64 unreadable; /* 1 if a word could not be read */
	__u64 second_value; /* the same of the second counter */
};

/* One OS thread that is watched, and its current state. */
struct thread {
	__u64 since_ns; /* when it entered this state; 0 if unknown, ns */
	__u64 ready_ns; /* when it began to wait for a CPU; 0 if it does not wait, ns */
	__u32 row; /* index of its thread_totals */
	__u32 cpu; /* the CPU it ran on last, plus 1 */
	__u32 reason; /* OFF_*, while it is off */
	__u32 running; /* 1 while it is on a CPU */
	__u64 scheduler; /* its ErtsSchedulerData; 0 if it has none, or if that is unknown, address */
	__u64 sleep_flags; /* its ErtsSchedulerSleepInfo.flags, address */
	__u64 seen_process; /* the process that was in a NIF at the last sample; 0 if none was, address */
	__u64 seen_reductions; /* reductions of the scheduler at that sample */
	__s64 seen_fcalls; /* fcalls of the process at that sample */
	__u16 at_process; /* offset of current_process in ErtsSchedulerData, bytes */
	__u16 at_nif; /* offset of current_nif in it, bytes */
	__u16 at_reductions; /* offset of reductions in it, bytes */
	__u16 at_code; /* offset in struct process of the pointer to the NIF's code, bytes */
	__u16 before_code; /* distance from that code back to its ErtsCodeMFA, bytes */
	__u16 at_fcalls; /* offset of fcalls in struct process, bytes */
	__u16 long_call; /* 1 if the call at the last sample has been counted as long */
	__u8 padding[2]; /* named, so that it is zero */
	__u32 target; /* number of its target */
	__u32 traced; /* 1 while the tracepoints are attached */
	__u64 queue; /* the kernel's run queue that it waits in; 0 on kernels where task_struct has the throttled state, address */
	__u64 queue_throttled_ns; /* how long that queue had been throttled when the wait began, ns */
};

/* Time of all threads of one type of one target, per CPU, from 0. */
struct thread_totals {
	__u64 on_ns; /* on a CPU, ns */
	__u64 off_ns[5]; /* off it, by OFF_*, ns */
	__u64 switches; /* times it was given a CPU */
	__u64 migrations; /* switches to another CPU than the one before */
	__u64 waited_ns; /* runnable, waiting for a CPU, ns */
	__u64 slots[40]; /* log2 histogram of single waits */
	__u64 samples; /* samples that found it on a CPU */
	__u64 busy_waits; /* of these, schedulers that spun without work */
	__u64 refused; /* reads of the VM's memory that failed, and NIFs that found no room in the map */
};

/* A NIF of a target. */
struct nif_key {
	__u64 module; /* atom: first of M:F/A, eterm */
	__u64 function; /* atom: second of M:F/A, eterm */
	__u32 arity; /* third of M:F/A */
	__u32 target; /* number of the target */
};

/* Samples of one NIF, per CPU, from 0. */
struct nif {
	__u64 samples; /* samples that found it running */
	__u64 long_calls; /* calls that two samples in a row found running */
};

/* Settings of function.bpf.c; constants to the verifier. */
struct call_settings {
	__u64 limit; /* calls that are counted, of all functions */
	__u64 return_limit; /* returns that are handled */
	__u32 process_hend; /* offset of hend in struct process, bytes */
	__u32 map_subtag; /* tag of a map's header word */
};

/* An address with a breakpoint: a function's first instruction, or a return address. */
struct breakpoint_site {
	__u64 module; /* the MFA that must precede the function's code; 0 for a return address, eterm */
	__u64 function; /* the same, eterm */
	__u32 arity; /* the same */
	__u32 number; /* its index in call_totals */
};

/* Counts of one breakpoint site or function, per CPU, from 0. */
struct call_totals {
	__u64 calls; /* calls, or returns of pending calls */
	__u64 lost; /* of those, without a record because the ring was full */
	__u64 refused; /* hits whose process or function could not be read */
	__u64 strange; /* hits of other code at the same address; returns without a pending call */
	__u64 beyond; /* hits beyond the limit */
};

/* A call whose return is pending. */
struct call_pending {
	__u64 since_ns; /* when it began, ns */
	__u64 address; /* the function, address */
};

/* One call or return in the ring of function.bpf.c: 1024 bytes with the kernel's header. */
struct call_hit {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u64 process; /* the caller, eterm */
	__u64 address; /* the function's first instruction, address */
	__u64 caller; /* the return address, address */
	__u64 since_ns; /* return: when the call began; call: 0, ns */
	__u32 tid; /* the OS thread */
	__u32 arity; /* number of arguments; x has the first eight */
	__u64 x[8]; /* the arguments, eterm */
	__u64 captures[112]; /* of each capture a term and the first seven words that it points to */
	__u64 reserved; /* zero */
};

/* Settings of the profiler's programs; an offset is in bytes, 0 if unknown. */
struct sample_settings {
	__u32 tgid; /* the target */
	__u32 process_heap; /* struct process */
	__u32 process_stop; /* struct process */
	__u32 process_hend; /* struct process */
	__u32 process_frame_pointer; /* struct process; none before OTP 25 */
	__u32 process_i; /* struct process */
	__u32 process_current; /* struct process */
	__u32 process_state; /* struct process */
	__u32 scheduler_process; /* ErtsSchedulerData: current_process */
	__u32 scheduler_port; /* ErtsSchedulerData: current_port */
	__u32 scheduler_nif; /* ErtsSchedulerData: current_nif */
	__u32 schedule_in_register; /* offset into struct pt_regs of the process that is scheduled in */
	__u64 period_ns; /* time that one sample represents, ns */
};

/* A process that was scheduled out while it was watched. */
struct waiting {
	__u64 since_ns; /* when it was scheduled out; 0 while it runs, ns */
	__u64 i; /* where it resumes: Process.i, address */
	__u64 position_ns; /* its waiting so far, within the current period, ns */
	__u64 point_ns; /* the random point of that period at which the sample is taken, ns */
	__u32 reason; /* WAIT_* */
	__u32 seen; /* 1 once it was scheduled in or out */
};

/* Code at which processes wait, and why. */
struct wait_site {
	__u64 i; /* where they resume: Process.i, address */
	__u64 reason; /* WAIT_* */
};

/* All waiting at one wait_site. */
struct wait_total {
	__u64 ns; /* sum, ns */
	__u64 count; /* number of waits */
};

/* Settings of server.bpf.c; an offset is in bytes. */
struct server_settings {
	__u32 tgid; /* the target */
	__u32 process_sig_save; /* struct process */
	__u32 process_dictionary; /* struct process */
	__u32 process_hend; /* struct process */
	__u32 process_stop; /* struct process */
	__u32 process_state; /* struct process */
	__u32 process_module; /* struct process: module of its first function */
	__u32 message_term; /* ErtsMessage: m[0] */
	__u32 sees_idle; /* 1 if server_out is attached, so that the end of a message's work is known */
	__u32 by_tag; /* 1 if the messages of a module are counted by the tags of their requests */
	__u64 am_gen_call; /* atoms of messages, eterm */
	__u64 am_gen_cast; /* the same, eterm */
	__u64 am_alias; /* the same, eterm */
	__u64 am_down; /* the same, eterm */
	__u64 am_notify; /* the same, eterm */
	__u64 am_system; /* the same, eterm */
	__u64 am_timeout; /* the reason of a caller that waited too long, eterm */
	__u64 am_normal; /* the reason of a caller that ended itself, eterm */
	__u64 am_initial_call; /* the key of proc_lib in a process's dictionary, eterm */
	__u64 am_init; /* the function that a behaviour calls first, eterm */
	__u64 am_supervisor; /* a behaviour that stands where callback modules do, eterm */
	__u64 am_erlang; /* a module that says nothing of a process, eterm */
	__u64 am_proc_lib; /* the module of a process that has not run yet, eterm */
};

/* When hooks count, CLOCK_MONOTONIC; both 0 for never. */
struct server_window {
	__u64 opened_ns; /* from then on, ns */
	__u64 until_ns; /* until then; set to the time when the hits are used up, ns */
	__s64 left; /* hits left; each CPU takes SPENT_AT_ONCE at a time */
	__u32 limited; /* 0: there is no limit of hits */
	__u32 light; /* 1 in a light window, in which server.bpf.c sees sends alone */
};

/* What distinguishes one call from another: two words of its reference. */
struct server_reference {
	__u64 first; /* marker and lowest number */
	__u64 second; /* the other numbers */
};

/* A call that is open: the caller has neither got its reply nor ended. */
struct server_call {
	__u64 sent_ns; /* when the caller sent the request, ns */
	__u64 queued_ns; /* when it was sent to the server that has it now: another one may have passed it on, ns */
	__u64 taken_ns; /* when that server took it, ns */
	__u64 replied_ns; /* when the reply was sent, by whomever, ns */
	__u64 first; /* its server_reference */
	__u64 second; /* the same */
	__u32 slot; /* of the called module */
	__u32 server_slot; /* of the module of the server that has it now */
	__u32 caller_slot; /* of the calling module */
	__u32 late; /* 1 if the server took it when the caller had given up */
	__u32 timed_out; /* 1 if it was counted as a timeout */
	__u32 padding; /* named, so that it is zero */
};

/* A message without a reply that waits in the mailbox of a server. */
struct server_message {
	__u64 sent_ns; /* when it was sent, ns */
	__u64 receiver; /* pid of the server, eterm */
	__u64 sender; /* pid; with the receiver it distinguishes the message from one that lies at the same address later, eterm */
	__u64 slot; /* of the server's module */
};

/* What is known of a process that was sent a message or made a call. */
struct server_process {
	__u64 since_ns; /* since when a server has worked on one message, ns */
	__u32 slot; /* of its module */
	__u32 work_slot; /* of what it works on */
	__u32 is_server; /* 1 for a server */
	__u32 depth; /* of its stack when its loop takes a message, words */
	__u32 one_way; /* 1 if nobody on this node waits for the end of that work */
	__u32 asynchronous; /* 1 for a caller that makes several calls at a time */
	__u32 unsure; /* 1 for a process that had not run yet: it is looked at again */
	__u32 padding; /* named, so that it is zero */
};

/* What has a slot of its own. */
struct server_module {
	__u64 module; /* atom: the callback module, or that of a process's first function, eterm */
	__u64 function; /* atom: the first function of a server that does not begin in init/1; 1 for a process that is no server, eterm */
};

/* What has a slot of its own where messages are counted by tag. */
struct server_tag {
	__u64 slot; /* of the module */
	__u64 tag; /* atom: the request, or the first element of its tuple, eterm */
};

/* Who calls whom, by slots. */
struct server_edge {
	__u32 caller; /* slot of the calling module */
	__u32 callee; /* slot of the called module */
};

/* Calls along one edge. */
struct server_edge_total {
	__u64 calls; /* calls that were sent */
	__u64 blocked_ns; /* how long callers waited for those that ended, ns */
};

/* Messages of the servers of one module, of all CPUs: with a value for each CPU the histograms would take 60 MB on 64 of them. */
struct server_stats {
	__u64 calls; /* calls that were sent, and those of other nodes that were taken */
	__u64 casts; /* casts that a server took */
	__u64 sent_casts; /* casts that processes of this node sent */
	__u64 remote_calls; /* of the calls, those of other nodes */
	__u64 remote_casts; /* of the casts, those that no process of this node sent */
	__u64 infos; /* other messages that the loop of a server took */
	__u64 answered; /* calls whose caller took the reply */
	__s64 timeouts; /* calls whose caller gave up */
	__u64 down; /* calls whose caller was informed that the server ended */
	__s64 abandoned; /* calls that were taken when the caller had given up */
	__u64 queue_ns; /* sum of the times in queue, ns */
	__u64 service_ns; /* sum of the service times, ns */
	__u64 call_ns; /* sum of the times that callers waited for replies, ns */
	__u32 queue[448]; /* messages by time from send to take */
	__u32 service[448]; /* messages by time from take to reply, or to the end of the work */
	__u32 call[448]; /* calls by time from send to the caller's taking of the reply */
};

/* Settings of mark.bpf.c; an offset is in bytes. */
struct mark_settings {
	__u32 tgid; /* the target */
	__u32 process_id; /* struct process */
	__u32 process_hend; /* struct process */
	__u32 function_in_register; /* 1 if mark_function lies where the id is in rdi, and the process in r13 only */
	__u32 stream; /* 1 for a line of each call and its end */
	__u32 map_subtag; /* header subtag of a map */
	__u32 frames; /* MARK_FRAMES_* */
	__u32 padding; /* named, so that it is zero */
};

/* A marked function that has been called, by the 52 bits of its id. */
struct mark_function {
	__u32 slot; /* of mark_stats */
	__u32 tagged; /* 1 for a function whose first argument is a message, if it is a callback */
	__u32 callback; /* 1 if its markers are those of callbacks */
	__u32 arity; /* number of its arguments */
};

/* The calls of one process that are open, the deepest last; by the address of its struct process. */
struct mark_process {
	__u64 id; /* its pid: another one's calls are not its own, eterm */
	__u32 count; /* open calls */
	__u32 hits; /* hits of this process */
	__u64 depth[16]; /* bytes of stack above its frame */
	__u64 began_ns[16]; /* when it began, ns */
	__u32 before[16]; /* hits until then */
	__u32 slot[16]; /* of its function; the highest bit is set for a callback */
};

/* Calls of one marked function, of all CPUs. */
struct mark_stats {
	__u64 calls; /* entries */
	__u64 timed; /* calls that were followed until they ended */
	__u64 failures; /* callbacks that an exception ended, or whose process is gone */
	__u64 unfollowed; /* calls for which there was no room */
	__u64 ns; /* sum of the durations of those that were timed, ns */
	__u64 hits; /* hits within them, with that at the end */
	__u32 durations[448]; /* calls by duration */
};

/* What a callback was called with, or returned. */
struct mark_tag {
	__u32 slot; /* of the function */
	__u32 way; /* WAY_* */
	__u64 atom; /* 0 for anything else, eterm */
};

/* Where calls of a function return to. */
struct mark_caller {
	__u64 address; /* in the code of the caller, address */
	__u32 slot; /* of the function */
	__u32 padding; /* named, so that it is zero */
};

/* The end of a call, where nothing is copied of it. */
struct mark_end {
	__u64 time_ns; /* CLOCK_MONOTONIC, when it was noticed, ns */
	__u64 began_ns; /* when the call began; 0 if that was not followed, ns */
	__u64 process; /* pid of the caller, eterm */
	__u32 line; /* LINE_* */
	__u32 slot; /* of mark_stats; the highest bit is set for a callback */
};

/* The begin of a call, or its return; the first fields are those of mark_end. */
struct mark_call {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u64 began_ns; /* when the call began; 0 if that was not followed, ns */
	__u64 process; /* pid of the caller, eterm */
	__u32 line; /* LINE_* */
	__u32 slot; /* of mark_stats; the highest bit is set for a callback */
	__u64 id; /* of the function: 52 bits */
	__u64 code; /* in the function, behind the marker, address */
	__u64 caller; /* where the call returns to, address */
	__u32 tid; /* the OS thread */
	__u32 arity; /* number of arguments, 1 for a return; x has the first eight */
	__u64 x[8]; /* the arguments, or what was returned, eterm */
	__u64 captures[112]; /* of each capture a term and the first seven words that it points to */
};

/* A scheduler thread of the target. */
struct sampled_thread {
	__u64 scheduler; /* its ErtsSchedulerData, address */
	__u64 stack_top; /* its C stack pointer when Erlang code calls C, address */
};

/* A sample of a thread, or of a process that waited; the words of its stacks follow it in the ring. */
struct sample {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u64 weight_ns; /* time that it represents, ns */
	__u32 tid; /* the OS thread */
	__u32 failed; /* reads of the target's memory that failed */
	__u32 kernel_frames; /* entries of kernel, from the innermost frame */
	__u32 reason; /* off-CPU: WAIT_* */
	__u32 erlang_bytes; /* bytes of the Erlang stack, which follow this struct */
	__u32 native_bytes; /* bytes of the C stack, which follow the Erlang stack */
	__u64 ip; /* the registers of the thread in user space, address */
	__u64 sp; /* stack pointer; the C stack's words begin here, address */
	__u64 rbp; /* callee-saved, as are the next five */
	__u64 rbx; /*  */
	__u64 r12; /*  */
	__u64 r13; /*  */
	__u64 r14; /*  */
	__u64 r15; /*  */
	__u64 stack_top; /* of sampled_thread, address */
	__u64 process; /* the Process on the scheduler, address */
	__u64 pid; /* its pid, eterm */
	__u64 port; /* the port on the scheduler, eterm */
	__u64 nif; /* environment of the NIF that runs, address */
	__u64 heap; /* field of the process, as are the next five, address */
	__u64 stop; /* top of the stack when it was last stored, address */
	__u64 hend; /* bottom of the stack, address */
	__u64 frame_pointer; /* frame pointer when it was last stored, address */
	__u64 i; /* where it resumes, address */
	__u64 current; /* its ErtsCodeMFA, address */
	__u64 bottom; /* the bottom word of the Erlang stack: the return address of the first function, address */
	__u64 erlang_from; /* address of the first copied word of the Erlang stack, address */
	__u64 work; /* what the process works on: number of a telemetry_row, or WORK_* */
	__u64 kernel[64]; /* return addresses in the kernel, address */
};

/* Settings of telemetry.bpf.c: how the VM keeps terms, and what marks a lookup of handlers. */
struct telemetry_settings {
	__u64 table; /* the first argument of ets:lookup/2: the table of handlers, eterm */
	__u64 term; /* the first argument of persistent_term:get: where telemetry 1.4 keeps the table; also the module, eterm */
	__u64 execute; /* the function of the module that every event passes, eterm */
	__u32 tgid; /* the target */
	__u32 process_stop; /* struct process */
	__u32 map_subtag; /* header subtag of a map */
	__u32 bits; /* 1: binaries have sizes in bits, OTP 27 and later */
	__u32 spans; /* 1: a telemetry_span for each event with a specification; 2: for each event */
	__u32 padding; /* named, so that it is zero */
};

/* The name of an event. All zero: every event without a specification. Any and the last atom: every event that ends so. */
struct telemetry_event {
	__u32 atoms[8]; /* index of each atom; 0xffffffff is any; 0 behind the last */
};

/* What is taken of an event. A step is an atom, or a number of TELEMETRY_STEP_*. */
struct telemetry_spec {
	__u32 number; /* of the specification; 0 if the row is that of the name */
	__u32 labels; /* number of labels */
	__u32 measures; /* number of measurements */
	__u32 starts; /* 1: it begins what the event of this number ends; it is not counted; 2: nor is this one, which ends work */
	__u32 work; /* the work that it begins (starts is 1) or ends */
	__u32 padding; /* named, so that it is zero */
	__u64 guard_key; /* the event must have this key in its metadata, eterm */
	__u64 guard_value; /* and this value, eterm */
	__u64 struct_key; /* the atom __struct__, eterm */
	__u64 wrapper; /* a struct that has the exception in another one, eterm */
	__u64 wrapped; /* its key with that exception, eterm */
	__u64 measure[4]; /* keys of the measurements, eterm */
	__u64 path[16]; /* of each label; 0 behind the last step, eterm */
};

/* What a process works on, the outermost first. */
struct work {
	__u64 gate; /* value of the gate at which it began: what is older counts no longer */
	__u32 depth; /* how many there are */
	__u32 event[4]; /* work of the telemetry_spec that began each */
	__u32 padding; /* named, so that it is zero */
	__u64 row[4]; /* number of its telemetry_row in the map work_rows, or WORK_OTHER */
};

/* Events that are counted together. */
struct telemetry_row {
	__u32 spec; /* number of the specification */
	__u32 padding; /* named, so that it is zero */
	__u64 label[4]; /* an immediate term, or LABEL_* */
	__u8 text[256]; /* the first bytes of each label that is a binary; of specification 0 a telemetry_event */
};

/* Counts of one telemetry_row. */
struct telemetry_totals {
	__u64 count; /* events */
	__u64 measured[4]; /* events that had this measurement */
	__u64 sum[4]; /* of the measurement; two's complement */
	__u32 slots[160]; /* histogram of the first measurement */
};

/* One event that began something, or that ended what lasted from time_ns - duration until time_ns. */
struct telemetry_span {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u64 pid; /* the process, eterm */
	__s64 duration; /* the first measurement, ns */
	__u32 spec; /* number of the specification */
	__u32 starts; /* 1: it began something, and has no duration and no labels; 2: it has no duration */
	__u64 label[4]; /* as of telemetry_row */
	__u8 text[256]; /* as of telemetry_row */
};

/* Location of one argument of a USDT site. */
struct usdt_argument {
	__s64 value; /* the constant, the displacement, or the address */
	__u16 reg; /* offset into struct pt_regs */
	__u8 form; /* ARGUMENT_* */
	__u8 size; /* 1, 2, 4 or 8, bytes */
	__u8 is_signed; /* 1: extend the sign */
	__u8 padding[3]; /* named, so that it is zero */
};

/* A process was created. */
struct spawn_record {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u16 kind; /* which record this is */
	__u8 class; /* which class of its kind */
	__u8 flags; /* FLAG_* bits */
	__u32 tid; /* the OS thread it happened on */
	__u64 process; /* the Erlang process it happened to, eterm */
	__u64 parent; /* the process that spawned it, eterm */
	__u64 module; /* atom: first of M:F/A, eterm */
	__u64 function; /* atom: second of M:F/A, eterm */
	__u64 reserved[1]; /* zero */
};

/* A process began to exit. */
struct exit_record {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u16 kind; /* which record this is */
	__u8 class; /* which class of its kind */
	__u8 flags; /* FLAG_* bits */
	__u32 tid; /* the OS thread it happened on */
	__u64 process; /* the Erlang process it happened to, eterm */
	__u64 reason; /* as the VM holds it; only immediates can be read later, eterm */
	__u64 tag; /* what names a reason that is no atom: the first element of a tuple, the struct of an exception, eterm */
	__u32 module; /* where it crashed, or what it was started with; absent where it ended as it should, atom_index */
	__u32 function; /* the same, atom_index */
	__u32 line; /* of the source; absent where there is no stack trace, or it has none */
	__u32 name; /* the registered name that it had, atom_index */
};

/* A process sent a message to a process. */
struct send_record {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u16 kind; /* which record this is */
	__u8 class; /* which class of its kind */
	__u8 flags; /* FLAG_* bits */
	__u32 tid; /* the OS thread it happened on */
	__u64 process; /* the Erlang process it happened to, eterm */
	__u64 receiver; /* pid; absent where it is on another node, eterm */
	__u64 size; /* size of the copied message, words */
	__u64 message; /* the ErtsMessage, which the record of its receive has as well, address */
	__u64 form; /* what the message is to a process of OTP (call, cast, reply, down, info), and the reference of its call, form */
};

/* A process took a message out of its mailbox. */
struct receive_record {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u16 kind; /* which record this is */
	__u8 class; /* which class of its kind */
	__u8 flags; /* FLAG_* bits */
	__u32 tid; /* the OS thread it happened on */
	__u64 process; /* the Erlang process it happened to, eterm */
	__u64 message; /* the ErtsMessage, to pair it with its send, address */
	__u64 size; /* size of the message, words */
	__u64 sender; /* the sender that the VM noted; an atom for its own services, eterm */
	__u64 form; /* what the message is to a process of OTP (call, cast, reply, down, info), and the reference of its call, form */
};

/* A process was scheduled in or out on a normal scheduler. */
struct schedule_record {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u16 kind; /* which record this is */
	__u8 class; /* which class of its kind */
	__u8 flags; /* FLAG_* bits */
	__u32 tid; /* the OS thread it happened on */
	__u64 process; /* the Erlang process it happened to, eterm */
	__u64 duration_ns; /* out: how long it ran, ns */
	__u64 reductions; /* out: what the VM counted for it, reductions */
	__u64 runnable; /* out: 1 if it could go on, 0 if it waits */
	__u64 reserved[1]; /* zero */
};

/* A garbage collection of one process ended. */
struct gc_record {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u16 kind; /* which record this is */
	__u8 class; /* which class of its kind */
	__u8 flags; /* FLAG_* bits */
	__u32 tid; /* the OS thread it happened on */
	__u64 process; /* the Erlang process it happened to, eterm */
	__u64 duration_ns; /* how long the process was stopped, ns */
	__u64 reclaimed; /* live words before minus live words after, words */
	__u64 live; /* words in use after, young and old heap, words */
	__u64 reserved[1]; /* zero */
};

/* A process called hibernate. */
struct hibernate_record {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u16 kind; /* which record this is */
	__u8 class; /* which class of its kind */
	__u8 flags; /* FLAG_* bits */
	__u32 tid; /* the OS thread it happened on */
	__u64 process; /* the Erlang process it happened to, eterm */
	__u64 reserved[4]; /* zero */
};

/* A port was opened. */
struct port_open_record {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u16 kind; /* which record this is */
	__u8 class; /* which class of its kind */
	__u8 flags; /* FLAG_* bits */
	__u32 tid; /* the OS thread it happened on */
	__u64 process; /* the Erlang process it happened to, eterm */
	__u64 port; /* the new port, eterm */
	char name[24]; /* driver or command, cut at 24 bytes */
};

/* A port began to close; process is the process or port that closed it. */
struct port_close_record {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u16 kind; /* which record this is */
	__u8 class; /* which class of its kind */
	__u8 flags; /* FLAG_* bits */
	__u32 tid; /* the OS thread it happened on */
	__u64 process; /* the Erlang process it happened to, eterm */
	__u64 port; /* the port, eterm */
	__u64 reason; /* as the VM holds it, eterm */
	__u64 reserved[2]; /* zero */
};

/* A driver marked its port busy or not busy; process is the port's owner. */
struct port_busy_record {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u16 kind; /* which record this is */
	__u8 class; /* which class of its kind */
	__u8 flags; /* FLAG_* bits */
	__u32 tid; /* the OS thread it happened on */
	__u64 process; /* the Erlang process it happened to, eterm */
	__u64 port; /* the port, eterm */
	__u64 reserved[3]; /* zero */
};

/* A process was suspended because the buffer to another node is full. */
struct dist_busy_record {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u16 kind; /* which record this is */
	__u8 class; /* which class of its kind */
	__u8 flags; /* FLAG_* bits */
	__u32 tid; /* the OS thread it happened on */
	__u64 process; /* the Erlang process it happened to, eterm */
	__u64 reserved[4]; /* zero */
};

/* Buffered signals for another node were handed to its connection. */
struct dist_output_record {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u16 kind; /* which record this is */
	__u8 class; /* which class of its kind */
	__u8 flags; /* FLAG_* bits */
	__u32 tid; /* the OS thread it happened on */
	__u64 process; /* the Erlang process it happened to, eterm */
	__u64 port; /* the connection, where it is a port, eterm */
	__u64 reserved[3]; /* zero */
};

/* A module was loaded. */
struct code_load_record {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u16 kind; /* which record this is */
	__u8 class; /* which class of its kind */
	__u8 flags; /* FLAG_* bits */
	__u32 tid; /* the OS thread it happened on */
	__u64 process; /* the Erlang process it happened to, eterm */
	__u64 module; /* atom, eterm */
	__u64 reserved[3]; /* zero */
};

/* A NIF or BIF ran for slow_call_ns or longer. */
struct long_call_record {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u16 kind; /* which record this is */
	__u8 class; /* which class of its kind */
	__u8 flags; /* FLAG_* bits */
	__u32 tid; /* the OS thread it happened on */
	__u64 process; /* the Erlang process it happened to, eterm */
	__u64 duration_ns; /* how long it ran, ns */
	__u64 code; /* the Erlang code that called it, address */
	__u64 native; /* the C function, address */
	__u64 reserved[1]; /* zero */
};

/* The kernel gave an OS thread of the VM a CPU, took it away, or made it ready to run. */
struct thread_record {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u16 kind; /* which record this is */
	__u8 class; /* which class of its kind */
	__u8 flags; /* FLAG_* bits */
	__u32 tid; /* the OS thread it happened on */
	__u64 process; /* the Erlang process it happened to, eterm */
	__u32 cpu; /* which CPU */
	__u32 other; /* the thread that ran before (on) or after (off); 0 is none */
	__u64 state; /* off: the kernel's state of the thread, 0 if it was preempted */
	__u64 reserved[2]; /* zero */
};

/* A packet for another node was made ready for its connection; process is the sender of what is in it. */
struct dist_out_record {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u16 kind; /* which record this is */
	__u8 class; /* which class of its kind */
	__u8 flags; /* FLAG_* bits */
	__u32 tid; /* the OS thread it happened on */
	__u64 process; /* the Erlang process it happened to, eterm */
	__u64 peer; /* the other node, atom */
	__u64 receiver; /* pid or name on the other node; of a monitor its reference, remote */
	__u32 number; /* of the packet within its connection, from 1 at the first that was seen */
	__u32 size; /* of the packet, bytes */
	__u32 check; /* hash of its last 8 bytes, which both nodes have alike */
	__u16 connection; /* low bits of the number that this node gave to the connection */
	__u16 operation; /* the operation of the distribution protocol; 0 if it is unknown */
};

/* A packet of another node came in. */
struct dist_in_record {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u16 kind; /* which record this is */
	__u8 class; /* which class of its kind */
	__u8 flags; /* FLAG_* bits */
	__u32 tid; /* the OS thread it happened on */
	__u64 process; /* the Erlang process it happened to, eterm */
	__u64 peer; /* the other node, atom */
	__u32 number; /* of the packet within its connection, from 1 at the first that was seen */
	__u32 size; /* of the packet, bytes */
	__u32 check; /* hash of its last 8 bytes */
	__u16 connection; /* low bits of the number that this node gave to the connection */
	__u16 padding; /* zero */
	__u64 reserved[1]; /* zero */
};

/* The connection to another node was lost or closed. */
struct dist_down_record {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u16 kind; /* which record this is */
	__u8 class; /* which class of its kind */
	__u8 flags; /* FLAG_* bits */
	__u32 tid; /* the OS thread it happened on */
	__u64 process; /* the Erlang process it happened to, eterm */
	__u64 peer; /* the other node, atom */
	__u64 reason; /* as net_kernel:monitor_nodes/2 gives it: net_tick_timeout, disconnect, connection_closed, or another; absent unless it is an atom, loss */
	__u64 reserved[2]; /* zero */
};

/* A marker of a callback was passed, in code that scope-mark has marked, or one of an exception handler. */
struct mark_callback_record {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u16 kind; /* which record this is */
	__u8 class; /* which class of its kind */
	__u8 flags; /* FLAG_* bits */
	__u32 tid; /* the OS thread it happened on */
	__u64 process; /* the Erlang process it happened to, eterm */
	__u64 function; /* which function: 52 bits of a hash of M:F/A, mark */
	__u64 depth; /* of the stack above the function's frame; the same at each marker of one call, bytes */
	__u64 caller; /* entry: where the function returns to, address */
	__u64 tag; /* atom: the first argument or what was returned, or the first element of that tuple, eterm */
};

/* A marker of a function that is no callback was passed, in code that scope-mark has marked with the profile all. */
struct mark_function_record {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u16 kind; /* which record this is */
	__u8 class; /* which class of its kind */
	__u8 flags; /* FLAG_* bits */
	__u32 tid; /* the OS thread it happened on */
	__u64 process; /* the Erlang process it happened to, eterm */
	__u64 function; /* which function: 52 bits of a hash of M:F/A, mark */
	__u64 depth; /* of the stack above the function's frame; the same at each marker of one call, bytes */
	__u64 caller; /* entry: where the function returns to, address */
	__u64 tag; /* as in mark_callback, eterm */
};

/* Any record, its own fields as words. */
struct record {
	struct header header;
	__u64 body[4];
};

/* Every record, so that each object's BTF has them; libbpf skips the section. */
union any_record {
	struct spawn_record spawn;
	struct exit_record exit;
	struct send_record send;
	struct receive_record receive;
	struct schedule_record schedule;
	struct gc_record gc;
	struct hibernate_record hibernate;
	struct port_open_record port_open;
	struct port_close_record port_close;
	struct port_busy_record port_busy;
	struct dist_busy_record dist_busy;
	struct dist_output_record dist_output;
	struct code_load_record code_load;
	struct long_call_record long_call;
	struct thread_record thread;
	struct dist_out_record dist_out;
	struct dist_in_record dist_in;
	struct dist_down_record dist_down;
	struct mark_callback_record mark_callback;
	struct mark_function_record mark_function;
};
const union any_record *any_record __attribute__((section(".records"), used));

#endif
