# SPDX-License-Identifier: Apache-2.0
"""
The records, their vocabulary, and where we may attach.

Made by probes/generate.py from probes/events.toml; not written by hand.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_SOURCE = Path(__file__).read_bytes()
#: Of this file, as it was when this process began. Each BPF object carries that of the file it was
#: built beside, so that one of another build is refused.
FINGERPRINT = f"{zlib.crc32(_SOURCE):08x}{zlib.adler32(_SOURCE):08x}"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of event: its number, its classes, and how they make up its count."""

    id: int
    name: str
    doc: str
    classes: tuple[str, ...]
    #: The class whose count is the count of the event; None adds them all up.
    counted: str | None
    #: The class whose durations have a histogram, or "all"; None has none.
    histogram: str | None
    #: The unit of each own field that has one: ns, words, eterm, address, reductions.
    units: dict[str, str]
    #: The value of each own field that means "unknown".
    absent: dict[str, int]


@dataclass(frozen=True, slots=True)
class Hook:
    """One place of a way, and the BPF program for it."""

    program: str
    name: str
    returns: bool
    mangled: bool
    optional: bool
    #: The function whose call within this one is the place, rather than the entry.
    call: str | None
    #: That function may have no name; then it is the one without a name that is called.
    local: bool
    #: Settings that are told a register there, and which.
    at_call: tuple[tuple[str, str], ...]
    #: Settings that tell the program the registers of its arguments.
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Way:
    """One way to see an event: by function symbols, by USDT probes or by tracepoints."""

    event: str
    via: str
    family: str
    flavor: str | None
    on_request: str | None
    #: Settings without which the way cannot work.
    needs: tuple[str, ...]
    hooks: tuple[Hook, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a way is not taken though it may seem to be there."""

    event: str
    via: str
    flavor: str | None
    reason: str


CLASSES = 8

KINDS = {
    'spawn': Kind(0, 'spawn', 'A process was created.', classes=('all',), counted=None, histogram=None, units={'parent': 'eterm', 'module': 'eterm', 'function': 'eterm'}, absent={'parent': 0, 'module': 0, 'function': 0}),
    'exit': Kind(1, 'exit', 'A process began to exit.', classes=('unknown', 'normal', 'shutdown', 'killed', 'error', 'other'), counted=None, histogram=None, units={'reason': 'eterm', 'tag': 'eterm'}, absent={'reason': 0, 'tag': 0}),
    'send': Kind(2, 'send', 'A process sent a message to a process.', classes=('local', 'remote'), counted=None, histogram=None, units={'receiver': 'eterm', 'size': 'words', 'message': 'address'}, absent={'receiver': 0, 'size': 18446744073709551615, 'message': 0}),
    'receive': Kind(3, 'receive', 'A process took a message out of its mailbox.', classes=('all',), counted=None, histogram=None, units={'message': 'address', 'size': 'words', 'sender': 'eterm'}, absent={'message': 0, 'size': 18446744073709551615, 'sender': 0}),
    'schedule': Kind(4, 'schedule', 'A process was scheduled in or out on a normal scheduler.', classes=('in', 'out'), counted='in', histogram='out', units={'duration_ns': 'ns', 'reductions': 'reductions'}, absent={'duration_ns': 18446744073709551615, 'reductions': 18446744073709551615, 'runnable': 18446744073709551615}),
    'gc': Kind(5, 'gc', 'A garbage collection of one process ended.', classes=('unknown', 'minor', 'major', 'hibernate'), counted=None, histogram='all', units={'duration_ns': 'ns', 'reclaimed': 'words', 'live': 'words'}, absent={'duration_ns': 18446744073709551615, 'reclaimed': 18446744073709551615, 'live': 18446744073709551615}),
    'hibernate': Kind(6, 'hibernate', 'A process called hibernate.', classes=('all',), counted=None, histogram=None, units={}, absent={}),
    'port_open': Kind(7, 'port_open', 'A port was opened.', classes=('all',), counted=None, histogram=None, units={'port': 'eterm'}, absent={'port': 0}),
    'port_close': Kind(8, 'port_close', 'A port began to close; process is who or what closed it.', classes=('all',), counted=None, histogram=None, units={'port': 'eterm', 'reason': 'eterm'}, absent={'port': 0, 'reason': 0}),
    'port_busy': Kind(9, 'port_busy', "A driver said its port is busy, or no longer; process is the port's owner.", classes=('busy', 'not_busy'), counted='busy', histogram='busy', units={'port': 'eterm'}, absent={'port': 0}),
    'dist_busy': Kind(10, 'dist_busy', 'A process was suspended because the buffer to another node is full.', classes=('all',), counted=None, histogram='all', units={}, absent={}),
    'dist_output': Kind(11, 'dist_output', 'Buffered signals for another node were handed to its connection.', classes=('port', 'process'), counted=None, histogram=None, units={'port': 'eterm'}, absent={'port': 0}),
    'code_load': Kind(12, 'code_load', 'A module was loaded.', classes=('all',), counted=None, histogram=None, units={'module': 'eterm'}, absent={'module': 0}),
    'long_call': Kind(13, 'long_call', 'A NIF or BIF ran for slow_call_ns or longer.', classes=('nif', 'bif', 'dirty_nif', 'dirty_bif'), counted=None, histogram='all', units={'duration_ns': 'ns', 'code': 'address', 'native': 'address'}, absent={'code': 0, 'native': 0}),
    'thread': Kind(14, 'thread', 'The kernel gave an OS thread of the VM a CPU, took it away, or made it ready to run.', classes=('on', 'off', 'woken'), counted='on', histogram=None, units={}, absent={}),
}

FLAG_TEXT_PID = 1  # process, and any other pid of the record, is number | serial << 32, read from a USDT text

ARGUMENT_NONE = 0
ARGUMENT_CONSTANT = 1
ARGUMENT_REGISTER = 2
ARGUMENT_MEMORY = 3
ARGUMENT_ABSOLUTE = 4

#: Why a thread is off its CPU, by its number.
OFF_REASONS = ('idle', 'blocked', 'preempted', 'queued', 'throttled')

#: Why a process is off its scheduler, by its number.
WAIT_REASONS = ('receive', 'run_queue', 'suspended', 'dirty')

PROGRAMS = ('spawn_entry', 'spawn_return', 'spawn_usdt', 'exit_entry', 'exit_usdt', 'hibernate_entry', 'hibernate_usdt', 'send_local', 'send_alias', 'send_remote', 'send_remote_name', 'send_usdt', 'receive_entry', 'receive_usdt', 'schedule_in', 'schedule_out', 'schedule_in_usdt', 'schedule_out_usdt', 'gc_entry', 'gc_return', 'gc_hibernate_return', 'gc_start_usdt', 'gc_minor_end_usdt', 'gc_major_end_usdt', 'port_open_entry', 'port_open_return', 'port_open_usdt', 'port_close_entry', 'port_close_usdt', 'port_busy_entry', 'port_busy_usdt', 'port_not_busy_usdt', 'dist_busy_entry', 'dist_resume', 'dist_output_port', 'dist_output_process', 'dist_output_usdt', 'code_load_entry', 'code_load_return', 'nif_entry', 'call_return', 'bif_entry', 'dirty_nif_entry', 'dirty_bif_entry', 'switched', 'woken')

#: Any record as it lies in the ring: 64 bytes, its own fields as four words.
RECORD = np.dtype([
    ("ring_length", "<u4"),
    ("ring_page", "<u4"),
    ("time_ns", "<u8"),
    ("kind", "<u2"),
    ("class", "u1"),
    ("flags", "u1"),
    ("tid", "<u4"),
    ("process", "<u8"),
    ("body", "<u8", (4,)),
])

#: The same 64 bytes, by kind.
RECORDS = {
    'spawn': np.dtype([
    ("ring_length", "<u4"),
    ("ring_page", "<u4"),
    ("time_ns", "<u8"),
    ("kind", "<u2"),
    ("class", "u1"),
    ("flags", "u1"),
    ("tid", "<u4"),
    ("process", "<u8"),
    ("parent", "<u8"),
    ("module", "<u8"),
    ("function", "<u8"),
    ("reserved", "<u8", (1,)),
]),
    'exit': np.dtype([
    ("ring_length", "<u4"),
    ("ring_page", "<u4"),
    ("time_ns", "<u8"),
    ("kind", "<u2"),
    ("class", "u1"),
    ("flags", "u1"),
    ("tid", "<u4"),
    ("process", "<u8"),
    ("reason", "<u8"),
    ("tag", "<u8"),
    ("reserved", "<u8", (2,)),
]),
    'send': np.dtype([
    ("ring_length", "<u4"),
    ("ring_page", "<u4"),
    ("time_ns", "<u8"),
    ("kind", "<u2"),
    ("class", "u1"),
    ("flags", "u1"),
    ("tid", "<u4"),
    ("process", "<u8"),
    ("receiver", "<u8"),
    ("size", "<u8"),
    ("message", "<u8"),
    ("reserved", "<u8", (1,)),
]),
    'receive': np.dtype([
    ("ring_length", "<u4"),
    ("ring_page", "<u4"),
    ("time_ns", "<u8"),
    ("kind", "<u2"),
    ("class", "u1"),
    ("flags", "u1"),
    ("tid", "<u4"),
    ("process", "<u8"),
    ("message", "<u8"),
    ("size", "<u8"),
    ("sender", "<u8"),
    ("reserved", "<u8", (1,)),
]),
    'schedule': np.dtype([
    ("ring_length", "<u4"),
    ("ring_page", "<u4"),
    ("time_ns", "<u8"),
    ("kind", "<u2"),
    ("class", "u1"),
    ("flags", "u1"),
    ("tid", "<u4"),
    ("process", "<u8"),
    ("duration_ns", "<u8"),
    ("reductions", "<u8"),
    ("runnable", "<u8"),
    ("reserved", "<u8", (1,)),
]),
    'gc': np.dtype([
    ("ring_length", "<u4"),
    ("ring_page", "<u4"),
    ("time_ns", "<u8"),
    ("kind", "<u2"),
    ("class", "u1"),
    ("flags", "u1"),
    ("tid", "<u4"),
    ("process", "<u8"),
    ("duration_ns", "<u8"),
    ("reclaimed", "<u8"),
    ("live", "<u8"),
    ("reserved", "<u8", (1,)),
]),
    'hibernate': np.dtype([
    ("ring_length", "<u4"),
    ("ring_page", "<u4"),
    ("time_ns", "<u8"),
    ("kind", "<u2"),
    ("class", "u1"),
    ("flags", "u1"),
    ("tid", "<u4"),
    ("process", "<u8"),
    ("reserved", "<u8", (4,)),
]),
    'port_open': np.dtype([
    ("ring_length", "<u4"),
    ("ring_page", "<u4"),
    ("time_ns", "<u8"),
    ("kind", "<u2"),
    ("class", "u1"),
    ("flags", "u1"),
    ("tid", "<u4"),
    ("process", "<u8"),
    ("port", "<u8"),
    ("name", "S24"),
]),
    'port_close': np.dtype([
    ("ring_length", "<u4"),
    ("ring_page", "<u4"),
    ("time_ns", "<u8"),
    ("kind", "<u2"),
    ("class", "u1"),
    ("flags", "u1"),
    ("tid", "<u4"),
    ("process", "<u8"),
    ("port", "<u8"),
    ("reason", "<u8"),
    ("reserved", "<u8", (2,)),
]),
    'port_busy': np.dtype([
    ("ring_length", "<u4"),
    ("ring_page", "<u4"),
    ("time_ns", "<u8"),
    ("kind", "<u2"),
    ("class", "u1"),
    ("flags", "u1"),
    ("tid", "<u4"),
    ("process", "<u8"),
    ("port", "<u8"),
    ("reserved", "<u8", (3,)),
]),
    'dist_busy': np.dtype([
    ("ring_length", "<u4"),
    ("ring_page", "<u4"),
    ("time_ns", "<u8"),
    ("kind", "<u2"),
    ("class", "u1"),
    ("flags", "u1"),
    ("tid", "<u4"),
    ("process", "<u8"),
    ("reserved", "<u8", (4,)),
]),
    'dist_output': np.dtype([
    ("ring_length", "<u4"),
    ("ring_page", "<u4"),
    ("time_ns", "<u8"),
    ("kind", "<u2"),
    ("class", "u1"),
    ("flags", "u1"),
    ("tid", "<u4"),
    ("process", "<u8"),
    ("port", "<u8"),
    ("reserved", "<u8", (3,)),
]),
    'code_load': np.dtype([
    ("ring_length", "<u4"),
    ("ring_page", "<u4"),
    ("time_ns", "<u8"),
    ("kind", "<u2"),
    ("class", "u1"),
    ("flags", "u1"),
    ("tid", "<u4"),
    ("process", "<u8"),
    ("module", "<u8"),
    ("reserved", "<u8", (3,)),
]),
    'long_call': np.dtype([
    ("ring_length", "<u4"),
    ("ring_page", "<u4"),
    ("time_ns", "<u8"),
    ("kind", "<u2"),
    ("class", "u1"),
    ("flags", "u1"),
    ("tid", "<u4"),
    ("process", "<u8"),
    ("duration_ns", "<u8"),
    ("code", "<u8"),
    ("native", "<u8"),
    ("reserved", "<u8", (1,)),
]),
    'thread': np.dtype([
    ("ring_length", "<u4"),
    ("ring_page", "<u4"),
    ("time_ns", "<u8"),
    ("kind", "<u2"),
    ("class", "u1"),
    ("flags", "u1"),
    ("tid", "<u4"),
    ("process", "<u8"),
    ("cpu", "<u4"),
    ("other", "<u4"),
    ("state", "<u8"),
    ("reserved", "<u8", (2,)),
]),
}

SETTINGS = np.dtype([
    ("streamed", "<u8"),
    ("slow_call_ns", "<u8"),
    ("pidns_dev", "<u8"),
    ("pidns_ino", "<u8"),
    ("dsig_send_start", "<u8"),
    ("dsig_send_end", "<u8"),
    ("am_normal", "<u8"),
    ("am_shutdown", "<u8"),
    ("am_killed", "<u8"),
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
    ("padding", "<u4"),
])

TARGET = np.dtype([
    ("base", "<u8"),
    ("tgid", "<u4"),
    ("padding", "<u4"),
])

TALLY = np.dtype([
    ("count", "<u8"),
    ("lost", "<u8"),
    ("refused", "<u8"),
])

DURATIONS = np.dtype([
    ("total_ns", "<u8"),
    ("slots", "<u8", (40,)),
])

ALLOWANCE = np.dtype([
    ("limited", "<u8"),
    ("left", "<i8"),
    ("since_ns", "<u8"),
    ("tripped_ns", "<u8"),
    ("until_ns", "<u8"),
    ("begun", "<u8"),
])

MEASURE = np.dtype([
    ("address", "<u8"),
    ("stride", "<u4"),
    ("words", "<u4"),
    ("second_address", "<u8"),
    ("second_stride", "<u4"),
    ("second_words", "<u4"),
])

EDGE = np.dtype([
    ("time_ns", "<u8"),
    ("measure", "<u8"),
    ("refused", "<u8"),
    ("second", "<u8"),
])

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

NATIVE_KEY = np.dtype([
    ("module", "<u8"),
    ("function", "<u8"),
    ("arity", "<u4"),
    ("target", "<u4"),
])

NATIVE = np.dtype([
    ("samples", "<u8"),
    ("long_calls", "<u8"),
])

USDT_ARGUMENT = np.dtype([
    ("value", "<i8"),
    ("reg", "<u2"),
    ("form", "u1"),
    ("size", "u1"),
    ("is_signed", "u1"),
    ("padding", "u1", (3,)),
])

CALL_SETTINGS = np.dtype([
    ("limit", "<u8"),
    ("return_limit", "<u8"),
    ("process_hend", "<u4"),
    ("map_subtag", "<u4"),
])

CALL_PLACE = np.dtype([
    ("module", "<u8"),
    ("function", "<u8"),
    ("arity", "<u4"),
    ("number", "<u4"),
])

CALL_TOTALS = np.dtype([
    ("calls", "<u8"),
    ("lost", "<u8"),
    ("refused", "<u8"),
    ("strange", "<u8"),
    ("beyond", "<u8"),
])

CALL_PENDING = np.dtype([
    ("since_ns", "<u8"),
    ("address", "<u8"),
])

CALL_HIT = np.dtype([
    ("time_ns", "<u8"),
    ("process", "<u8"),
    ("address", "<u8"),
    ("caller", "<u8"),
    ("since_ns", "<u8"),
    ("tid", "<u4"),
    ("arity", "<u4"),
    ("x", "<u8", (8,)),
    ("pieces", "<u8", (112,)),
    ("reserved", "<u8"),
])

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

SAMPLED_THREAD = np.dtype([
    ("scheduler", "<u8"),
    ("stack_top", "<u8"),
])

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
    ("kernel", "<u8", (64,)),
])

WAITING = np.dtype([
    ("since_ns", "<u8"),
    ("i", "<u8"),
    ("position_ns", "<u8"),
    ("point_ns", "<u8"),
    ("reason", "<u4"),
    ("seen", "<u4"),
])

WAIT_SITE = np.dtype([
    ("i", "<u8"),
    ("reason", "<u8"),
])

WAIT_TOTAL = np.dtype([
    ("ns", "<u8"),
    ("count", "<u8"),
])

WAYS = (
    Way('spawn', 'symbol', 'process', flavor=None, on_request=None, needs=(), hooks=(
        Hook('spawn_entry', 'erl_create_process', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
        Hook('spawn_return', 'erl_create_process', returns=True, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
    )),
    Way('spawn', 'usdt', 'process', flavor=None, on_request=None, needs=(), hooks=(
        Hook('spawn_usdt', 'process__spawn', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
    )),
    Way('exit', 'symbol', 'process', flavor=None, on_request=None, needs=(), hooks=(
        Hook('exit_entry', 'erts_do_exit_process', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
    )),
    Way('exit', 'usdt', 'process', flavor=None, on_request=None, needs=(), hooks=(
        Hook('exit_usdt', 'process__exit', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
    )),
    Way('hibernate', 'symbol', 'process', flavor=None, on_request=None, needs=(), hooks=(
        Hook('hibernate_entry', 'erts_hibernate', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
    )),
    Way('hibernate', 'usdt', 'process', flavor=None, on_request=None, needs=(), hooks=(
        Hook('hibernate_usdt', 'process__hibernate', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
    )),
    Way('send', 'symbol', 'message', flavor=None, on_request=None, needs=(), hooks=(
        Hook('send_local', 'erts_send_message', returns=False, mangled=False, optional=False, call='erts_queue_proc_message', local=False, at_call=(('send_message_register', 'rcx'),), arguments=()),
        Hook('send_alias', 'erts_proc_sig_send_to_alias', returns=False, mangled=False, optional=True, call='proc_queue_signal', local=True, at_call=(('send_alias_register', 'rcx'),), arguments=()),
        Hook('send_alias', 'erts_proc_sig_send_altact_msg', returns=False, mangled=False, optional=True, call='proc_queue_signal', local=True, at_call=(('send_alias_register', 'rcx'),), arguments=()),
        Hook('send_remote', 'erts_dsig_send_msg', returns=False, mangled=False, optional=True, call=None, local=False, at_call=(), arguments=()),
        Hook('send_remote_name', 'erts_dsig_send_reg_msg', returns=False, mangled=False, optional=True, call=None, local=False, at_call=(), arguments=()),
    )),
    Way('send', 'usdt', 'message', flavor=None, on_request=None, needs=(), hooks=(
        Hook('send_usdt', 'message__send', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
    )),
    Way('receive', 'symbol', 'message', flavor='jit', on_request=None, needs=(), hooks=(
        Hook('receive_entry', 'beam_jit_remove_message', returns=False, mangled=True, optional=False, call=None, local=False, at_call=(), arguments=()),
    )),
    Way('receive', 'usdt', 'message', flavor=None, on_request=None, needs=(), hooks=(
        Hook('receive_usdt', 'message__receive', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
    )),
    Way('schedule', 'symbol', 'schedule', flavor='jit', on_request=None, needs=(), hooks=(
        Hook('schedule_in', 'copy_in_registers', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=('schedule_in_register',)),
        Hook('schedule_out', 'erts_schedule', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
    )),
    Way('schedule', 'usdt', 'schedule', flavor='emu', on_request=None, needs=(), hooks=(
        Hook('schedule_in_usdt', 'process__scheduled', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
        Hook('schedule_out_usdt', 'process__unscheduled', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
    )),
    Way('gc', 'symbol', 'gc', flavor=None, on_request=None, needs=(), hooks=(
        Hook('gc_entry', 'erts_garbage_collect_nobump', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
        Hook('gc_return', 'erts_garbage_collect_nobump', returns=True, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
        Hook('gc_entry', 'erts_garbage_collect', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
        Hook('gc_return', 'erts_garbage_collect', returns=True, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
        Hook('gc_entry', 'erts_gc_after_bif_call_lhf', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
        Hook('gc_return', 'erts_gc_after_bif_call_lhf', returns=True, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
        Hook('gc_entry', 'erts_garbage_collect_literals', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
        Hook('gc_return', 'erts_garbage_collect_literals', returns=True, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
        Hook('gc_entry', 'erts_garbage_collect_hibernate', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
        Hook('gc_hibernate_return', 'erts_garbage_collect_hibernate', returns=True, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
    )),
    Way('gc', 'usdt', 'gc', flavor=None, on_request=None, needs=(), hooks=(
        Hook('gc_start_usdt', 'gc_minor__start', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
        Hook('gc_minor_end_usdt', 'gc_minor__end', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
        Hook('gc_start_usdt', 'gc_major__start', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
        Hook('gc_major_end_usdt', 'gc_major__end', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
    )),
    Way('port_open', 'symbol', 'port', flavor=None, on_request=None, needs=(), hooks=(
        Hook('port_open_entry', 'erts_open_driver', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
        Hook('port_open_return', 'erts_open_driver', returns=True, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
    )),
    Way('port_open', 'usdt', 'port', flavor=None, on_request=None, needs=(), hooks=(
        Hook('port_open_usdt', 'port__open', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
    )),
    Way('port_close', 'symbol', 'port', flavor=None, on_request=None, needs=(), hooks=(
        Hook('port_close_entry', 'erts_deliver_port_exit', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
    )),
    Way('port_close', 'usdt', 'port', flavor=None, on_request=None, needs=(), hooks=(
        Hook('port_close_usdt', 'port__exit', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
    )),
    Way('port_busy', 'symbol', 'port', flavor=None, on_request=None, needs=(), hooks=(
        Hook('port_busy_entry', 'set_busy_port', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
    )),
    Way('port_busy', 'usdt', 'port', flavor=None, on_request=None, needs=(), hooks=(
        Hook('port_busy_usdt', 'port__busy', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
        Hook('port_not_busy_usdt', 'port__not_busy', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
    )),
    Way('dist_busy', 'symbol', 'dist', flavor=None, on_request=None, needs=('dsig_send_start',), hooks=(
        Hook('dist_busy_entry', 'erts_suspend', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
        Hook('dist_resume', 'erts_resume_processes', returns=False, mangled=False, optional=True, call=None, local=False, at_call=(), arguments=()),
    )),
    Way('dist_output', 'symbol', 'dist', flavor=None, on_request=None, needs=(), hooks=(
        Hook('dist_output_port', 'erts_dist_command', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
        Hook('dist_output_process', 'dist_ctrl_get_data_1', returns=False, mangled=False, optional=True, call=None, local=False, at_call=(), arguments=()),
    )),
    Way('dist_output', 'usdt', 'dist', flavor=None, on_request=None, needs=(), hooks=(
        Hook('dist_output_usdt', 'dist__output', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
        Hook('dist_output_usdt', 'dist__outputv', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
    )),
    Way('code_load', 'symbol', 'code', flavor=None, on_request=None, needs=(), hooks=(
        Hook('code_load_entry', 'erts_finish_loading', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
        Hook('code_load_return', 'erts_finish_loading', returns=True, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
    )),
    Way('long_call', 'symbol', 'call', flavor='jit', on_request='a return probe on every NIF and BIF call, which a busy VM makes by the 100,000 a second', needs=(), hooks=(
        Hook('nif_entry', 'beam_jit_call_nif', returns=False, mangled=True, optional=False, call=None, local=False, at_call=(), arguments=()),
        Hook('call_return', 'beam_jit_call_nif', returns=True, mangled=True, optional=False, call=None, local=False, at_call=(), arguments=()),
        Hook('bif_entry', 'beam_jit_call_bif', returns=False, mangled=True, optional=False, call=None, local=False, at_call=(), arguments=()),
        Hook('call_return', 'beam_jit_call_bif', returns=True, mangled=True, optional=False, call=None, local=False, at_call=(), arguments=()),
        Hook('dirty_nif_entry', 'erts_call_dirty_nif', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
        Hook('call_return', 'erts_call_dirty_nif', returns=True, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
        Hook('dirty_bif_entry', 'erts_call_dirty_bif', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
        Hook('call_return', 'erts_call_dirty_bif', returns=True, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
    )),
    Way('thread', 'tracepoint', 'switches', flavor=None, on_request="it is the kernel's view of the VM's threads, which `record` looks at", needs=(), hooks=(
        Hook('switched', 'sched_switch', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
        Hook('woken', 'sched_wakeup', returns=False, mangled=False, optional=False, call=None, local=False, at_call=(), arguments=()),
    )),
)

REFUSALS = (
    Refusal('schedule', 'usdt', 'jit', 'under the JIT process__scheduled fires on dirty schedulers only'),
    Refusal('schedule', 'symbol', 'emu', 'the interpreter has no function for scheduling in'),
    Refusal('receive', 'symbol', 'emu', 'the interpreter takes messages out of the mailbox without a function'),
    Refusal('dist_busy', 'usdt', None, 'dist__port_busy was not seen to fire when senders were suspended'),
    Refusal('code_load', 'usdt', None, 'OTP has no USDT probe for it'),
    Refusal('long_call', 'usdt', None, "OTP's NIF and BIF probes fire for dirty NIFs only, or not at all"),
    Refusal('long_call', 'symbol', 'emu', 'the interpreter calls NIFs and BIFs without a function'),
)

#: The only USDT probes that may ever be attached.
USDT_ALLOWED = frozenset(h.name for w in WAYS if w.via == "usdt" for h in w.hooks)
