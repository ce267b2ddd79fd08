# SPDX-License-Identifier: Apache-2.0
"""``scope-trace run``: a probe that a user wrote, compiled on the spot."""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from scope_ebpf.beam.processes.term_text import TermText
from scope_ebpf.cli.options import (
    above_zero,
    add_duration,
    add_format,
    add_max_cost,
    add_output,
    ring_megabytes,
)
from scope_ebpf.cli.target import add_target, find_vm, words_of
from scope_ebpf.errors import NothingToAttachError, UsageError
from scope_ebpf.kernel import host
from scope_ebpf.runs.streaming import names_of
from scope_ebpf.runs.terminal import alone, announce, open_output, output_error
from scope_ebpf.runs.user_probe import ProbeOptions, ProbeRun, compile_probe
from scope_ebpf.sinks.plain import plain, say
from scope_ebpf.sinks.stream import Stream
from scope_ebpf.user_probes import hooks

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a run."""
    add_target(parser, "PROBE.c")
    add_duration(parser)
    add_max_cost(parser)
    parser.add_argument(
        "-n",
        "--max-events",
        type=above_zero,
        metavar="N",
        help="end after this many events (default: no limit)",
    )
    parser.add_argument(
        "-D", dest="defines", action="append", default=[], metavar="NAME[=VALUE]",
        help="define a macro for the probe; may be given several times",
    )  # fmt: skip
    add_format(parser, "text", "jsonl", text="jsonl: an event a line, the report last")
    add_output(parser)
    parser.add_argument(
        "--ring",
        type=ring_megabytes,
        default=4,
        metavar="MB",
        help="ring buffer for events, a power of two (default: %(default)s)",
    )
    parser.add_argument(
        "--hooks", action="store_true", help="list the names of hooks, and where they go; no probe"
    )
    parser.epilog = (
        "The probe's functions are attached by their names: on_gc_entry, uprobe__FUNCTION, "
        "uretprobe__FUNCTION. docs/run.md explains it, with three examples; what beam.h offers "
        f"stands in {resources.files('scope_ebpf.user_probes').joinpath('beam.h')}"
    )


def run(arguments: argparse.Namespace) -> int:
    """The command; returns its exit code."""
    if arguments.hooks:
        return _list_hooks(words_of(arguments)[0])
    vm, (source,) = words_of(arguments, "PROBE.c", least=1, most=1)
    host.require()
    target = find_vm(vm)
    options, path = _options(arguments), Path(source)
    text = _text(path)
    probe = compile_probe(path.name, text, target, options.ring_bytes, arguments.defines)
    with (
        open_output(arguments.output, force=arguments.force) as output,
        alone(target.pid) as notes,
    ):
        for note in (*probe.written.notes, *notes, *probe.compiled.notes.splitlines()):
            announce(note)
        terms, who = TermText(target), names_of(target)
        sink = Stream(output, terms, arguments.format, who, probe.sink_kinds())
        outcome, error = ProbeRun(target, probe, options, sink).run()
        from scope_ebpf.sinks.tables import write_report

        try:
            say(write_report(outcome, output, terms, who, arguments.format))
        except BrokenPipeError:
            return 0
        except OSError as broken:
            raise output_error(broken, arguments.output) from broken
    if error:
        raise error
    return 0


def _options(arguments: argparse.Namespace) -> ProbeOptions:
    return ProbeOptions(
        duration=arguments.duration,
        max_events=arguments.max_events,
        max_cost=arguments.max_cost,
        ring_bytes=arguments.ring << 20,
        output=arguments.output,
    )


def _text(path: Path) -> str:
    """The C source of a probe."""
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"cannot read the probe {path}: {reason}") from None


def _list_hooks(vm: str | None) -> int:
    target = find_vm(vm) if vm is not None else None
    for name, variants in hooks.named().items():
        program = name.removeprefix("on_")
        functions = [h.name for v in variants for h in v.hooks if h.program == program]
        where = ", ".join(dict.fromkeys(functions))
        if target is not None:
            try:
                hooks.attachments(target.binary, target.flavor, name)
            except NothingToAttachError as error:
                where = plain(str(error).partition(": ")[2])
        say(f"{name:<24} {where}", sys.stdout)
    say("uprobe__FUNCTION         the entry of any function of the VM that has a name", sys.stdout)
    say("uretprobe__FUNCTION      its return", sys.stdout)
    return 0
