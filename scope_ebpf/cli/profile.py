# SPDX-License-Identifier: Apache-2.0
"""``scope-trace profile``: where a VM's time goes, by process, function and line."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from typing import IO, TYPE_CHECKING

from scope_ebpf.cli.options import add_duration, add_force, add_max_cost
from scope_ebpf.cli.target import add_target, target_of
from scope_ebpf.errors import UsageError
from scope_ebpf.kernel import host
from scope_ebpf.runs.off_cpu import off_cpu
from scope_ebpf.runs.profiler import ProfileOptions, on_cpu
from scope_ebpf.runs.symbolizer import OWNERS
from scope_ebpf.runs.terminal import open_document, output_error
from scope_ebpf.sinks.plain import say
from scope_ebpf.sinks.profile_report import last_lines, print_profile

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from scope_ebpf.results.profile import Profile

MAX_HZ = 999
_ENDINGS = {
    ".speedscope.json": "speedscope",
    ".json": "speedscope",
    ".pb.gz": "pprof",
    ".folded": "folded",
    ".html": "a page with the viewer",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a profile."""
    add_target(parser)
    add_duration(parser)
    add_max_cost(parser)
    parser.add_argument(
        "--hz",
        type=int,
        default=99,
        help=f"samples a second on each CPU, 1 to {MAX_HZ} (default: %(default)s)",
    )
    parser.add_argument(
        "--off-cpu",
        action="store_true",
        help="what processes wait in, instead of what they run: each wait from when a process "
        "leaves its scheduler until it has one again (costs two breakpoints for each)",
    )
    parser.add_argument(
        "--by",
        choices=OWNERS,
        default="name",
        help="what stacks stand under: processes by their name or module, each process for "
        "itself, the thread, or the route, LiveView or job that processes work on, by events of "
        "the library telemetry (default: %(default)s)",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help=f"write there, in the format that its ending names: {', '.join(_ENDINGS)}; "
        "without it, a table is printed",
    )
    parser.add_argument(
        "--diff",
        nargs=2,
        metavar=("BEFORE", "AFTER"),
        help="compare two files that this command wrote, instead of a profile: the share of each "
        "process and function, and whether chance can explain its change",
    )
    parser.add_argument(
        "--open",
        action="store_true",
        help="show the profile as a flame graph in a browser; without -o, its file is "
        "profile-PID-TIME.html in this folder",
    )
    add_force(parser)


def run(arguments: argparse.Namespace) -> int:
    """The command; returns its exit code."""
    if arguments.diff:
        return _compare(arguments)
    if not 1 <= arguments.hz <= MAX_HZ:
        raise UsageError(f"--hz wants 1 to {MAX_HZ} samples a second; 99 costs next to nothing")
    host.require()
    _writer(_path(arguments, "PID"))  # its errors come before any look
    target = target_of(arguments)
    path = _path(arguments, str(target.pid))
    write = _writer(path)
    content = b""
    with _output(path, force=arguments.force) as output:
        options = ProfileOptions(
            hz=arguments.hz,
            duration=arguments.duration,
            by=arguments.by,
            max_cost=arguments.max_cost,
        )
        profile, error = (off_cpu if arguments.off_cpu else on_cpu)(target, options)
        if output is None:
            print_profile(profile, sys.stdout)
        else:
            content = write(profile)
            try:
                output.write(content)
            except OSError as broken:
                raise output_error(broken, path) from broken
    if path is not None:
        say_written(path, content, profile)
    if arguments.open and path is not None:
        _show(path)
    if error:
        raise error
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    """Compare two recorded profiles; returns the exit code."""
    from scope_ebpf.runs.recorded import read
    from scope_ebpf.sinks.profile_diff import WRITERS, print_difference

    if arguments.pid is not None or arguments.words:
        raise UsageError("--diff compares two files, and looks at no VM: leave TARGET out")
    path = _path(arguments, "diff")
    write = next((w for end, w in WRITERS.items() if path is not None and path.endswith(end)), None)
    if path is not None and write is None:
        raise UsageError(f"-o {path}: differences are written to {', '.join(WRITERS)}")
    before, after = map(read, arguments.diff)
    if before.waits != after.waits:
        raise UsageError("one is of CPU time and the other of waiting: they cannot be compared")
    if path is None or write is None:
        print_difference(before, after, sys.stdout)
        return 0
    with open_document(path, force=arguments.force) as output:
        try:
            output.write(write(before, after))
        except OSError as broken:
            raise output_error(broken, path) from broken
    say(f"written: {path}")
    if arguments.open:
        _show(path)
    return 0


def _path(arguments: argparse.Namespace, what: str) -> str | None:
    """Where a profile of *what* is written: as asked, or for a browser; None for a table."""
    path: str | None = arguments.output
    if not arguments.open:
        return path
    if path is None:
        return time.strftime(f"profile-{what}-%Y%m%d-%H%M%S.html")
    if not path.endswith(".html"):
        raise UsageError(f"--open shows a page: choose -o FILE.html instead of {path}")
    return path


def _show(path: str) -> None:
    """Open the page in the user's browser, or say where to."""
    from scope_ebpf.runs.browser import show

    if reason := show(path):
        say(f"not opened: {reason}; open {path} in any browser, it needs no network")


def say_written(path: str, content: bytes, profile: Profile) -> None:
    """Print that the file was written; of an idle VM there may be nothing in it."""
    line = f"written: {path}" if content else f"{path} is empty"
    say(last_lines(profile) + line)


def _writer(name: str | None) -> Callable[[Profile], bytes]:
    """The writer of the format that the ending of *name* says; UsageError if it says none."""
    # Each is imported only if it is wanted.
    ending = next((e for e in _ENDINGS if name is not None and name.endswith(e)), None)
    if name is not None and ending is None:
        raise UsageError(f"-o {name}: its ending names no format; there are {', '.join(_ENDINGS)}")
    if ending == ".pb.gz":
        from scope_ebpf.sinks.pprof import pprof

        return pprof
    if ending == ".folded":
        from scope_ebpf.sinks.folded import folded

        return folded
    from scope_ebpf.sinks.speedscope import html, speedscope, viewer

    if ending == ".html":
        viewer()
        return html
    return speedscope


def _output(name: str | None, *, force: bool) -> AbstractContextManager[IO[bytes] | None]:
    """The file to write, opened before the profile so that an error comes early; None if none."""
    return nullcontext() if name is None else open_document(name, force=force)
