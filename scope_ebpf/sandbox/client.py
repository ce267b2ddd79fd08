# SPDX-License-Identifier: Apache-2.0
"""
Asking a confined process about a file.

One forkserver for all files (``forkserver.py``), started at the first of them or by :func:`ahead`;
for each file a child that ends with :meth:`Parser.close`, when it answers wrongly or late, or when
no question came for a while. In the last case the next question starts another.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from scope_ebpf.errors import RefusedFileError
from scope_ebpf.sandbox import answers, limits, wire
from scope_ebpf.sandbox.forkserver import Server, cpu_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

#: Seconds until an answer is late: a child that computes is ended by its own clock before.
PATIENCE = 5.0
#: Characters of a name or a reason in a message.
_TEXT = 300


class UnreadableFileError(Exception):
    """The file is not of a format that the child reads, and why."""


class _Usual:
    kind = limits.ANY


class _Used(threading.local):
    seconds = 0.0


class _Spent:
    """CPU time of all children, and of forkservers that have ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds = self._most = 0.0

    def add(self, seconds: float) -> None:
        with self._lock:
            self._seconds += seconds

    def with_running(self, seconds: float) -> float:
        """That and the *seconds* of running children; never less than before, as a counter is."""
        with self._lock:
            self._most = max(self._most, self._seconds + seconds)
            return self._most


_used, _spent = _Used(), _Spent()
_server = Server(_spent.add)


def cpu_seconds() -> float:
    """CPU seconds that children took for questions of this thread."""
    return _used.seconds


def all_cpu_seconds() -> float:
    """CPU seconds of all children, and of the forkserver; for any thread."""
    return _spent.with_running(_server.cpu_seconds())


def server_pid() -> int | None:
    """Pid of the forkserver, if it runs; for any thread."""
    return _server.pid()


def ahead(kind: int = limits.ANY, *, fork: bool = False) -> None:
    """
    Start the forkserver now, so that it is ready when everything else is loaded.

    Files get children of *kind*, ``limits.ANY`` or ``limits.READS``, until they need another.
    *fork* as of :meth:`Server.start`.
    """
    _Usual.kind = kind
    _server.start(fork=fork)


def stop() -> None:
    """End the forkserver, and with it all its children; the next file starts another."""
    _server.stop()


