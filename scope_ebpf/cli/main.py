# SPDX-License-Identifier: Apache-2.0
"""``scope-trace``: the commands, and the one place where errors become messages."""

from __future__ import annotations

import argparse
import atexit
import gc
import importlib
import os
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

from scope_ebpf import numpy_start
from scope_ebpf.cli.target import UnknownVmError, WordsError
from scope_ebpf.errors import UNEXPECTED, ScopeError, UsageError
from scope_ebpf.kernel.interrupts import held_back
from scope_ebpf.pipes import UnreadPipeError, guarded_streams
from scope_ebpf.sinks.plain import plain, say, spelled
from scope_ebpf.suggestions import close, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence


def _as_it_is(text: str | None) -> str | None:
    """
    What argparse takes for the translation of *text*, which is None where it has no description.
    """
    return text


# argparse would load locale to look for translations, and there are none.
argparse._ = _as_it_is  # type: ignore[attr-defined]

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
    "learn": "what a build of OTP with symbols teaches of one that hides them",
    "calls": "who calls a function, with what arguments, and for how long",
    "genservers": "servers by module: how busy, who waits for whom, and for what most",
    "merge": "captures of several nodes: one clock, packets paired from node to node",
    "telemetry": "events of Elixir's libraries: routes, LiveViews, queries, jobs",
    "requests": "the slowest requests, and those that failed, as trees of spans",
    "links": "the connections to other nodes: full, silent, slow, and who waits for them",
    "check": "what is wrong with a VM: a verdict, its evidence, and what to look at next",
    "ets": "the ETS tables of a VM: owner, size, growth",
    "ports": "the ports of a VM: driver or program, owner, queue, bytes",
    "stacks": "all processes of a VM, grouped by equal stacks or by what they began with",
    "marks": "calls of functions that scope-mark has marked: rates, failures, durations",
    "memory": "where the memory of a VM is: kinds, allocators, tables, and who holds most",
    "mcp": "the read-only commands as tools for programs (Model Context Protocol)",
}
DEFAULT = "trace"
#: Options of a command line without a command.
_OVERALL = ("-h", "--help", "--version", "--print-completion")
#: Commands that look at no process.
_WITHOUT_TARGET = ("export", "merge", "summary", "mcp")
#: Commands that disassemble nothing, unless an emulator hides its symbols.
_READING = ("list", "top", "ps", "ets", "ports", "stacks")
_MODULES = {"list": "scope_ebpf.cli.list_beams"}

#: Columns of help where there is no terminal.
_COLUMNS = 80

_EXAMPLES = """\
examples:
  scope-trace list                              which VMs run here
  sudo scope-trace trace                        the only VM: ten seconds, then a summary
  sudo scope-trace shop                         that of the node shop@...; a pid will do, too
  sudo scope-trace shop 1s 10                   ten lines, one a second, as vmstat has them
  sudo scope-trace shop -d 1m -f json -o run.json
  sudo scope-trace shop --events gc --stream    a line for each event
  sudo scope-trace doctor shop                  why an event is not available
  sudo scope-trace profile shop -o cpu.html     a flame graph of ten seconds
  sudo scope-trace top shop --sort mailbox      who has the longest queue
  sudo scope-trace calls shop lists:map/2       who calls it, with what
  sudo scope-trace ps shop Shop.Cart            one process, its stack, its mailbox

TARGET is a pid, a node name, a container id, or the beginning of one, and may be left out if
one VM runs. The VM is not changed, restarted or asked. `scope-trace COMMAND --help` says more.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run a command; returns its exit code.

    *argv* is None in a process that does nothing else. There, no object that exists after the
    imports or at the end is looked at for garbage again.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    with guarded_streams():
        code = _run(words, alone=argv is None)
    if argv is None:
        gc.freeze()  # where the interpreter ends the process, it collects twice
        _leave(code)
    return code


def _leave(code: int) -> None:
    """
    End this process as the interpreter does, without freeing each module, which takes 10 ms.

    Returns where that is left to the interpreter: a thread runs, or the output cannot be written.
    """
    if threading.active_count() > 1:
        return
    atexit._run_exitfuncs()  # noqa: SLF001
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream:  # None where the process was started without it
                stream.flush()
    except (OSError, ValueError):
        return
    os._exit(code)


def _run(words: list[str], *, alone: bool) -> int:
    """Run what *words*, the command line, ask for; the exit code. *alone* as of :func:`parsed`."""
    try:
        # What imports make stays: looking for garbage among it takes a tenth of the start.
        gc.disable()
        try:
            arguments = parsed(words, alone=alone)
            if alone:
                gc.freeze()
        finally:
            gc.enable()
        code: int = arguments.run(arguments)
    except ScopeError as error:
        return _say_error(_of_first_word(words[0], error) if words else error)
    except BrokenPipeError as closed:
        if isinstance(closed, UnreadPipeError):
            say("scope-trace: nobody reads the output: what was left of it is dropped")
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
        return UNEXPECTED
    return code


def _say_error(error: ScopeError) -> int:
    say(f"scope-trace: {plain(spelled(str(error)))}")
    for line in error.details:
        say(f"  {plain(spelled(line.expandtabs()))}")
    return error.exit_code


def _of_first_word(word: str, error: ScopeError) -> ScopeError:
    """*error*, or one that says that *word*, the first of the command line, is no command."""
    if isinstance(error, WordsError) and (mistyped := _mistyped(word)):
        return WordsError(f"{mistyped} (as a TARGET: {error})")
    if not isinstance(error, UnknownVmError) or error.word != word:
        return error
    likely = close(word, COMMANDS) or error.near
    made = UsageError(f"no such command or VM: {word!r}{did_you_mean(likely)}")
    made.details = ("`scope-trace --help` lists the commands; VMs here:", *error.details)
    return made


def _mistyped(word: str) -> str:
    """What is wrong with a first *word* that is like a command, and none; else empty."""
    found = [] if word.startswith("-") or word in COMMANDS else close(word, COMMANDS)
    return f"no such command: {word!r}{did_you_mean(found)}" if found else ""


def _say_where(error: Exception) -> None:
    """Print an error of the program with its traceback; no terminal obeys a VM's text in it."""
    import traceback

    say(f"scope-trace: a mistake of ours, {type(error).__name__}: {plain(str(error))}. Traceback:")
    for frame in traceback.extract_tb(error.__traceback__):
        say(f"  {plain(frame.filename)}:{frame.lineno} {frame.name}")


