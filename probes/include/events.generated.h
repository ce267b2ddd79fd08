/* SPDX-License-Identifier: GPL-2.0-only */
/* Made by probes/generate.py from probes/events.toml; not written by hand. */
#ifndef SCOPE_EVENTS_GENERATED_H
#define SCOPE_EVENTS_GENERATED_H

#define CLASSES 8
#define KINDS 15
#define RECORD_BYTES 56

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

enum flags {
	FLAG_TEXT_PID = 1, /* process, and any other pid of the record, is number | serial << 32, read from a USDT text */
};

enum argument_form {
	ARGUMENT_NONE = 0,
	ARGUMENT_CONSTANT = 1,
	ARGUMENT_REGISTER = 2,
	ARGUMENT_MEMORY = 3,
	ARGUMENT_ABSOLUTE = 4,
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
};

/* One number for each program, for the map of hits. */
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
	PROGRAM_PORT_BUSY_USDT = 30,
	PROGRAM_PORT_NOT_BUSY_USDT = 31,
	PROGRAM_DIST_BUSY_ENTRY = 32,
	PROGRAM_DIST_RESUME = 33,
	PROGRAM_DIST_OUTPUT_PORT = 34,
	PROGRAM_DIST_OUTPUT_PROCESS = 35,
	PROGRAM_DIST_OUTPUT_USDT = 36,
	PROGRAM_CODE_LOAD_ENTRY = 37,
	PROGRAM_CODE_LOAD_RETURN = 38,
	PROGRAM_NIF_ENTRY = 39,
	PROGRAM_CALL_RETURN = 40,
	PROGRAM_BIF_ENTRY = 41,
	PROGRAM_DIRTY_NIF_ENTRY = 42,
	PROGRAM_DIRTY_BIF_ENTRY = 43,
	PROGRAM_SWITCHED = 44,
	PROGRAM_WOKEN = 45,
	PROGRAMS = 46,
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
	__u64 pidns_dev; /* our pid namespace, where it is not the host's; else 0 */
	__u64 pidns_ino; /* the same */
	__u64 dsig_send_start; /* code of erts_dsig_send, as the file has it, address */
	__u64 dsig_send_end; /* the first byte after it, address */
	__u64 am_normal; /* atoms that class an exit reason, eterm */
	__u64 am_shutdown; /* the same, eterm */
	__u64 am_killed; /* the same, eterm */
	__u32 process_heap; /* offsets into struct process, bytes */
	__u32 process_htop; /* the same, bytes */
	__u32 process_old_heap; /* the same, bytes */
	__u32 process_old_htop; /* the same, bytes */
	__u32 process_mbuf_sz; /* the same, bytes */
	__u32 process_gen_gcs; /* the same, bytes */
	__u32 process_sig_save; /* the same, bytes */
	__u32 port_connected; /* offsets into struct _erl_drv_port, bytes */
	__u32 port_state; /* the same, bytes */
	__u32 schedule_in_register; /* where in struct pt_regs copy_in_registers has its process, bytes */
	__u32 process_abandoned_heap; /* one more offset into struct process, bytes */
	__u32 process_state; /* the same, bytes */
	__u32 send_message_register; /* where in struct pt_regs a sent message is; 0 where the hook is too early, bytes */
	__u32 message_sender; /* offset into ErtsMessage, bytes */
	__u32 send_alias_register; /* the same of a message to an alias, bytes */
	__u32 padding; /* named, so that it is zero */
};

/* Whom loaded programs look at: one target after another, so it is no constant. */
struct target {
	__u64 base; /* what is added to an address of its file, address */
	__u32 tgid; /* its process, in our pid namespace */
	__u32 padding; /* named, so that it is zero */
};

/* Counts of one class of one kind, per CPU, from 0. */
struct tally {
	__u64 count; /* how often it happened */
	__u64 lost; /* records that found no room in the ring */
	__u64 refused; /* reads of the VM's memory that failed, and starts that found no room */
};

/* How long things of one class took, per CPU. */
struct durations {
	__u64 total_ns; /* sum, ns */
	__u64 slots[40]; /* slot N counts 2^N ns up to 2^(N+1); the last is open */
};

/* How often the hooks of one kind may still be hit before the kernel closes their gate. */
struct allowance {
	__u64 limited; /* 0: there is no limit, and the rest means nothing */
	__s64 left; /* hits; spent SPENT_AT_ONCE at a time on each CPU */
	__u64 since_ns; /* when the gate was opened, ns */
	__u64 tripped_ns; /* when it closed itself; 0 while it is open, ns */
	__u64 until_ns; /* when its window ends; 0: it is no window, ns */
	__u64 begun; /* 1 after the first hit of a window */
};

