# SPDX-License-Identifier: Apache-2.0
"""What is around a run: its output, other runs on the same target, a progress bar."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import socket
import stat
import sys
from typing import IO, TYPE_CHECKING, TextIO

from scope_ebpf import output, pipes
from scope_ebpf.errors import OutputError
from scope_ebpf.sinks.plain import plain, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Bytes that are read at once to find a file's last newline.
_BLOCK = 65536
#: What a user may do about an output that cannot be written.
_FULL = "what was written before is whole, free some space or choose another --output"
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EIO: _FULL,
    errno.ENOENT: "there is no such folder, make it or choose another --output",
}


def announce(text: str) -> None:
    """Print one line of ``scope-trace`` itself to stderr."""
    say(f"scope-trace: {plain(text)}")


@contextlib.contextmanager
def open_output(path: str | None, *, force: bool = False, whole: bool = False) -> Iterator[TextIO]:
    """
    Standard output, or the file at *path*, which *force* lets be another user's.

    With *whole* the file is there when the block ends, or not at all. Else it grows while
    it is written, and ends with a whole line whatever happens: what a full disk cut off is
    taken back. ``sys.stdout`` itself is not used, because under PYTHONUNBUFFERED it drops
    what a signal or a full disk keeps it from writing at once.
    """
    if path is None or path == "-":
        sys.stdout.flush()
        with _closed(pipes.open_text(sys.stdout.fileno(), closefd=False)) as text:
            yield text
    elif whole:
        with open_document(path, force=force) as file:
            text = io.TextIOWrapper(file, encoding="utf-8")
            yield text
            try:
                text.flush()
            except BrokenPipeError:
                raise
            except OSError as error:
                raise output_error(error, path) from error
            text.detach()
    else:
        fd = open_stream(path, force=force)
        kept = os.dup(fd)
        try:
            with _closed(pipes.open_text(fd)) as text:
                yield text
        finally:
            _end_with_a_line(kept)


@contextlib.contextmanager
def _closed(text: TextIO) -> Iterator[TextIO]:
    try:
        yield text
    finally:
        # What could not be written was reported when writing failed.
        with contextlib.suppress(OSError):
            text.close()


def open_stream(path: str, *, force: bool) -> int:
    """Descriptor of a file at *path* that is written in place; raises OutputError."""
    try:
        return output.stream(path, force=force)
    except OSError as error:
        raise output_error(error, path) from error


@contextlib.contextmanager
def open_document(path: str, *, force: bool) -> Iterator[IO[bytes]]:
    """
    A file that is at *path* when the block has ended well, and untouched else.

    Raises OutputError; what the block writes raises OSError.
    """
    try:
        made = output.Document(path, force=force)
    except OSError as error:
        raise output_error(error, path) from error
    with made:
        yield made.file
        try:
            made.commit()
        except OSError as error:
            raise output_error(error, path) from error


def keep_old(path: str, *, force: bool = False) -> None:
    """Rename a file that is there already, as perf does: it may be the only one of its kind."""
    try:
        old = output.set_aside(path, force=force)
    except OSError as error:
        raise output_error(error, path) from error
    if old:
        announce(f"{path} was there: it is {old} now")


def _end_with_a_line(fd: int) -> None:
    """Cut a regular file behind its last newline, and close it."""
    with contextlib.suppress(OSError), os.fdopen(fd, "rb+") as file:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            end = file.seek(0, os.SEEK_END)
            while end > 0:
                start = max(0, end - _BLOCK)
                file.seek(start)
                newline = file.read(end - start).rfind(b"\n")
                if newline >= 0:
                    end = start + newline + 1
                    break
                end = start
            file.truncate(end)


def output_error(error: OSError, path: str | None) -> OutputError:
    """The error for the user of a failed write to *path*."""
    where = f" {path}" if path else ""
    remedy = _REMEDIES.get(error.errno or 0, "choose another --output")
    return OutputError(f"cannot write the output{where}: {error.strerror}; {remedy}")


@contextlib.contextmanager
def alone(pid: int) -> Iterator[list[str]]:
    """
    Notes about other runs on the same target.

    The run holds a name in the abstract socket namespace, which goes with its process.
    """
    notes = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as name:
        try:
            name.bind(f"\0scope-ebpf/trace/{pid}")
        except OSError:
            notes = [f"another scope-trace observes process {pid}: both count right, costs add up"]
        # Not in the handler: what ends the run would have that error for its cause.
        yield notes


@contextlib.contextmanager
def progress_bar(
    whole: float | None, *, visible: bool, what: str = "tracing"
) -> Iterator[Callable[[float], object]]:
    """A progress bar on a terminal; elsewhere nothing. Yields what moves it, up to *whole*."""
    if not (visible and sys.stderr.isatty()):
        yield lambda _seconds: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn(what),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("Ctrl-C ends it"),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task(what, total=whole)
        yield lambda done: progress.update(task, completed=done)
