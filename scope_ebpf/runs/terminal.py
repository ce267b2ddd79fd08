# SPDX-License-Identifier: Apache-2.0
"""What a trace meets around it: its output, other traces, signals, a terminal."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import socket
import stat
import sys
from typing import IO, TYPE_CHECKING, TextIO

from scope_ebpf import output
from scope_ebpf.errors import NoSuchProcessError, OutputError, TargetEndedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scope_ebpf.beam.vm.identity import Identity

#: How much of a file is looked at at once for its last newline, bytes.
_BLOCK = 65536
#: What may be done about an output that cannot be written.
_FULL = "what was written before is whole, free some space or choose another --output"
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EIO: _FULL,
    errno.ENOENT: "there is no such folder, make it or choose another --output",
}


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
        with _closed(open(sys.stdout.fileno(), "w", encoding="utf-8", closefd=False)) as text:
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
            with _closed(os.fdopen(fd, "w", encoding="utf-8")) as text:
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
    """What a failed write to *path* means to a user."""
    where = f" {path}" if path else ""
    remedy = _REMEDIES.get(error.errno or 0, "choose another --output")
    return OutputError(f"cannot write the output{where}: {error.strerror}; {remedy}")


@contextlib.contextmanager
def alone(pid: int) -> Iterator[list[str]]:
    """
    Notes about other traces of the same target.

    A name in the abstract socket namespace is taken for as long as we live, and is
    nothing that can be left behind.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as name:
        try:
            name.bind(f"\0scope-ebpf/trace/{pid}")
        except OSError:
            yield [f"another scope-trace observes process {pid}: both count right, costs add up"]
            return
        yield []


def require_target(identity: Identity, doing: str) -> None:
    """TargetEndedError if the target is no more what was inspected."""
    try:
        identity.check()
    except NoSuchProcessError as error:
        raise TargetEndedError(
            f"process {identity.pid} {error.what} before it could be {doing}"
        ) from None


def target_ended(pid: int, error: NoSuchProcessError, doing: str) -> TargetEndedError:
    """The end of a run, of which *error* tells, while the target was *doing*, such as "traced"."""
    return TargetEndedError(f"process {pid} {error.what} while it was {doing}")


@contextlib.contextmanager
def stop_signals(stop: Callable[[str], None]) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP end the trace well while the block runs."""
    reasons = {
        signal.SIGINT: "interrupted",
        signal.SIGTERM: "terminated",
        signal.SIGHUP: "hung up",
    }
    before = {
        number: signal.signal(number, lambda n, _: stop(reasons[signal.Signals(n)]))
        for number in reasons
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def progress_bar(
    whole: float | None, *, visible: bool, what: str = "tracing"
) -> Iterator[Callable[[float], object]]:
    """A progress bar on a terminal; elsewhere nothing. Yields what moves it, to *whole*."""
    if not (visible and sys.stderr.isatty()):
        yield lambda _seconds: None
        return
    from rich.console import Console  # noqa: PLC0415 - only for a terminal
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

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
