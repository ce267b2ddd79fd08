# SPDX-License-Identifier: Apache-2.0
"""``scope-trace``: the commands, and the one place where errors become messages."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import TYPE_CHECKING, NoReturn

# numpy's linear algebra would start a thread for each CPU, with a stack each; we use none of it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from scope_ebpf.errors import ScopeError
from scope_ebpf.kernel.interrupts import held_back
from scope_ebpf.pipes import guarded_streams
from scope_ebpf.sandbox import client
from scope_ebpf.sinks.plain import plain, say

if TYPE_CHECKING:
    from collections.abc import Sequence

#: What each command does, by its name. ``trace`` is the default.
COMMANDS = {
    "trace": "count, time and stream what a VM does (the default)",
    "doctor": "every hook of a VM: on, off, and why; what the host lacks",
    "list": "the BEAMs on this host",
    "profile": "where a VM's CPU time goes, or its waiting: a flame graph, or a table",
    "top": "the processes of a VM, by what they use, as a table that moves",
    "ps": "everything known of one Erlang process",
    "record": "a trace into a file, or its last minutes when something goes wrong",
    "export": "a recorded trace for Perfetto, or as JSON lines, Parquet or OpenTelemetry",
    "summary": "the summary of a recorded trace",
    "schedulers": "what each scheduler thread does now, and on what",
    "run": "a probe of yours, written in C, compiled on the spot",
    "calls": "who calls a function, with what arguments, and for how long",
    "genservers": "servers by module: how busy, who waits for whom, and for what most",
}
#: Commands that look at no process.
_WITHOUT_TARGET = ("export", "summary")
_MODULES = {"list": "scope_ebpf.cli.list_beams"}

_EXAMPLES = """\
examples:
  scope-trace list                                 which VMs run here
  sudo scope-trace --pid 4711                      ten seconds, then a summary
  sudo scope-trace --pid 4711 --duration 60 --format json --output run.json
  sudo scope-trace --pid 4711 --events spawn,exit --format jsonl | head
  sudo scope-trace --pid 4711 --events gc --stream
  sudo scope-trace doctor 4711                     why an event is not available
  sudo scope-trace profile --pid 4711 -o cpu.html  a flame graph of ten seconds
  sudo scope-trace top --pid 4711 --sort mailbox   who has the longest queue
  sudo scope-trace calls lists:map/2 --pid 4711    who calls it, with what
  sudo scope-trace ps rabbit_event --pid 4711      one process, its stack, its mailbox

The VM is not changed, restarted or asked. `scope-trace COMMAND --help` tells more.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    top_level = not words or words[0] in ("-h", "--help", "--version")
    if not top_level and words[0] not in COMMANDS:
        if not words[0].startswith("-"):
            _parser(None).error(f"no command {words[0]!r}; there are: {', '.join(COMMANDS)}")
        words.insert(0, "trace")
    command = None if top_level else words[0]
    with guarded_streams():
        return _run(command, words)


def _run(command: str | None, words: list[str]) -> int:
    """Run *command* with all *words* of the command line; its exit code."""
    try:
        arguments = _parser(command).parse_args(words or ["--help"])
        code: int = arguments.run(arguments)
    except ScopeError as error:
        say(f"scope-trace: {plain(str(error))}")
        for line in error.details:
            say(f"  {plain(line.expandtabs())}")
        return error.exit_code
    except BrokenPipeError:
        # The reader of the output has closed it. Nothing may be flushed into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as end:
        # rich ends the program where a pipe is closed, with 1.
        if isinstance(end.__context__, BrokenPipeError):
            return 0
        raise
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - what a hostile VM leads to is anything
        _say_where(error)
        return ScopeError.exit_code
    return code


def _say_where(error: Exception) -> None:
    """Print an error of the program with its traceback; no terminal obeys a VM's text in it."""
    import traceback

    say(f"scope-trace: a mistake of ours, {type(error).__name__}: {plain(str(error))}. Traceback:")
    for frame in traceback.extract_tb(error.__traceback__):
        say(f"  {plain(frame.filename)}:{frame.lineno} {frame.name}")


class _Parser(argparse.ArgumentParser):
    """A parser whose errors quote the command line without obeying it: names of files are in it."""

    def error(self, message: str) -> NoReturn:
        """Print *message* and end."""
        super().error(plain(message))


def _parser(command: str | None) -> argparse.ArgumentParser:
    """The parser, with the options of *command* alone: the others' modules stay unloaded."""
    parser = _Parser(
        prog="scope-trace",
        usage="scope-trace [COMMAND] [OPTIONS]",
        description="See inside an Erlang or Elixir VM from the outside, with eBPF.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if command is None:
        from importlib import metadata

        version = metadata.version("scope-ebpf")
        parser.add_argument("--version", action="version", version=f"scope-trace {version}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, text in COMMANDS.items():
        if command not in (None, name):
            continue  # nobody sees it, and each takes a millisecond
        added = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            prog="scope-trace" if name == "trace" else f"scope-trace {name}",
        )
        if name == command:
            if name not in _WITHOUT_TARGET:
                client.ahead()  # it starts while we load the rest
            with held_back():  # numpy's import swallows exceptions
                module = importlib.import_module(_MODULES.get(name, f"scope_ebpf.cli.{name}"))
            module.add_arguments(added)
            added.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