class Parser:
    """
    The child that has file *fd* open, which stays the caller's; *name* is for messages.

    *seconds* of CPU time may be used at once; an answer is late after *patience* seconds. May be
    shared by threads. Once a file was refused, every further question is refused with the same
    reason; *refused* is called for the first. *kind* is what the child can do: by default what
    :func:`ahead` was given.
    """

    def __init__(
        self,
        fd: int,
        name: str,
        seconds: float,
        refused: Callable[[RefusedFileError], None] = lambda _: None,
        *,
        patience: float | None = None,
        kind: int | None = None,
    ) -> None:
        self._fd, self._name, self._seconds, self._refused = fd, name, seconds, refused
        self._patience = PATIENCE if patience is None else patience
        self._lock = threading.Lock()
        self._channel: socket.socket | None = None
        #: The server's number for the child, and its process number.
        self._number, self._pid = 0, 0
        #: Its CPU time that has been charged.
        self._charged = 0.0
        self._reason: RefusedFileError | None = None
        self._kind = _Usual.kind if kind is None else kind
        #: Debug files that the child was given, with the checks that they must pass.
        self._debug: list[tuple[list[object], int]] = []

    @classmethod
    def of_nothing(cls, name: str, seconds: float) -> Parser:
        """A child without any file, for data that comes with the questions."""
        fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        parser = cls(fd, name, seconds, kind=limits.ANY)
        weakref.finalize(parser, os.close, parser._fd)
        return parser

    def ask(self, question: str, checked: Callable[[Any], T], *arguments: object) -> T:
        """
        The answer to *question*, as *checked* makes it of plain data; it raises ValueError.

        Raises UnreadableFileError, and RefusedFileError that names the limit.
        """
        with self._lock:
            if question == "frames" and self._kind != limits.UNWINDS:
                self._become(limits.UNWINDS)
            elif question in limits.SOUGHT and self._kind == limits.DIGESTS:
                self._become(limits.SEEKS)
            elif question in limits.DECODED and self._kind == limits.READS:
                self._become(limits.ANY)
            return self._asked(question, checked, list(arguments), ())

    def _become(self, kind: int) -> None:
        """Let the next child be of *kind*."""
        self._end()
        self._kind = kind

    def add_debug(self, fd: int, crc: int | None, build_id: str | None) -> bool:
        """
        Offer another file's symbols, by its CRC or else its build id; whether they were taken.

        *fd* becomes the parser's. Before any symbol is asked for.
        """
        taken, arguments = False, list[object]((crc, build_id))
        with self._lock:
            try:
                taken = self._asked("debug", answers.flag, arguments, (fd,))
            finally:
                if not taken:
                    os.close(fd)
            if taken:
                self._debug.append((arguments, fd))
        return taken

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._end()
            for _, fd in self._debug:
                os.close(fd)
            self._debug.clear()

    def _asked(
        self,
        question: str,
        checked: Callable[[Any], T],
        arguments: list[object],
        fds: tuple[int, ...],
    ) -> T:
        if self._reason:
            raise self._reason
        kind, found = self._exchange(question, arguments, fds)
        if kind == "unreadable" and isinstance(found, str):
            raise UnreadableFileError(f"{self._name}: {found[:_TEXT]}")
        if kind == "limit" and isinstance(found, str):
            raise self._refuse(found[:_TEXT])
        try:
            if kind == "answer":
                return checked(found)
        except (ValueError, TypeError, KeyError) as error:
            raise self._refuse("its parser gave an answer that is none") from error
        raise self._refuse("its parser gave an answer that is none")

    def _exchange(
        self, question: str, arguments: list[object], fds: tuple[int, ...]
    ) -> tuple[object, object]:
        """One question and its answer; asked once more if the child had ended when idle."""
        for again in (True, False):
            try:
                channel = self._running()
                channel.settimeout(self._patience)
                wire.send(channel, (question, arguments), fds)
                answer = wire.receive(channel, time.monotonic() + self._patience)
                self._charge(cpu_of(self._pid))
            except TimeoutError:
                raise self._refuse(
                    f"no answer within {self._patience:g} s", lasting=False
                ) from None
            except (OSError, EOFError):
                status = self._end()
                if again and status is not None and _left(status):
                    continue
                raise self._refuse(*self._why(status)) from None
            except wire.NonsenseError as error:
                raise self._refuse(f"its parser sent {error}") from error
            if isinstance(answer, list) and len(answer) == 2:
                return answer[0], answer[1]
            break
        return None, None

    def _running(self) -> socket.socket:
        if self._channel is None:
            ours, its = socket.socketpair()
            with its:
                self._number, self._pid = _server.fork(its, self._kind)
                self._charged = 0.0
            self._channel = ours
            ours.settimeout(PATIENCE)
            wire.send(ours, (self._seconds, self._name[:_TEXT]), (self._fd,))
            for arguments, fd in self._debug:
                wire.send(ours, ("debug", arguments), (fd,))
                wire.receive(ours, time.monotonic() + PATIENCE)
        return self._channel

    def _why(self, status: int | None) -> tuple[str, bool]:
        if status is None:
            return "its parser has ended", False
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if number in (signal.SIGPROF, signal.SIGXCPU):
            return f"more than {self._seconds:g} s of CPU time to parse", True
        if number == signal.SIGKILL:
            return "its parser was killed", False
        return f"its parser ended with status {status:#x}", True

    def _refuse(self, why: str, lasting: bool = True) -> RefusedFileError:
        self._end()
        self._reason = RefusedFileError(f"{self._name} is refused: {why}", lasting=lasting)
        self._refused(self._reason)
        return self._reason

    def _end(self) -> int | None:
        if self._channel is None:
            return None
        used = cpu_of(self._pid)
        self._channel.close()
        self._channel = None
        status = _server.end(self._number)
        if status is None or not _left(status):  # an idle one has done nothing since
            self._charge(used)
        return status

    def _charge(self, used: float | None) -> None:
        """Charge the CPU time that the child has *used* since the last call; all if unknown."""
        used = self._charged + self._seconds if used is None else used
        more = max(0.0, used - self._charged)
        _used.seconds += more
        _spent.add(more)
        self._charged = used


def _left(status: int) -> bool:
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) == limits.IDLE_STATUS
