# SPDX-License-Identifier: Apache-2.0
"""
Pipes and sockets as outputs whose reader may have stopped to read.

A write to a full pipe waits for the reader, and Python repeats it after each signal (PEP 475). A
command whose signal handlers set a flag would never end. So :class:`PipeWriter` waits for room
with ``poll``, and once the command is to end (:func:`set_ending`) it waits for :data:`GRACE`
seconds at most; then the rest of the output is dropped, as if the reader had closed the pipe.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import signal
import stat
import sys
import time
from typing import IO, TYPE_CHECKING, TextIO, cast

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

#: Seconds without room after which the reader of a command that is to end is given up.
GRACE = 1.0
#: Milliseconds of one wait for room: a signal may come just before the wait begins.
_WAIT_MS = 100


class _Command:
    """*ending* is whether the command was asked to end."""

    ending = False


_command = _Command()


def set_ending(*, ending: bool = True) -> None:
    """Let writes wait for :data:`GRACE` seconds at most from now on, or as long as it takes."""
    _command.ending = ending


def is_pipe(fd: int) -> bool:
    """Whether *fd* is a pipe or a socket."""
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


class UnreadPipeError(BrokenPipeError):
    """The reader of a command that is to end was given up."""


class PipeWriter(io.RawIOBase):
    """
    The pipe or socket *fd*, which is closed with it if *closefd*.

    A write raises BrokenPipeError if the reader has closed the pipe, and UnreadPipeError if the
    reader was given up; after that every write does.
    """

    def __init__(self, fd: int, *, closefd: bool = True) -> None:
        self._fd, self._closefd = fd, closefd
        self._own = _reopened(fd)
        self._poll = select.poll()
        self._poll.register(self._target, select.POLLOUT)
        self._given_up = False

    @property
    def _target(self) -> int:
        return self._fd if self._own is None else self._own

    def fileno(self) -> int:
        """See ``io.RawIOBase``."""
        return self._fd

    def writable(self) -> bool:
        """See ``io.RawIOBase``."""
        return True

    def write(self, data: object) -> int:
        """Write some of *data*, bytes; how many."""
        view = memoryview(data)  # type: ignore[arg-type] # whatever has a buffer
        # There is room for so much at least where poll says that there is some.
        part = view[: select.PIPE_BUF] if self._own is None else view
        while True:
            self._wait_for_room()
            with contextlib.suppress(BlockingIOError):  # another writer has taken the room
                return os.write(self._target, part)

    def _wait_for_room(self) -> None:
        """Return once something can be written, or the reader has closed the pipe."""
        since: float | None = None
        while not self._given_up and not self._poll.poll(_WAIT_MS):
            if _command.ending:
                since = time.monotonic() if since is None else since
                self._given_up = time.monotonic() - since >= GRACE
        if self._given_up:
            raise UnreadPipeError(errno.EPIPE, "its reader does not read")

    def close(self) -> None:
        """See ``io.RawIOBase``."""
        if self.closed:
            return
        super().close()
        if self._own is not None:
            os.close(self._own)
        if self._closefd:
            os.close(self._fd)


def _reopened(fd: int) -> int | None:
    """
    Open the pipe *fd* once more, non-blocking, for this writer alone; None where that is refused.

    The flag of *fd* itself would hold for every process that shares it.
    """
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None


def open_raw(fd: int) -> IO[bytes]:
    """*fd* as a file of bytes that is written to without a buffer."""
    if is_pipe(fd):
        return cast("IO[bytes]", PipeWriter(fd))
    return os.fdopen(fd, "wb", buffering=0)


def open_binary(fd: int) -> IO[bytes]:
    """*fd* as a file of bytes that is written to."""
    return io.BufferedWriter(PipeWriter(fd)) if is_pipe(fd) else os.fdopen(fd, "wb")


def open_text(fd: int, *, closefd: bool = True) -> TextIO:
    """*fd* as a file of UTF-8 text that is written to."""
    if not is_pipe(fd):
        return open(fd, "w", encoding="utf-8", closefd=closefd)
    return io.TextIOWrapper(io.BufferedWriter(PipeWriter(fd, closefd=closefd)), encoding="utf-8")


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """
    While the block runs, standard output and standard error are :class:`PipeWriter` if pipes.

    SIGINT raises KeyboardInterrupt as before, and what is still to be written then waits for
    :data:`GRACE` seconds at most.
    """
    set_ending(ending=False)
    before = sys.stdout, sys.stderr
    guarded = [_guarded(sys.stdout, sys.__stdout__), _guarded(sys.stderr, sys.__stderr__)]
    sys.stdout, sys.stderr = (new or old for new, old in zip(guarded, before, strict=True))
    try:
        with _interrupts():
            try:
                yield
            finally:
                for stream in guarded:
                    # Nobody reads it, or it is given up for Ctrl-C.
                    with contextlib.suppress(OSError, KeyboardInterrupt):
                        if stream:
                            stream.close()
    finally:
        sys.stdout, sys.stderr = before


def _guarded(stream: TextIO, original: TextIO | None) -> TextIO | None:
    """*stream* with a :class:`PipeWriter`; None where it is no pipe or not the process's own."""
    if stream is None or stream is not original or not is_pipe(stream.fileno()):
        return None
    stream.flush()
    raw = io.BufferedWriter(PipeWriter(stream.fileno(), closefd=False))
    at_once = isinstance(stream, io.TextIOWrapper) and (
        stream.line_buffering or stream.write_through
    )
    return io.TextIOWrapper(
        raw,
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=at_once,
        write_through=at_once and not stream.line_buffering,
    )


@contextlib.contextmanager
def _interrupts() -> Iterator[None]:
    """Note that the command is ending before KeyboardInterrupt is raised."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # the parent wants something else
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        set_ending()
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
