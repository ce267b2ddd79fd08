# SPDX-License-Identifier: Apache-2.0
"""
The records that BPF programs and Python share, their constants, and the hooks that may be attached.

Made by probes/generate.py from probes/events.toml; not written by hand.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from scope_ebpf.schema import (
    Hook as Hook,
    Kind as Kind,
    Unavailable as Unavailable,
    Variant as Variant,
)

_SOURCE = Path(__file__).read_bytes()
#: Of this file, when this process started. Each BPF object has the fingerprint of the file that it
#: was built with, so that an object of another build is rejected.
FINGERPRINT = f"{zlib.crc32(_SOURCE):08x}{zlib.adler32(_SOURCE):08x}"

#: classes of one kind; kind * CLASSES + class is the index in counters and histograms
CLASSES = 8
#: slot N counts 2^N ns up to 2^(N+1); the last is open
HISTOGRAM_SLOTS = 40
#: start and end of a window; kind * WINDOW_BOUNDS + bound is the key in counter_samples
WINDOW_BOUNDS = 2
#: arguments of one USDT site
USDT_ARGUMENTS = 8
#: targets whose threads are watched at a time
MAX_TARGETS = 64
#: types of threads of a target, each with a row of thread_totals
THREAD_TYPES = 6
#: NIFs of all targets that are counted
MAX_NIFS = 4096
#: samples a second that threads.bpf.c takes of each CPU: a prime, so that it keeps step with nothing
SAMPLE_HZ = 97
#: ticks of the profiler's timer of which one, drawn at random, becomes a sample
TICKS_PER_SAMPLE = 2
#: of the Erlang stack of a process that waits
OFF_CPU_STACK_BYTES = 8192
#: 512 starts of VMs at once
STARTS_RING_BYTES = 32768
#: versions of functions, and return addresses, in one run
MAX_BREAKPOINT_SITES = 64
#: terms of a call whose words are copied
CAPTURES = 14
#: of each: the term, then the first seven words that it points to
CAPTURE_WORDS = 8
#: functions that interpreted.bpf.c watches at a time
MAX_PROBED_FUNCTIONS = 4
#: of the name of a telemetry event
TELEMETRY_ATOMS = 8
#: labels of a telemetry event
TELEMETRY_LABELS = 4
#: steps of the path to a label
TELEMETRY_STEPS = 4
#: measurements of a telemetry event that are added up; durations of the first are a histogram
TELEMETRY_MEASURES = 4
#: of a binary that is a label
TELEMETRY_TEXT_BYTES = 64
#: four for each power of two: slot 4 N + Q counts from 2^N (1 + Q / 4) up to 2^N (1 + (Q + 1) / 4)
TELEMETRY_SLOTS = 160
#: a step to an element of a tuple: this, and its number << 4
TELEMETRY_STEP_ELEMENT = 4
#: a step to what names an exception: an atom, the struct of a map, the first element of a tuple
TELEMETRY_STEP_CLASS = 8
#: processes of one target whose work the daemon knows at a time
MAX_OPEN_WORKS = 4096
#: works of one target that the daemon counts apart, and WORK_OUTSIDE and WORK_OTHER
MAX_WORK_ROWS = 514
#: works of one process within each other that are followed; a power of two
WORK_DEPTH = 4
#: in the place of a telemetry_row's number: a process that works on nothing that is known
WORK_OUTSIDE = 0
#: in that place: work for which the map of rows had no room
WORK_OTHER = 1
#: modules whose servers are counted apart; the first are those of enum server_slot
SERVER_SLOTS = 256
#: sixteen to each octave of nanoseconds; the first takes all that is shorter, the last all that is longer
SERVER_BUCKETS = 448
#: bucket 0 begins at 2^10 ns
SERVER_FIRST_OCTAVE = 10
#: tags of requests that are counted apart of one module; its other ones are counted together
SERVER_TAGS = 8
#: marked functions that are counted apart, of those that are called; the first slot is of the others
MARK_SLOTS = 4096
#: open calls of one process that are followed; a power of two
MARK_OPEN_CALLS = 16
#: pairs of a marked function and a place that its calls return to; calls of others are of unknown callers
MARK_CALLERS = 16384
#: processes of which alone events are counted, where that is asked for
MAX_WANTED = 16384
#: M:F/A as the interpreter's function probes write it: DTRACE_TERM_BUF_SIZE
FUNCTION_TEXT_BYTES = 256

KINDS = {
    'spawn': Kind(0, 'spawn', 'A process was created.', units={'parent': 'eterm', 'module': 'eterm', 'function': 'eterm'}, absent={'parent': 0, 'module': 0, 'function': 0}),
    'exit': Kind(1, 'exit', 'A process began to exit.', classes=('unknown', 'normal', 'shutdown', 'killed', 'error', 'other'), units={'reason': 'eterm', 'tag': 'eterm', 'module': 'atom_index', 'function': 'atom_index', 'name': 'atom_index'}, absent={'reason': 0, 'tag': 0, 'module': 0, 'function': 0, 'line': 0, 'name': 0}),
    'send': Kind(2, 'send', 'A process sent a message to a process.', classes=('local', 'remote'), units={'receiver': 'eterm', 'size': 'words', 'message': 'address', 'form': 'form'}, absent={'receiver': 0, 'size': 18446744073709551615, 'message': 0, 'form': 0}),
    'receive': Kind(3, 'receive', 'A process took a message out of its mailbox.', units={'message': 'address', 'size': 'words', 'sender': 'eterm', 'form': 'form'}, absent={'message': 0, 'size': 18446744073709551615, 'sender': 0, 'form': 0}),
    'schedule': Kind(4, 'schedule', 'A process was scheduled in or out on a normal scheduler.', classes=('in', 'out'), counted='in', histogram='out', units={'duration_ns': 'ns', 'reductions': 'reductions'}, absent={'duration_ns': 18446744073709551615, 'reductions': 18446744073709551615, 'runnable': 18446744073709551615}),
    'gc': Kind(5, 'gc', 'A garbage collection of one process ended.', classes=('unknown', 'minor', 'major', 'hibernate'), histogram='all', units={'duration_ns': 'ns', 'reclaimed': 'words', 'live': 'words'}, absent={'duration_ns': 18446744073709551615, 'reclaimed': 18446744073709551615, 'live': 18446744073709551615}),
    'hibernate': Kind(6, 'hibernate', 'A process called hibernate.'),
    'port_open': Kind(7, 'port_open', 'A port was opened.', units={'port': 'eterm'}, absent={'port': 0}),
    'port_close': Kind(8, 'port_close', 'A port began to close; process is the process or port that closed it.', units={'port': 'eterm', 'reason': 'eterm'}, absent={'port': 0, 'reason': 0}),
    'port_busy': Kind(9, 'port_busy', "A driver marked its port busy or not busy; process is the port's owner.", classes=('busy', 'not_busy'), counted='busy', histogram='busy', units={'port': 'eterm'}, absent={'port': 0}),
    'dist_busy': Kind(10, 'dist_busy', 'A process was suspended because the buffer to another node is full.', histogram='all'),
    'dist_output': Kind(11, 'dist_output', 'Buffered signals for another node were handed to its connection.', classes=('port', 'process'), units={'port': 'eterm'}, absent={'port': 0}),
    'code_load': Kind(12, 'code_load', 'A module was loaded.', units={'module': 'eterm'}, absent={'module': 0}),
    'long_call': Kind(13, 'long_call', 'A NIF or BIF ran for slow_call_ns or longer.', classes=('nif', 'bif', 'dirty_nif', 'dirty_bif'), histogram='all', units={'duration_ns': 'ns', 'code': 'address', 'native': 'address'}, absent={'code': 0, 'native': 0}),
    'thread': Kind(14, 'thread', 'The kernel gave an OS thread of the VM a CPU, took it away, or made it ready to run.', classes=('on', 'off', 'woken'), counted='on'),
    'dist_out': Kind(15, 'dist_out', 'A packet for another node was made ready for its connection; process is the sender of what is in it.', classes=('other', 'message', 'monitor', 'link', 'exit', 'spawn', 'fragment'), units={'peer': 'atom', 'receiver': 'remote', 'size': 'bytes'}, absent={'peer': 0, 'receiver': 0, 'check': 0}),
    'dist_in': Kind(16, 'dist_in', 'A packet of another node came in.', classes=('packet', 'tick'), counted='packet', units={'peer': 'atom', 'size': 'bytes'}, absent={'peer': 0, 'check': 0}),
    'dist_down': Kind(17, 'dist_down', 'The connection to another node was lost or closed.', units={'peer': 'atom', 'reason': 'loss'}, absent={'peer': 0, 'reason': 0}),
    'mark_callback': Kind(18, 'mark_callback', 'A marker of a callback was passed, in code that scope-mark has marked, or one of an exception handler.', classes=('entry', 'return', 'caught', 'catch', 'tail'), counted='entry', units={'function': 'mark', 'depth': 'bytes', 'caller': 'address', 'tag': 'eterm'}, absent={'caller': 0, 'tag': 0}),
    'mark_function': Kind(19, 'mark_function', 'A marker of a function that is no callback was passed, in code that scope-mark has marked with the profile all.', classes=('entry', 'return'), counted='entry', units={'function': 'mark', 'depth': 'bytes', 'caller': 'address', 'tag': 'eterm'}, absent={'caller': 0, 'tag': 0}),
}

FLAG_TEXT_PID = 1  # process, and any other pid of the record, is number | serial << 32, read from a USDT text

#: System calls in which a thread waits for work (x86_64): a futex for schedulers, a poll for threads that watch sockets.
CALL_POLL = 7
CALL_SELECT = 23
CALL_FUTEX = 202
CALL_EPOLL_WAIT = 232
CALL_PSELECT6 = 270
CALL_PPOLL = 271
CALL_EPOLL_PWAIT = 281
CALL_EPOLL_PWAIT2 = 441
WAITING_CALLS = frozenset((7, 23, 202, 232, 270, 271, 281, 441))

#: What a message is: the highest byte of the field form, whose low 50 bits are the reference of the call.
FORM_UNKNOWN = 0
FORM_INFO = 1
FORM_CALL = 2
FORM_CAST = 3
FORM_REPLY = 4
FORM_DOWN = 5
FORMS = ('unknown', 'info', 'call', 'cast', 'reply', 'down')

#: What a receiver on another node is: the two highest bits of a field with the unit remote.
REMOTE_PID = 1
REMOTE_NAME = 2
REMOTE_REF = 3

#: ErtsSchedulerSleepInfo.flags, OTP 24 to 29 (erl_process.h).
SSI_POLL_SLEEPING = 2
SSI_TSE_SLEEPING = 4
SSI_WAITING = 8

#: Keys of the profiler's map counts.
SAMPLES_TAKEN = 0
SAMPLES_LOST = 1
SAMPLE_COUNTS = ('taken', 'lost')

#: Keys of call_state in function.bpf.c: calls and returns so far, of all sites, and 1 while calls count.
CALL_STATE_CALLS = 0
CALL_STATE_RETURNS = 1
CALL_STATE_OPEN = 2
CALL_STATES = ('calls', 'returns', 'open')

#: Keys of call_state in interpreted.bpf.c: calls so far, of all functions, and how many are counted at most.
PROBED_STATE_CALLS = 0
PROBED_STATE_LIMIT = 1
PROBED_STATES = ('calls', 'limit')

#: Keys of the map counts in telemetry.bpf.c.
TELEMETRY_EVENTS = 0
TELEMETRY_OWN = 1
TELEMETRY_NO_FRAME = 2
TELEMETRY_UNREADABLE = 3
TELEMETRY_NAME = 4
TELEMETRY_LARGE_MAP = 5
TELEMETRY_MEASURE = 6
TELEMETRY_LABEL = 7
TELEMETRY_OVERFLOW = 8
TELEMETRY_LOST = 9
TELEMETRY_STARTS = 10
TELEMETRY_HITS = 11
TELEMETRY_COUNTS = ('events', 'own', 'no_frame', 'unreadable', 'name', 'large_map', 'measure', 'label', 'overflow', 'lost', 'starts', 'hits')

#: A label that is no immediate term; a text also has its size in bytes << 4.
LABEL_MISSING = 0
LABEL_TEXT = 4
LABEL_REFUSED = 8
LABEL_OTHER = 12
TELEMETRY_LABEL_KINDS = ('missing', 'text', 'refused', 'other')

#: Slots of server_stats that belong to no module.
SLOT_PROCESSES = 0
SLOT_OTHER = 1
SLOT_REMOTE = 2
SLOT_FIRST = 3

#: Keys of server_counts: hits of each program, then what could not be counted.
SERVER_SEND = 0
SERVER_REPLY = 1
SERVER_TAKE = 2
SERVER_OUT = 3
SERVER_EXIT = 4
SERVER_LOST = 5
SERVER_UNREADABLE = 6
SERVER_COUNTS = ('send', 'reply', 'take', 'out', 'exit', 'lost', 'unreadable')

#: Keys of mark_counts: hits of each class of marker, then what could not be counted.
MARKS_CALLBACK = 0
MARKS_FUNCTION = 1
MARKS_UNKNOWN = 2
MARKS_NO_ROOM = 3
MARKS_UNREADABLE = 4
MARKS_UNTOLD = 5
MARK_COUNTS = ('callback', 'function', 'unknown', 'no_room', 'unreadable', 'untold')

#: What a line of the stream of marks says.
LINE_ENTERED = 1
LINE_UNFOLLOWED = 2
LINE_RETURNED = 3
LINE_HANDED = 4
LINE_FAILED = 5
LINE_LEFT = 6
MARK_LINES = ('entered', 'unfollowed', 'returned', 'handed', 'failed', 'left')

#: What the frames of the VM's stacks have, as erts_frame_layout says.
MARK_FRAMES_ANY = 0
MARK_FRAMES_RETURN = 1
MARK_FRAMES_LINKED = 2

#: Which atom of a callback was counted.
WAY_TAG = 0
WAY_RESULT = 1

#: Why a thread is off its CPU.
OFF_IDLE = 0
OFF_BLOCKED = 1
OFF_PREEMPTED = 2
OFF_QUEUED = 3
OFF_THROTTLED = 4
OFF_REASONS = ('idle', 'blocked', 'preempted', 'queued', 'throttled')

#: Why a process is off its scheduler.
WAIT_RECEIVE = 0
WAIT_RUN_QUEUE = 1
WAIT_SUSPENDED = 2
WAIT_DIRTY = 3
WAIT_REASONS = ('receive', 'run_queue', 'suspended', 'dirty')

#: The form of a USDT argument.
ARGUMENT_NONE = 0
ARGUMENT_CONSTANT = 1
ARGUMENT_REGISTER = 2
ARGUMENT_MEMORY = 3
ARGUMENT_ABSOLUTE = 4

PROGRAMS = ('spawn_entry', 'spawn_return', 'spawn_usdt', 'exit_entry', 'exit_usdt', 'hibernate_entry', 'hibernate_usdt', 'send_local', 'send_alias', 'send_remote', 'send_remote_name', 'send_usdt', 'receive_entry', 'receive_usdt', 'schedule_in', 'schedule_out', 'schedule_in_usdt', 'schedule_out_usdt', 'gc_entry', 'gc_return', 'gc_hibernate_return', 'gc_start_usdt', 'gc_minor_end_usdt', 'gc_major_end_usdt', 'port_open_entry', 'port_open_return', 'port_open_usdt', 'port_close_entry', 'port_close_usdt', 'port_busy_entry', 'port_busy_copy', 'port_busy_usdt', 'port_not_busy_usdt', 'dist_busy_entry', 'dist_resume', 'dist_output_port', 'dist_output_process', 'dist_output_usdt', 'code_load_entry', 'code_load_return', 'nif_entry', 'call_return', 'bif_entry', 'dirty_nif_entry', 'dirty_bif_entry', 'switched', 'woken', 'dist_packet_out', 'dist_packet_in', 'dist_node_down', 'marked_callback', 'marked_function')

#: What every record in the ring starts with: the kernel's header and ours.
_HEAD = (
    ("ring_length", "<u4"),
    ("ring_page", "<u4"),
    ("time_ns", "<u8"),
    ("kind", "<u2"),
    ("class", "u1"),
    ("flags", "u1"),
    ("tid", "<u4"),
    ("process", "<u8"),
)

#: Any record in the ring: 64 bytes, its own fields as four words.
RECORD = np.dtype([
    *_HEAD,
    ("body", "<u8", (4,)),
])

#: The same 64 bytes, by kind.
RECORDS = {
    'spawn': np.dtype([
    *_HEAD,
    ("parent", "<u8"),
    ("module", "<u8"),
    ("function", "<u8"),
    ("reserved", "<u8", (1,)),
]),
    'exit': np.dtype([
    *_HEAD,
    ("reason", "<u8"),
    ("tag", "<u8"),
    ("module", "<u4"),
    ("function", "<u4"),
    ("line", "<u4"),
    ("name", "<u4"),
]),
    'send': np.dtype([
    *_HEAD,
    ("receiver", "<u8"),
    ("size", "<u8"),
    ("message", "<u8"),
    ("form", "<u8"),
]),
    'receive': np.dtype([
    *_HEAD,
    ("message", "<u8"),
    ("size", "<u8"),
    ("sender", "<u8"),
    ("form", "<u8"),
]),
    'schedule': np.dtype([
    *_HEAD,
    ("duration_ns", "<u8"),
    ("reductions", "<u8"),
    ("runnable", "<u8"),
    ("reserved", "<u8", (1,)),
]),
    'gc': np.dtype([
    *_HEAD,
    ("duration_ns", "<u8"),
    ("reclaimed", "<u8"),
    ("live", "<u8"),
    ("reserved", "<u8", (1,)),
]),
    'hibernate': np.dtype([
    *_HEAD,
    ("reserved", "<u8", (4,)),
]),
    'port_open': np.dtype([
    *_HEAD,
    ("port", "<u8"),
    ("name", "S24"),
]),
    'port_close': np.dtype([
    *_HEAD,
    ("port", "<u8"),
    ("reason", "<u8"),
    ("reserved", "<u8", (2,)),
]),
    'port_busy': np.dtype([
    *_HEAD,
    ("port", "<u8"),
    ("reserved", "<u8", (3,)),
]),
    'dist_busy': np.dtype([
    *_HEAD,
    ("reserved", "<u8", (4,)),
]),
    'dist_output': np.dtype([
    *_HEAD,
    ("port", "<u8"),
    ("reserved", "<u8", (3,)),
]),
    'code_load': np.dtype([
    *_HEAD,
    ("module", "<u8"),
    ("reserved", "<u8", (3,)),
]),
    'long_call': np.dtype([
    *_HEAD,
    ("duration_ns", "<u8"),
    ("code", "<u8"),
    ("native", "<u8"),
    ("reserved", "<u8", (1,)),
]),
    'thread': np.dtype([
    *_HEAD,
    ("cpu", "<u4"),
    ("other", "<u4"),
    ("state", "<u8"),
    ("reserved", "<u8", (2,)),
]),
    'dist_out': np.dtype([
    *_HEAD,
    ("peer", "<u8"),
    ("receiver", "<u8"),
    ("number", "<u4"),
    ("size", "<u4"),
    ("check", "<u4"),
    ("connection", "<u2"),
    ("operation", "<u2"),
]),
    'dist_in': np.dtype([
    *_HEAD,
    ("peer", "<u8"),
    ("number", "<u4"),
    ("size", "<u4"),
    ("check", "<u4"),
    ("connection", "<u2"),
    ("padding", "<u2"),
    ("reserved", "<u8", (1,)),
]),
    'dist_down': np.dtype([
    *_HEAD,
    ("peer", "<u8"),
    ("reason", "<u8"),
    ("reserved", "<u8", (2,)),
]),
    'mark_callback': np.dtype([
    *_HEAD,
    ("function", "<u8"),
    ("depth", "<u8"),
    ("caller", "<u8"),
    ("tag", "<u8"),
]),
    'mark_function': np.dtype([
    *_HEAD,
    ("function", "<u8"),
    ("depth", "<u8"),
    ("caller", "<u8"),
    ("tag", "<u8"),
]),
}

#: Set once before the programs are loaded; constants to the verifier. An offset of 0 is unknown.
SETTINGS = np.dtype([
    ("streamed", "<u8"),
    ("slow_call_ns", "<u8"),
    ("pidns_dev", "<u8"),
    ("pidns_ino", "<u8"),
    ("dsig_send_start", "<u8"),
    ("dsig_send_end", "<u8"),
    ("process_heap", "<u4"),
    ("process_htop", "<u4"),
    ("process_old_heap", "<u4"),
    ("process_old_htop", "<u4"),
    ("process_mbuf_sz", "<u4"),
    ("process_gen_gcs", "<u4"),
    ("process_sig_save", "<u4"),
    ("port_connected", "<u4"),
    ("port_state", "<u4"),
    ("schedule_in_register", "<u4"),
    ("process_abandoned_heap", "<u4"),
    ("process_state", "<u4"),
    ("send_message_register", "<u4"),
    ("message_sender", "<u4"),
    ("send_alias_register", "<u4"),
    ("send_term_register", "<u4"),
    ("dist_sysname", "<u4"),
    ("dist_state", "<u4"),
    ("dsig_from", "<u4"),
    ("process_registered", "<u4"),
    ("process_dictionary", "<u4"),
    ("process_module", "<u4"),
    ("registered_name", "<u4"),
    ("map_subtag", "<u4"),
    ("shortest_ns", "<u8"),
    ("filtered", "<u8"),
    ("process_hend", "<u4"),
    ("mark_frames", "<u4"),
    ("mark_in_register", "<u4"),
    ("padding", "<u4"),
])

#: The process that loaded programs observe. It changes when programs are reused, so it is not a constant. An atom of 0 is unknown.
TARGET = np.dtype([
    ("base", "<u8"),
    ("am_normal", "<u8"),
    ("am_shutdown", "<u8"),
    ("am_killed", "<u8"),
    ("am_gen_call", "<u8"),
    ("am_gen_cast", "<u8"),
    ("am_system", "<u8"),
    ("am_alias", "<u8"),
    ("am_down", "<u8"),
    ("am_initial_call", "<u8"),
    ("am_line", "<u8"),
    ("am_struct", "<u8"),
    ("tgid", "<u4"),
    ("padding", "<u4"),
])

#: Counts of one class of one kind, per CPU, from 0.
COUNTERS = np.dtype([
    ("count", "<u8"),
    ("lost", "<u8"),
    ("refused", "<u8"),
])

#: Durations of one class of one kind, per CPU, from 0.
HISTOGRAM = np.dtype([
    ("total_ns", "<u8"),
    ("slots", "<u8", (40,)),
])

#: What crashes that are counted together have in common: atoms by their index, 0 for none.
CRASH = np.dtype([
    ("module", "<u4"),
    ("function", "<u4"),
    ("line", "<u4"),
    ("name", "<u4"),
    ("reason", "<u4"),
    ("class", "<u4"),
])

#: What lost connections that are counted together have in common: atoms by their index, 0 for none.
NODE_DOWN = np.dtype([
    ("peer", "<u4"),
    ("reason", "<u4"),
])

#: How often the hooks of one kind may still be hit before the programs stop counting.
QUOTA = np.dtype([
    ("limited", "<u8"),
    ("left", "<i8"),
    ("opened_ns", "<u8"),
    ("exhausted_ns", "<u8"),
    ("until_ns", "<u8"),
    ("started", "<u8"),
])

#: Counters of the VM that grow with the events of one kind; their sum is read when a window starts and ends.
REFERENCE_COUNTER = np.dtype([
    ("address", "<u8"),
    ("stride", "<u4"),
    ("words", "<u4"),
    ("second_address", "<u8"),
    ("second_stride", "<u4"),
    ("second_words", "<u4"),
])

#: A kind's reference counters at the start of a window (its first hit) or at its end (the hit that ended it).
COUNTER_SAMPLE = np.dtype([
    ("time_ns", "<u8"),
    ("value", "<u8"),
    ("unreadable", "<u8"),
    ("second_value", "<u8"),
])

#: One OS thread that is watched, and its current state.
THREAD = np.dtype([
    ("since_ns", "<u8"),
    ("ready_ns", "<u8"),
    ("row", "<u4"),
    ("cpu", "<u4"),
    ("reason", "<u4"),
    ("running", "<u4"),
    ("scheduler", "<u8"),
    ("sleep_flags", "<u8"),
    ("seen_process", "<u8"),
    ("seen_reductions", "<u8"),
    ("seen_fcalls", "<i8"),
    ("at_process", "<u2"),
    ("at_nif", "<u2"),
    ("at_reductions", "<u2"),
    ("at_code", "<u2"),
    ("before_code", "<u2"),
    ("at_fcalls", "<u2"),
    ("long_call", "<u2"),
    ("padding", "u1", (2,)),
    ("target", "<u4"),
    ("traced", "<u4"),
    ("queue", "<u8"),
    ("queue_throttled_ns", "<u8"),
])

#: Time of all threads of one type of one target, per CPU, from 0.
THREAD_TOTALS = np.dtype([
    ("on_ns", "<u8"),
    ("off_ns", "<u8", (5,)),
    ("switches", "<u8"),
    ("migrations", "<u8"),
    ("waited_ns", "<u8"),
    ("slots", "<u8", (40,)),
    ("samples", "<u8"),
    ("busy_waits", "<u8"),
    ("refused", "<u8"),
])

#: A NIF of a target.
NIF_KEY = np.dtype([
    ("module", "<u8"),
    ("function", "<u8"),
    ("arity", "<u4"),
    ("target", "<u4"),
])

#: Samples of one NIF, per CPU, from 0.
NIF = np.dtype([
    ("samples", "<u8"),
    ("long_calls", "<u8"),
])

#: Settings of function.bpf.c; constants to the verifier.
CALL_SETTINGS = np.dtype([
    ("limit", "<u8"),
    ("return_limit", "<u8"),
    ("process_hend", "<u4"),
    ("map_subtag", "<u4"),
])

#: An address with a breakpoint: a function's first instruction, or a return address.
BREAKPOINT_SITE = np.dtype([
    ("module", "<u8"),
    ("function", "<u8"),
    ("arity", "<u4"),
    ("number", "<u4"),
])

#: Counts of one breakpoint site or function, per CPU, from 0.
CALL_TOTALS = np.dtype([
    ("calls", "<u8"),
    ("lost", "<u8"),
    ("refused", "<u8"),
    ("strange", "<u8"),
    ("beyond", "<u8"),
])

#: A call whose return is pending.
CALL_PENDING = np.dtype([
    ("since_ns", "<u8"),
    ("address", "<u8"),
])

#: One call or return in the ring of function.bpf.c: 1024 bytes with the kernel's header.
CALL_HIT = np.dtype([
    ("time_ns", "<u8"),
    ("process", "<u8"),
    ("address", "<u8"),
    ("caller", "<u8"),
    ("since_ns", "<u8"),
    ("tid", "<u4"),
    ("arity", "<u4"),
    ("x", "<u8", (8,)),
    ("captures", "<u8", (112,)),
    ("reserved", "<u8"),
])

#: Settings of the profiler's programs; an offset is in bytes, 0 if unknown.
SAMPLE_SETTINGS = np.dtype([
    ("tgid", "<u4"),
    ("process_heap", "<u4"),
    ("process_stop", "<u4"),
    ("process_hend", "<u4"),
    ("process_frame_pointer", "<u4"),
    ("process_i", "<u4"),
    ("process_current", "<u4"),
    ("process_state", "<u4"),
    ("scheduler_process", "<u4"),
    ("scheduler_port", "<u4"),
    ("scheduler_nif", "<u4"),
    ("schedule_in_register", "<u4"),
    ("period_ns", "<u8"),
])

#: A process that was scheduled out while it was watched.
WAITING = np.dtype([
    ("since_ns", "<u8"),
    ("i", "<u8"),
    ("position_ns", "<u8"),
    ("point_ns", "<u8"),
    ("reason", "<u4"),
    ("seen", "<u4"),
])

#: Code at which processes wait, and why.
WAIT_SITE = np.dtype([
    ("i", "<u8"),
    ("reason", "<u8"),
])

#: All waiting at one wait_site.
WAIT_TOTAL = np.dtype([
    ("ns", "<u8"),
    ("count", "<u8"),
])

#: Settings of server.bpf.c; an offset is in bytes.
SERVER_SETTINGS = np.dtype([
    ("tgid", "<u4"),
    ("process_sig_save", "<u4"),
    ("process_dictionary", "<u4"),
    ("process_hend", "<u4"),
    ("process_stop", "<u4"),
    ("process_state", "<u4"),
    ("process_module", "<u4"),
    ("message_term", "<u4"),
    ("sees_idle", "<u4"),
    ("by_tag", "<u4"),
    ("am_gen_call", "<u8"),
    ("am_gen_cast", "<u8"),
    ("am_alias", "<u8"),
    ("am_down", "<u8"),
    ("am_notify", "<u8"),
    ("am_system", "<u8"),
    ("am_timeout", "<u8"),
    ("am_normal", "<u8"),
    ("am_initial_call", "<u8"),
    ("am_init", "<u8"),
    ("am_supervisor", "<u8"),
    ("am_erlang", "<u8"),
    ("am_proc_lib", "<u8"),
])

#: When hooks count, CLOCK_MONOTONIC; both 0 for never.
SERVER_WINDOW = np.dtype([
    ("opened_ns", "<u8"),
    ("until_ns", "<u8"),
    ("left", "<i8"),
    ("limited", "<u4"),
    ("light", "<u4"),
])

#: What distinguishes one call from another: two words of its reference.
SERVER_REFERENCE = np.dtype([
    ("first", "<u8"),
    ("second", "<u8"),
])

#: A call that is open: the caller has neither got its reply nor ended.
SERVER_CALL = np.dtype([
    ("sent_ns", "<u8"),
    ("queued_ns", "<u8"),
    ("taken_ns", "<u8"),
    ("replied_ns", "<u8"),
    ("first", "<u8"),
    ("second", "<u8"),
    ("slot", "<u4"),
    ("server_slot", "<u4"),
    ("caller_slot", "<u4"),
    ("late", "<u4"),
    ("timed_out", "<u4"),
    ("padding", "<u4"),
])

#: A message without a reply that waits in the mailbox of a server.
SERVER_MESSAGE = np.dtype([
    ("sent_ns", "<u8"),
    ("receiver", "<u8"),
    ("sender", "<u8"),
    ("slot", "<u8"),
])

#: What is known of a process that was sent a message or made a call.
SERVER_PROCESS = np.dtype([
    ("since_ns", "<u8"),
    ("slot", "<u4"),
    ("work_slot", "<u4"),
    ("is_server", "<u4"),
    ("depth", "<u4"),
    ("one_way", "<u4"),
    ("asynchronous", "<u4"),
    ("unsure", "<u4"),
    ("padding", "<u4"),
])

#: What has a slot of its own.
SERVER_MODULE = np.dtype([
    ("module", "<u8"),
    ("function", "<u8"),
])

#: What has a slot of its own where messages are counted by tag.
SERVER_TAG = np.dtype([
    ("slot", "<u8"),
    ("tag", "<u8"),
])

#: Who calls whom, by slots.
SERVER_EDGE = np.dtype([
    ("caller", "<u4"),
    ("callee", "<u4"),
])

#: Calls along one edge.
SERVER_EDGE_TOTAL = np.dtype([
    ("calls", "<u8"),
    ("blocked_ns", "<u8"),
])

#: Messages of the servers of one module, of all CPUs: with a value for each CPU the histograms would take 60 MB on 64 of them.
SERVER_STATS = np.dtype([
    ("calls", "<u8"),
    ("casts", "<u8"),
    ("sent_casts", "<u8"),
    ("remote_calls", "<u8"),
    ("remote_casts", "<u8"),
    ("infos", "<u8"),
    ("answered", "<u8"),
    ("timeouts", "<i8"),
    ("down", "<u8"),
    ("abandoned", "<i8"),
    ("queue_ns", "<u8"),
    ("service_ns", "<u8"),
    ("call_ns", "<u8"),
    ("queue", "<u4", (448,)),
    ("service", "<u4", (448,)),
    ("call", "<u4", (448,)),
])

#: Settings of mark.bpf.c; an offset is in bytes.
MARK_SETTINGS = np.dtype([
    ("tgid", "<u4"),
    ("process_id", "<u4"),
    ("process_hend", "<u4"),
    ("function_in_register", "<u4"),
    ("stream", "<u4"),
    ("map_subtag", "<u4"),
    ("frames", "<u4"),
    ("padding", "<u4"),
])

#: A marked function that has been called, by the 52 bits of its id.
MARK_FUNCTION = np.dtype([
    ("slot", "<u4"),
    ("tagged", "<u4"),
    ("callback", "<u4"),
    ("arity", "<u4"),
])

#: The calls of one process that are open, the deepest last; by the address of its struct process.
MARK_PROCESS = np.dtype([
    ("id", "<u8"),
    ("count", "<u4"),
    ("hits", "<u4"),
    ("depth", "<u8", (16,)),
    ("began_ns", "<u8", (16,)),
    ("before", "<u4", (16,)),
    ("slot", "<u4", (16,)),
])

#: Calls of one marked function, of all CPUs.
MARK_STATS = np.dtype([
    ("calls", "<u8"),
    ("timed", "<u8"),
    ("failures", "<u8"),
    ("unfollowed", "<u8"),
    ("ns", "<u8"),
    ("hits", "<u8"),
    ("durations", "<u4", (448,)),
])

#: What a callback was called with, or returned.
MARK_TAG = np.dtype([
    ("slot", "<u4"),
    ("way", "<u4"),
    ("atom", "<u8"),
])

#: Where calls of a function return to.
MARK_CALLER = np.dtype([
    ("address", "<u8"),
    ("slot", "<u4"),
    ("padding", "<u4"),
])

#: The end of a call, where nothing is copied of it.
MARK_END = np.dtype([
    ("time_ns", "<u8"),
    ("began_ns", "<u8"),
    ("process", "<u8"),
    ("line", "<u4"),
    ("slot", "<u4"),
])

#: The begin of a call, or its return; the first fields are those of mark_end.
MARK_CALL = np.dtype([
    ("time_ns", "<u8"),
    ("began_ns", "<u8"),
    ("process", "<u8"),
    ("line", "<u4"),
    ("slot", "<u4"),
    ("id", "<u8"),
    ("code", "<u8"),
    ("caller", "<u8"),
    ("tid", "<u4"),
    ("arity", "<u4"),
    ("x", "<u8", (8,)),
    ("captures", "<u8", (112,)),
])

#: A scheduler thread of the target.
SAMPLED_THREAD = np.dtype([
    ("scheduler", "<u8"),
    ("stack_top", "<u8"),
])

#: A sample of a thread, or of a process that waited; the words of its stacks follow it in the ring.
SAMPLE = np.dtype([
    ("time_ns", "<u8"),
    ("weight_ns", "<u8"),
    ("tid", "<u4"),
    ("failed", "<u4"),
    ("kernel_frames", "<u4"),
    ("reason", "<u4"),
    ("erlang_bytes", "<u4"),
    ("native_bytes", "<u4"),
    ("ip", "<u8"),
    ("sp", "<u8"),
    ("rbp", "<u8"),
    ("rbx", "<u8"),
    ("r12", "<u8"),
    ("r13", "<u8"),
    ("r14", "<u8"),
    ("r15", "<u8"),
    ("stack_top", "<u8"),
    ("process", "<u8"),
    ("pid", "<u8"),
    ("port", "<u8"),
    ("nif", "<u8"),
    ("heap", "<u8"),
    ("stop", "<u8"),
    ("hend", "<u8"),
    ("frame_pointer", "<u8"),
    ("i", "<u8"),
    ("current", "<u8"),
    ("bottom", "<u8"),
    ("erlang_from", "<u8"),
    ("work", "<u8"),
    ("kernel", "<u8", (64,)),
])

#: Settings of telemetry.bpf.c: how the VM keeps terms, and what marks a lookup of handlers.
TELEMETRY_SETTINGS = np.dtype([
    ("table", "<u8"),
    ("term", "<u8"),
    ("execute", "<u8"),
    ("tgid", "<u4"),
    ("process_stop", "<u4"),
    ("map_subtag", "<u4"),
    ("bits", "<u4"),
    ("spans", "<u4"),
    ("padding", "<u4"),
])

#: The name of an event. All zero: every event without a specification. Any and the last atom: every event that ends so.
TELEMETRY_EVENT = np.dtype([
    ("atoms", "<u4", (8,)),
])

#: What is taken of an event. A step is an atom, or a number of TELEMETRY_STEP_*.
TELEMETRY_SPEC = np.dtype([
    ("number", "<u4"),
    ("labels", "<u4"),
    ("measures", "<u4"),
    ("starts", "<u4"),
    ("work", "<u4"),
    ("padding", "<u4"),
    ("guard_key", "<u8"),
    ("guard_value", "<u8"),
    ("struct_key", "<u8"),
    ("wrapper", "<u8"),
    ("wrapped", "<u8"),
    ("measure", "<u8", (4,)),
    ("path", "<u8", (16,)),
])

#: What a process works on, the outermost first.
WORK = np.dtype([
    ("gate", "<u8"),
    ("depth", "<u4"),
    ("event", "<u4", (4,)),
    ("padding", "<u4"),
    ("row", "<u8", (4,)),
])

#: Events that are counted together.
TELEMETRY_ROW = np.dtype([
    ("spec", "<u4"),
    ("padding", "<u4"),
    ("label", "<u8", (4,)),
    ("text", "u1", (256,)),
])

#: Counts of one telemetry_row.
TELEMETRY_TOTALS = np.dtype([
    ("count", "<u8"),
    ("measured", "<u8", (4,)),
    ("sum", "<u8", (4,)),
    ("slots", "<u4", (160,)),
])

#: One event that began something, or that ended what lasted from time_ns - duration until time_ns.
TELEMETRY_SPAN = np.dtype([
    ("time_ns", "<u8"),
    ("pid", "<u8"),
    ("duration", "<i8"),
    ("spec", "<u4"),
    ("starts", "<u4"),
    ("label", "<u8", (4,)),
    ("text", "u1", (256,)),
])

#: Location of one argument of a USDT site.
USDT_ARGUMENT = np.dtype([
    ("value", "<i8"),
    ("reg", "<u2"),
    ("form", "u1"),
    ("size", "u1"),
    ("is_signed", "u1"),
    ("padding", "u1", (3,)),
])

VARIANTS = (
    Variant('spawn', 'symbol', 'process', hooks=(
        Hook('spawn_entry', 'erl_create_process'),
        Hook('spawn_return', 'erl_create_process', returns=True),
    )),
    Variant('spawn', 'usdt', 'process', hooks=(
        Hook('spawn_usdt', 'process__spawn'),
    )),
    Variant('exit', 'symbol', 'process', hooks=(
        Hook('exit_entry', 'erts_do_exit_process'),
    )),
    Variant('exit', 'usdt', 'process', hooks=(
        Hook('exit_usdt', 'process__exit'),
    )),
    Variant('hibernate', 'symbol', 'process', hooks=(
        Hook('hibernate_entry', 'erts_hibernate'),
    )),
    Variant('hibernate', 'usdt', 'process', hooks=(
        Hook('hibernate_usdt', 'process__hibernate'),
    )),
    Variant('send', 'symbol', 'message', hooks=(
        Hook('send_local', 'erts_send_message', call='erts_queue_proc_message', at_call=(('send_message_register', 'rcx'), ('send_term_register', 'r8'))),
        Hook('send_alias', 'erts_proc_sig_send_to_alias', optional=True, call='proc_queue_signal', local=True, at_call=(('send_alias_register', 'rcx'),)),
        Hook('send_alias', 'erts_proc_sig_send_altact_msg', optional=True, call='proc_queue_signal', local=True, at_call=(('send_alias_register', 'rcx'),)),
        Hook('send_remote', 'erts_dsig_send_msg', optional=True),
        Hook('send_remote_name', 'erts_dsig_send_reg_msg', optional=True),
    )),
    Variant('send', 'usdt', 'message', hooks=(
        Hook('send_usdt', 'message__send'),
    )),
    Variant('receive', 'symbol', 'message', flavor='jit', hooks=(
        Hook('receive_entry', 'beam_jit_remove_message', mangled=True),
    )),
    Variant('receive', 'usdt', 'message', hooks=(
        Hook('receive_usdt', 'message__receive'),
    )),
    Variant('schedule', 'symbol', 'schedule', flavor='jit', hooks=(
        Hook('schedule_in', 'copy_in_registers', arguments=('schedule_in_register',)),
        Hook('schedule_out', 'erts_schedule'),
    )),
    Variant('schedule', 'usdt', 'schedule', flavor='emu', hooks=(
        Hook('schedule_in_usdt', 'process__scheduled'),
        Hook('schedule_out_usdt', 'process__unscheduled'),
    )),
    Variant('gc', 'symbol', 'gc', hooks=(
        Hook('gc_entry', 'erts_garbage_collect_nobump'),
        Hook('gc_return', 'erts_garbage_collect_nobump', returns=True),
        Hook('gc_entry', 'erts_garbage_collect'),
        Hook('gc_return', 'erts_garbage_collect', returns=True),
        Hook('gc_entry', 'erts_gc_after_bif_call_lhf'),
        Hook('gc_return', 'erts_gc_after_bif_call_lhf', returns=True),
        Hook('gc_entry', 'erts_garbage_collect_literals'),
        Hook('gc_return', 'erts_garbage_collect_literals', returns=True),
        Hook('gc_entry', 'erts_garbage_collect_hibernate'),
        Hook('gc_hibernate_return', 'erts_garbage_collect_hibernate', returns=True),
    )),
    Variant('gc', 'usdt', 'gc', hooks=(
        Hook('gc_start_usdt', 'gc_minor__start'),
        Hook('gc_minor_end_usdt', 'gc_minor__end'),
        Hook('gc_start_usdt', 'gc_major__start'),
        Hook('gc_major_end_usdt', 'gc_major__end'),
    )),
    Variant('port_open', 'symbol', 'port', hooks=(
        Hook('port_open_entry', 'erts_open_driver'),
        Hook('port_open_return', 'erts_open_driver', returns=True),
    )),
    Variant('port_open', 'usdt', 'port', hooks=(
        Hook('port_open_usdt', 'port__open'),
    )),
    Variant('port_close', 'symbol', 'port', hooks=(
        Hook('port_close_entry', 'erts_deliver_port_exit'),
    )),
    Variant('port_close', 'usdt', 'port', hooks=(
        Hook('port_close_usdt', 'port__exit'),
    )),
    Variant('port_busy', 'symbol', 'port', hooks=(
        Hook('port_busy_entry', 'set_busy_port', called_by='erts_deliver_port_exit', marks=('erts_dist_port_not_busy', 'erts_port_task_abort_nosuspend_tasks')),
        Hook('port_busy_copy', 'erts_deliver_port_exit', optional=True, copy_of='set_busy_port', needs=('port_state', 'port_connected')),
    )),
    Variant('port_busy', 'usdt', 'port', hooks=(
        Hook('port_busy_usdt', 'port__busy'),
        Hook('port_not_busy_usdt', 'port__not_busy'),
    )),
    Variant('dist_busy', 'symbol', 'dist', needs=('dsig_send_start',), hooks=(
        Hook('dist_busy_entry', 'erts_suspend', called_by='erts_dsig_send'),
        Hook('dist_resume', 'erts_resume_processes', optional=True),
    )),
    Variant('dist_output', 'symbol', 'dist', hooks=(
        Hook('dist_output_port', 'erts_dist_command'),
        Hook('dist_output_process', 'dist_ctrl_get_data_1', optional=True),
    )),
    Variant('dist_output', 'usdt', 'dist', hooks=(
        Hook('dist_output_usdt', 'dist__output'),
        Hook('dist_output_usdt', 'dist__outputv'),
    )),
    Variant('code_load', 'symbol', 'code', hooks=(
        Hook('code_load_entry', 'erts_finish_loading'),
        Hook('code_load_return', 'erts_finish_loading', returns=True),
    )),
    Variant('long_call', 'symbol', 'call', flavor='jit', on_request='a return probe on every NIF and BIF call, which a busy VM makes by the 100,000 a second', hooks=(
        Hook('nif_entry', 'beam_jit_call_nif', mangled=True),
        Hook('call_return', 'beam_jit_call_nif', returns=True, mangled=True),
        Hook('bif_entry', 'beam_jit_call_bif', mangled=True),
        Hook('call_return', 'beam_jit_call_bif', returns=True, mangled=True),
        Hook('dirty_nif_entry', 'erts_call_dirty_nif'),
        Hook('call_return', 'erts_call_dirty_nif', returns=True),
        Hook('dirty_bif_entry', 'erts_call_dirty_bif'),
        Hook('call_return', 'erts_call_dirty_bif', returns=True),
    )),
    Variant('thread', 'tracepoint', 'switches', on_request="it is the kernel's view of the VM's threads, which `record` looks at", hooks=(
        Hook('switched', 'sched_switch'),
        Hook('woken', 'sched_wakeup'),
    )),
    Variant('dist_out', 'symbol', 'link', on_request='a hit for each packet to another node, for `record` and `merge`', needs=('dist_sysname',), hooks=(
        Hook('dist_packet_out', 'erts_encode_ext_dist_header_finalize'),
    )),
    Variant('dist_in', 'symbol', 'link', on_request='a hit for each packet of another node, for `record` and `merge`', needs=('dist_sysname',), hooks=(
        Hook('dist_packet_in', 'erts_net_message'),
    )),
    Variant('dist_down', 'symbol', 'dist', needs=('dist_sysname',), hooks=(
        Hook('dist_node_down', 'erts_do_net_exits'),
    )),
    Variant('mark_callback', 'symbol', 'marked', flavor='jit', on_request='a hit for each call of marked code, for `record`; `marks` keeps within a budget', needs=('process_hend',), hooks=(
        Hook('marked_callback', 'ets_is_compiled_ms_1'),
    )),
    Variant('mark_function', 'symbol', 'marked', flavor='jit', on_request='a hit for each call of marked code, for `record`; `marks` keeps within a budget', needs=('process_hend',), hooks=(
        Hook('marked_function', 'erts_internal_cmp_term_2'),
    )),
)

UNAVAILABLE = (
    Unavailable('schedule', 'usdt', 'under the JIT process__scheduled fires on dirty schedulers only', flavor='jit'),
    Unavailable('schedule', 'symbol', 'the interpreter has no function for scheduling in', flavor='emu'),
    Unavailable('receive', 'symbol', 'the interpreter takes messages out of the mailbox without a function', flavor='emu'),
    Unavailable('dist_busy', 'usdt', 'dist__port_busy was not seen to fire when senders were suspended'),
    Unavailable('code_load', 'usdt', 'OTP has no USDT probe for it'),
    Unavailable('long_call', 'usdt', "OTP's NIF and BIF probes fire for dirty NIFs only, or not at all"),
    Unavailable('long_call', 'symbol', 'the interpreter calls NIFs and BIFs without a function', flavor='emu'),
    Unavailable('dist_out', 'usdt', 'OTP has no USDT probe for single packets'),
    Unavailable('dist_in', 'usdt', 'OTP has no USDT probe for single packets'),
    Unavailable('dist_down', 'usdt', "OTP's USDT probes do not carry the reason"),
    Unavailable('mark_callback', 'usdt', 'a marker is a call of a BIF'),
    Unavailable('mark_callback', 'symbol', 'the interpreter keeps registers elsewhere', flavor='emu'),
    Unavailable('mark_function', 'usdt', 'a marker is a call of a BIF'),
    Unavailable('mark_function', 'symbol', 'the interpreter keeps registers elsewhere', flavor='emu'),
)

#: The only USDT probes that may ever be attached.
USDT_ALLOWED = frozenset(h.name for v in VARIANTS if v.via == "usdt" for h in v.hooks)