/* Where the VM counts what goes along with one kind: words whose sum is read at a window's edges. */
struct measure {
	__u64 address; /* the first word, address */
	__u32 stride; /* from one word to the next, bytes */
	__u32 words; /* how many there are */
	__u64 second_address; /* the same of another measure, address */
	__u32 second_stride; /* from one of its words to the next, bytes */
	__u32 second_words; /* 0 where there is none */
};

/* What a measure was at one edge of a window: at its first hit, or at the hit that closed its gate. */
struct edge {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u64 measure; /* the sum of the words, modulo 2^64 */
	__u64 refused; /* parts of the words that could not be read */
	__u64 second; /* the second measure, as the first */
};

/* One OS thread that is watched, and what it does now. */
struct thread {
	__u64 since_ns; /* since when; 0 before it was seen, ns */
	__u64 ready_ns; /* since when it waits for a CPU; 0 if it does not, ns */
	__u32 row; /* which thread_totals its time goes to */
	__u32 cpu; /* the CPU it ran on last, plus 1 */
	__u32 reason; /* OFF_*, while it is off */
	__u32 running; /* 1 while it is on a CPU */
	__u64 scheduler; /* its ErtsSchedulerData; 0 where it has none, or we do not know, address */
	__u64 sleep_flags; /* ErtsSchedulerSleepInfo.flags of it, address */
	__u64 seen_process; /* the process in native code at the last sample; 0 if none was, address */
	__u64 seen_reductions; /* what the scheduler had counted then */
	__s64 seen_fcalls; /* what the process had left then */
	__u16 at_process; /* offset of current_process in ErtsSchedulerData, bytes */
	__u16 at_nif; /* offset of current_nif in it, bytes */
	__u16 at_reductions; /* offset of reductions in it, bytes */
	__u16 at_code; /* offset in struct process of what tells the native function, bytes */
	__u16 before_code; /* how far before that its ErtsCodeMFA lies, bytes */
	__u16 at_fcalls; /* offset of fcalls in struct process, bytes */
	__u16 long_call; /* 1 if the call at the last sample was counted as long */
	__u8 padding[2]; /* named, so that it is zero */
	__u32 target; /* which target it is of */
	__u32 traced; /* 1 while the tracepoints are attached, so that what it does is known once it was seen */
	__u64 queue; /* the kernel's run queue that it waits in; 0 where a thread says itself whether it is throttled, address */
	__u64 queue_throttled_ns; /* how long that queue had been throttled when the wait began, ns */
};

/* Time of all threads of one row, per CPU, from 0. */
struct thread_totals {
	__u64 on_ns; /* on a CPU, ns */
	__u64 off_ns[5]; /* off it, by OFF_*, ns */
	__u64 switches; /* times it was given a CPU */
	__u64 migrations; /* times that was another CPU than before */
	__u64 waited_ns; /* ready, and waiting for a CPU, ns */
	__u64 slots[40]; /* single waits: slot N counts 2^N ns up to 2^(N+1); the last is open */
	__u64 samples; /* times the clock found it on a CPU */
	__u64 busy_waits; /* of these, how often it was a scheduler that spun without work */
	__u64 refused; /* reads of the VM's memory that failed, and natives that found no room */
};

/* A native function of a target. */
struct native_key {
	__u64 module; /* atom: first of M:F/A, eterm */
	__u64 function; /* atom: second of M:F/A, eterm */
	__u32 arity; /* third of it */
	__u32 target; /* whose it is */
};

/* What the clock saw of one native function, per CPU, from 0. */
struct native {
	__u64 samples; /* times it was found running */
	__u64 long_calls; /* calls that were found running twice */
};

/* Where one argument of a USDT site lies. */
struct usdt_argument {
	__s64 value; /* the constant, the displacement, or the address */
	__u16 reg; /* offset into struct pt_regs */
	__u8 form; /* ARGUMENT_* */
	__u8 size; /* 1, 2, 4 or 8, bytes */
	__u8 is_signed; /* 1: extend the sign */
	__u8 padding[3]; /* named, so that it is zero */
};

/* What the programs of function.bpf.c must know of a target; constants to the verifier. */
struct call_settings {
	__u64 limit; /* calls that are counted, of all functions */
	__u64 return_limit; /* returns that are looked at */
	__u32 process_hend; /* offset of hend in struct process, bytes */
	__u32 map_subtag; /* tag of a map's header word */
};

/* An address at which a breakpoint stands: a function's first instruction, or where a call returns to. */
struct call_place {
	__u64 module; /* what must stand before a function's code; 0 for a return address, eterm */
	__u64 function; /* the same, eterm */
	__u32 arity; /* the same */
	__u32 number; /* its place in call_totals */
};

/* What happened at one place, per CPU, from 0. */
struct call_totals {
	__u64 calls; /* calls, or returns of calls that were waited for */
	__u64 lost; /* of those, without a record: the ring was full */
	__u64 refused; /* hits of which the process or the function could not be read */
	__u64 strange; /* hits of other code at the same address; returns that nobody waited for */
	__u64 beyond; /* hits beyond the limit */
};