class _Help(argparse.HelpFormatter):
    """Help as wide as the terminal, without shutil, which loads three libraries of compression."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


class _Examples(_Help, argparse.RawDescriptionHelpFormatter):
    """The same, with examples as they are."""


def _columns() -> int:
    """Columns of the terminal, as shutil.get_terminal_size has them."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isascii() and columns.isdecimal() and int(columns) > 0:
        return int(columns)
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or _COLUMNS  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):
        return _COLUMNS


class _Parser(argparse.ArgumentParser):
    """A parser whose errors quote the command line without obeying it: names of files are in it."""

    #: What is wrong with the first word, where it should be a command; empty if nothing is.
    mistyped = ""

    def takes_words(self) -> bool:
        """Whether it has TARGET and the words behind it."""
        return any(action.dest == "words" for action in self._actions)

    def error(self, message: str) -> NoReturn:
        """Print *message* and end."""
        wrong = f"{self.mistyped} (as a TARGET: {message})" if self.mistyped else message
        super().error(plain(wrong))


class _Version(argparse.Action):
    """``--version``; what finds the version takes as long to load as all of a help."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib import metadata

        say(f"scope-trace {metadata.version('scope-ebpf')}", sys.stdout)
        parser.exit()


class _Completion(argparse.Action):
    """``--print-completion``: what a shell completes, as the package or the wheel has it."""

    def __call__(
        self, parser: argparse.ArgumentParser, _: object, shell: object, *_more: object
    ) -> NoReturn:
        from pathlib import Path

        path = Path(__file__).parents[1] / f"completions/scope-trace.{shell}"
        try:
            sys.stdout.write(path.read_bytes().decode())
        except FileNotFoundError:
            parser.error("this installation has no completions: `make completions` makes them")
        parser.exit()


def parsed(words: Sequence[str], *, alone: bool = False) -> argparse.Namespace:
    """
    The command line *words*, with ``run``, the function that does what they ask for.

    *alone* is whether this process does nothing else, and has one thread.
    """
    if not words or words[0].partition("=")[0] in _OVERALL:
        return _overview().parse_args(words or ["--help"])
    named = words[0] in COMMANDS
    parser = parser_of(words[0] if named else DEFAULT, alone=alone)
    parser.mistyped = _mistyped(words[0])
    given, behind = list(words[named:]), list[str]()
    if "--" in given and parser.takes_words():
        # What is behind it is no option; argparse forgets that where words stand among options.
        at = given.index("--")
        given, behind = given[:at], given[at + 1 :]
    arguments, unknown = parser.parse_known_intermixed_args(given)
    if behind:
        arguments.words += behind
    if unknown:
        if not unknown[0].startswith("-"):
            parser.error(f"{unknown[0]} is one word too many")
        parser.error(f"{unknown[0]} is no option{did_you_mean(_near_options(parser, unknown[0]))}")
    return arguments


def _near_options(parser: argparse.ArgumentParser, word: str) -> list[str]:
    """Options of *parser* that are spelt like *word*."""
    options = [name for action in parser._actions for name in action.option_strings]  # noqa: SLF001
    return close(word.partition("=")[0], options)


def parser_of(command: str, *, alone: bool = False) -> _Parser:
    """The parser of one command; only its module is loaded. *alone* as of :func:`parsed`."""
    text = COMMANDS[command]
    parser = _Parser(
        prog="scope-trace" if command == DEFAULT else f"scope-trace {command}",
        description=f"{text[0].upper()}{text[1:]}.",
        formatter_class=_Help,
    )
    if command not in _WITHOUT_TARGET:
        from scope_ebpf.sandbox import client, limits

        # It starts while we load the rest.
        client.ahead(limits.READS if command in _READING else limits.ANY, fork=alone)
    with held_back():  # numpy's import swallows exceptions
        if command not in _WITHOUT_TARGET:
            numpy_start.load()
        module = importlib.import_module(_MODULES.get(command, f"scope_ebpf.cli.{command}"))
    module.add_arguments(parser)
    parser.set_defaults(run=module.run)
    return parser


def _overview() -> argparse.ArgumentParser:
    """The parser of a command line without a command."""
    parser = _Parser(
        prog="scope-trace",
        usage="scope-trace [COMMAND] [TARGET] [OPTIONS]",
        description="See inside an Erlang or Elixir VM from the outside, with eBPF.",
        epilog=_EXAMPLES,
        formatter_class=_Examples,
    )
    parser.add_argument("--version", nargs=0, action=_Version, help="print the version and end")
    parser.add_argument(
        "--print-completion",
        choices=["bash", "zsh", "fish"],
        action=_Completion,
        help="print what the shell completes, and end",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text, formatter_class=_Help)
    return parser


if __name__ == "__main__":
    sys.exit(main())
