# SPDX-License-Identifier: Apache-2.0
"""``scope-trace calls 'MODULE:FUNCTION/ARITY'``: who calls a function, with what, for how long."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from scope_ebpf import events
from scope_ebpf.beam.code.functions import Functions, parse
from scope_ebpf.beam.code.modules import Modules
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.cli.options import (
    above_zero,
    add_duration,
    add_format,
    add_max_cost,
    add_output,
)
from scope_ebpf.cli.target import add_target, find_vm, words_of
from scope_ebpf.errors import NothingToAttachError, UsageError
from scope_ebpf.kernel import host
from scope_ebpf.kernel.attach.breakpoints import MOST
from scope_ebpf.planning.function_probes import attachments
from scope_ebpf.runs.call_run import CallOptions
from scope_ebpf.runs.terminal import alone, open_output, output_error
from scope_ebpf.sinks.plain import say, spelled

if TYPE_CHECKING:
    import argparse

    from scope_ebpf.beam.code.functions import Function
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.runs.call_run import CallRun

DEFAULT_LIMIT = 1000
#: The largest limit: 8 s of the VM's time.
MAX_LIMIT = 1_000_000
#: Patterns of a command line.
_MOST_PATTERNS = 64
#: A function as Elixir writes it.
_ELIXIR = re.compile(r"[A-Z][^@]*\.[^.@]+")
#: Candidates that an error lists.
_LISTED = 20
#: Why functions are limited, by whether the VM has the JIT.
_ROOM = {True: "the CPU has debug registers for", False: "the probes are compared with names of"}
#: A warning before calls on an interpreter are watched.
_EVERY_CALL = "; meanwhile each call in the VM, of any function, costs it microseconds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``calls``."""
    add_target(parser, "FUNCTION...")
    parser.epilog = (
        "FUNCTION is MODULE:FUNCTION/ARITY, without /ARITY for each, * for anything; for Elixir "
        "'MyApp.Server.handle_call/3'. Four at most."
    )
    add_duration(parser, "15s")
    parser.add_argument(
        "-n",
        "--limit",
        type=calls,
        default=DEFAULT_LIMIT,
        metavar="CALLS",
        help="end after so many calls; each costs the VM some microseconds (default: %(default)s)",
    )
    add_max_cost(parser)
    parser.add_argument(
        "--durations",
        action="store_true",
        help="measure how long calls take, where they return to a place that many return to; "
        "then three functions at most",
    )
    add_format(parser, "text", "jsonl", text="jsonl: one event a line, the summary last")
    add_output(parser)


def _names_function(word: str) -> bool:
    """Whether a first word is FUNCTION and not TARGET: no name of a node is written like that."""
    return ":" in word or _ELIXIR.fullmatch(word) is not None


def calls(text: str) -> int:
    """A limit: 1 to MAX_LIMIT."""
    value = above_zero(text)
    if value > MAX_LIMIT:
        raise ValueError(text)
    return value


def run(arguments: argparse.Namespace) -> int:
    """The command; returns its exit code."""
    vm, words = words_of(
        arguments, "FUNCTION...", least=1, most=_MOST_PATTERNS, is_own=_names_function
    )
    patterns = [parse(text) for text in words]
    host.require()
    target = find_vm(vm)
    refuse_interpreter(target)
    atoms = Atoms(target)
    modules = Modules(target, atoms)
    functions = Functions(target, atoms, modules)
    candidates = {f.address: f for pattern in patterns for f in functions.find(pattern)}
    jit = target.flavor == "jit"
    most = MOST - arguments.durations if jit else events.MAX_PROBED_FUNCTIONS
    chosen = choose(list(candidates.values()), most, _ROOM[jit])
    return _watch(arguments, target, (atoms, modules, functions), chosen)


def _run_of(
    arguments: argparse.Namespace,
    target: Target,
    found: tuple[Atoms, Modules, Functions],
    chosen: list[Function],
) -> CallRun:
    from scope_ebpf.runs.call_run_jit import JitCallRun
    from scope_ebpf.runs.call_run_usdt import UsdtCallRun

    options = CallOptions(
        limit=arguments.limit,
        duration=arguments.duration,
        durations=arguments.durations,
        max_cost=arguments.max_cost,
    )
    if target.flavor == "jit":
        return JitCallRun(target, found, chosen, options)
    return UsdtCallRun(target, found[0], chosen, options)


def _watch(
    arguments: argparse.Namespace,
    target: Target,
    found: tuple[Atoms, Modules, Functions],
    chosen: list[Function],
) -> int:
    from scope_ebpf.sinks.calls import CallLines, print_calls

    with (
        open_output(arguments.output, force=arguments.force) as output,
        alone(target.pid) as notes,
    ):
        made = _run_of(arguments, target, found, chosen)
        made.summary.notes += notes
        try:
            error = made.run(
                CallLines(output, arguments.format),
                lambda: _say_started(arguments, target, chosen),
            )
            if arguments.format == "jsonl":
                output.write(json.dumps(made.summary.as_json()) + "\n")
            else:
                print_calls(made.summary, output)
            output.flush()
        except BrokenPipeError:
            raise
        except OSError as broken:
            raise output_error(broken, arguments.output) from broken
    if error:
        raise error
    return 0


def refuse_interpreter(target: Target) -> None:
    """Raise NothingToAttachError for an interpreter without function probes."""
    if target.flavor == "jit":
        return
    try:
        attachments(target.binary, target.flavor, returns=True)
    except NothingToAttachError as error:
        raise NothingToAttachError(
            f"process {target.pid} runs the interpreter, where a function is data that no "
            f"breakpoint stops at, and {error}; calls can be watched on the JIT (OTP 24 and later "
            "on x86_64) and on an interpreter that was built with USDT probes. Inside the VM, "
            "erlang:trace sees them"
        ) from None


def choose(candidates: list[Function], most: int, room: str = _ROOM[True]) -> list[Function]:
    """
    The functions to watch: all *candidates*.

    UsageError if they are more than *most*, which *room* explains, or if none of them is Erlang.
    """
    native = [str(f) for f in candidates if f.is_bif]
    erlang = [f for f in candidates if not f.is_bif]
    if native and not erlang:
        raise UsageError(
            f"{', '.join(native[:_LISTED])}: written in C, and called without passing any Erlang "
            "code. `scope-trace --events long_call` sees such calls that take a millisecond or "
            "more (--slow-call); `calls` sees the Erlang functions around them"
        )
    if len(erlang) > most:
        shown = ", ".join(str(f) for f in erlang[:_LISTED])
        rest = f" and {len(erlang) - _LISTED} more" if len(erlang) > _LISTED else ""
        raise UsageError(
            f"{len(erlang)} functions fit, and {room} {most}"
            + (" beside the one for durations" if most < MOST else "")
            + f"; name those you mean: {shown}{rest}"
        )
    return erlang


def _say_started(arguments: argparse.Namespace, target: Target, chosen: list[Function]) -> None:
    length = "until Ctrl-C" if arguments.duration is None else f"for {arguments.duration:g} s"
    say(
        f"watching {spelled(', '.join(map(str, chosen)))} in process {target.pid} {length}, "
        f"{arguments.limit:,} calls at most" + ("" if target.flavor == "jit" else _EVERY_CALL)
    )
