# SPDX-License-Identifier: Apache-2.0
"""
The process that parses: started by ``forkserver``; ``client`` asks it.

    python -I -S child.py FD PATH...

A fresh interpreter without an environment, or a command's fork from before it read anything. It
has no files of its parent, and reads no file that another user chose. For each file it forks a
child, which is handed the file's descriptor, gives up everything else (``confine``) and answers
until its channel ends or is idle.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import time
from contextlib import contextmanager, suppress
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

if __name__ == "__main__":
    gc.disable()  # until all is imported, which stays
    sys.path += sys.argv[2:]

from scope_ebpf.sandbox import decoder, limits, wire
from scope_ebpf.sandbox.confine import confine
from scope_ebpf.sandbox.questions import Questions

#: Share of the time that passes that is given as CPU time; and the least that is given, seconds.
_SHARE, _LEAST = 0.2, 0.01


class Clock:
    """CPU time that answers may take: *seconds* at once, and a fifth of the time that passes."""

    def __init__(self, seconds: float) -> None:
        self._most = self._left = seconds
        self._when = time.monotonic()

    def start(self) -> None:
        """Start the clock; SIGPROF kills the process when its time is used up."""
        earned = (time.monotonic() - self._when) * _SHARE
        self._left = min(self._most, self._left + earned)
        signal.setitimer(signal.ITIMER_PROF, max(self._left, _LEAST))

    def stop(self) -> None:
        """Stop the clock."""
        self._left, _ = signal.setitimer(signal.ITIMER_PROF, 0)
        self._when = time.monotonic()


def answer(channel: socket.socket) -> None:
    """Be the confined child: answer until *channel* ends or is idle."""
    channel.settimeout(limits.IDLE)
    (seconds, name), fds = wire.receive_with_fds(channel)
    confine()
    questions = Questions(name, fds[0])
    clock = Clock(seconds)
    while True:
        try:
            (question, arguments), fds = wire.receive_with_fds(channel)
        except EOFError:
            return
        except TimeoutError:
            os._exit(limits.IDLE_STATUS)
        clock.start()
        found = _answered(questions, question, arguments, fds)
        clock.stop()
        wire.send(channel, found)


def _answered(
    questions: Questions, question: str, arguments: list[object], fds: list[int]
) -> tuple[str, object]:
    try:
        return "answer", questions.ask(question, arguments, fds)
    except limits.LimitError as error:
        return "limit", str(error)
    except (MemoryError, RecursionError):
        return "limit", f"it takes more than {limits.MEMORY >> 20} MB to parse"
    except Exception as error:  # noqa: BLE001 - what a library raises for a hostile file is anything
        return "unreadable", str(error)[:200] or type(error).__name__
    finally:
        for fd in fds:
            os.close(fd)


class Children:
    """
    Forked children, by numbers that, unlike pids, are not used again.

    Ended ones are recorded at once; none is left as a zombie.
    """

    def __init__(self) -> None:
        self._numbers = count(1)
        self._running: dict[int, int] = {}
        self._ended: dict[int, int] = {}
        signal.signal(signal.SIGCHLD, self._reap)

    def fork(self, control: socket.socket, fd: int) -> tuple[int, int]:
        """Fork one that serves the channel *fd*; return its number and its pid."""
        with _no_child_ends():
            pid = os.fork()
            if pid == 0:
                _become_child(control, fd)
            number = next(self._numbers)
            self._running[number] = pid
        return number, pid

    def end(self, number: int) -> int:
        """End one, if it has not ended; return its status as of waitpid."""
        with _no_child_ends():
            pid = self._running.get(number)
            if pid is not None:
                # Without CAP_KILL it ends by itself, when it is idle.
                with suppress(PermissionError):
                    os.kill(pid, signal.SIGKILL)
                    self._ended[number] = os.waitpid(pid, 0)[1]
                    del self._running[number]
            return self._ended.pop(number, 0)

    def _reap(self, *_: object) -> None:
        for number, pid in list(self._running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._ended[number] = status
                del self._running[number]


@contextmanager
def _no_child_ends() -> Iterator[None]:
    """Block SIGCHLD: no child is recorded as ended within the block."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def serve(control: socket.socket) -> None:
    """Fork a child for each channel that comes, and answer how each ended."""
    children = Children()
    gc.freeze()  # children share what is here now
    gc.enable()
    while True:
        try:
            ended, fds = wire.receive_with_fds(control)
        except EOFError:
            return
        if ended > 0:
            wire.send(control, (children.end(ended), 0))
            continue
        _import(ended)
        wire.send(control, children.fork(control, fds[0]))
        os.close(fds[0])


def _import(kind: int) -> None:
    """Load what children of this *kind* need, while files may still be read."""
    if kind not in (limits.READS, limits.DIGESTS):
        decoder.load()
    if kind == limits.UNWINDS:
        import scope_ebpf.sandbox.frames
    if kind in (limits.SEEKS, limits.DIGESTS):
        import hashlib  # noqa: F401 - slow; only where functions are hidden
    if kind == limits.SEEKS:
        import scope_ebpf.sandbox.learning
        import scope_ebpf.sandbox.matching  # noqa: F401


def _become_child(control: socket.socket, fd: int) -> None:
    """Never returns."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        control.close()
        answer(socket.socket(fileno=fd))
    except BaseException:  # noqa: BLE001 - the end of the channel reports it
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)  # nothing is left to be done, and tearing everything down takes time