/* A call whose return is waited for. */
struct call_pending {
	__u64 since_ns; /* when it began, ns */
	__u64 address; /* the function, address */
};

/* One call, or the return of one, as it lies in the ring of function.bpf.c: 1024 bytes with the kernel's header. */
struct call_hit {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u64 process; /* who called, eterm */
	__u64 address; /* the function's first instruction, address */
	__u64 caller; /* where it returns to, address */
	__u64 since_ns; /* of a return: when the call began; else 0, ns */
	__u32 tid; /* the OS thread */
	__u32 arity; /* arguments of the function, of which x has the first eight */
	__u64 x[8]; /* the arguments, eterm */
	__u64 pieces[112]; /* fourteen times a term and the first seven words it points to */
	__u64 reserved; /* zero */
};

/* What the profiler's programs must know of the target; an offset is in bytes, 0 where unknown. */
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
	__u64 period_ns; /* how much time one sample stands for, ns */
};

/* A scheduler thread of the target. */
struct sampled_thread {
	__u64 scheduler; /* its ErtsSchedulerData, address */
	__u64 stack_top; /* where its C stack begins when Erlang code calls C, address */
};

/* One look at a thread, or at a process that waited; the words of its stacks follow it in the ring. */
struct sample {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u64 weight_ns; /* how much time it stands for, ns */
	__u32 tid; /* the OS thread */
	__u32 failed; /* reads of the target's memory that failed */
	__u32 kernel_frames; /* of kernel, from the innermost */
	__u32 reason; /* off-CPU: WAIT_* */
	__u32 erlang_bytes; /* of the Erlang stack, first behind this struct */
	__u32 native_bytes; /* of the C stack, behind the Erlang stack */
	__u64 ip; /* the registers of the thread in user space, address */
	__u64 sp; /* stack pointer; the C stack's words begin here, address */
	__u64 rbp; /* saved by whom is called, as are the next five */
	__u64 rbx; /*  */
	__u64 r12; /*  */
	__u64 r13; /*  */
	__u64 r14; /*  */
	__u64 r15; /*  */
	__u64 stack_top; /* that of sampled_thread, address */
	__u64 process; /* the Process on the scheduler, address */
	__u64 pid; /* who that is, eterm */
	__u64 port; /* the port on the scheduler, eterm */
	__u64 nif; /* environment of the native function that runs, address */
	__u64 heap; /* of the process, as the next five, address */
	__u64 stop; /* top of the stack, as of the last time it was put down, address */
	__u64 hend; /* where the stack begins, address */
	__u64 frame_pointer; /* likewise, address */
	__u64 i; /* likewise, the code to go on with, address */
	__u64 current; /* likewise, the ErtsCodeMFA, address */
	__u64 bottom; /* the last word of the Erlang stack: where the process ends, address */
	__u64 erlang_from; /* address of the first word of the Erlang stack that follows, address */
	__u64 kernel[64]; /* return addresses in the kernel, address */
};

/* One process that was seen going off its scheduler. */
struct waiting {
	__u64 since_ns; /* since when it is off; 0 while it is on, ns */
	__u64 i; /* the code to go on with, address */
	__u64 position_ns; /* how far it is in the stretch of waiting that one sample stands for, ns */
	__u64 point_ns; /* where in that stretch the sample is taken, ns */
	__u32 reason; /* WAIT_* */
	__u32 seen; /* 1 once it was seen on a scheduler */
};

/* A place in the code where processes wait, and why. */
struct wait_site {
	__u64 i; /* the code to go on with, address */
	__u64 reason; /* WAIT_* */
};

/* All waiting at one place. */
struct wait_total {
	__u64 ns; /* how long, ns */
	__u64 count; /* how often */
};

/* A process was created. */
struct spawn_record {
	__u64 time_ns; /* CLOCK_MONOTONIC, ns */
	__u16 kind; /* which record this is */
	__u8 class; /* which class of its kind */
	__u8 flags; /* FLAG_* bits */
	__u32 tid; /* the OS thread it happened on */
	__u64 process; /* the Erlang process it happened to, eterm */
	__u64 parent; /* who asked for it, eterm */
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
	__u64 tag; /* first element, where the reason is a tuple, eterm */
	__u64 reserved[2]; /* zero */
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
	__u64 message; /* the ErtsMessage, which its receive tells as well, address */
	__u64 reserved[1]; /* zero */
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
	__u64 sender; /* who the VM noted as the sender; an atom for its own services, eterm */
	__u64 reserved[1]; /* zero */
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
	__u64 duration_ns; /* how long the process stood still, ns */
	__u64 reclaimed; /* live words before, less live words after, words */
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

/* A port began to close; process is who or what closed it. */
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

/* A driver said its port is busy, or no longer; process is the port's owner. */
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
};
const union any_record *any_record __attribute__((section(".records"), used));

#endif
