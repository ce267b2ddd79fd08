# SPDX-License-Identifier: Apache-2.0
"""
What the real applications have in common: a folder, a pid, a shell for Erlang expressions, an end.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import psutil
from beams_run import free_port

if TYPE_CHECKING:
    from pathlib import Path

COOKIE: Final = "planted"
#: Seconds; RabbitMQ takes eight on an idle machine.
_PATIENCE: Final = 120.0


class AppError(Exception):
    """
    An application did not do what was asked; the text has the end of its log.
    """


def free_ports(count: int) -> list[int]:
    """
    *count* different TCP ports of 127.0.0.1 on which no process listens, nor will by chance.
    """
    return [free_port() for _ in range(count)]


def write_cookie(home: Path) -> None:
    """
    Give the node whose home is *home* the cookie that :meth:`App.eval` knows.
    """
    cookie = home / ".erlang.cookie"
    cookie.write_text(COOKIE)
    cookie.chmod(0o400)


@dataclass
class App:
    """
    A running application on a BEAM.
    """

    process: subprocess.Popen[bytes]
    folder: Path
    dist_port: int
    ports: dict[str, int]
    pid: int = 0  # of its beam.smp
    helpers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def eval(self, expression: str) -> str:
        """
        What *expression*, without its last full stop, is in that VM, as Erlang prints it.
        """
        command = ["erl_call", "-address", f"127.0.0.1:{self.dist_port}", "-c", COOKIE, "-r", "-e"]
        deadline = time.monotonic() + _PATIENCE
        while True:
            done = subprocess.run(
                command, input=f"{expression}.\n", capture_output=True, text=True, check=False
            )
            # A handshake that a loaded machine makes too slow says nothing of the expression.
            refused = "failed to connect" in done.stderr + done.stdout
            if not refused or self.process.poll() is not None or time.monotonic() > deadline:
                break
        answer = done.stdout.strip()
        if done.returncode != 0 or not answer.startswith("{ok, "):
            raise AppError(f"{expression} gave {answer or done.stderr.strip()}")
        return answer.removeprefix("{ok, ").removesuffix("}")

    def wait_until(self, expression: str) -> None:
        """
        Wait until *expression* is ``true`` in that VM.
        """
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                if self.eval(expression) == "true":
                    return
            except AppError:  # the node does not listen yet
                if time.monotonic() > deadline:
                    raise
            if time.monotonic() > deadline:
                raise AppError(f"{expression} is not true after {_PATIENCE} s: {self.log()}")
            try:
                self.process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
            raise AppError(f"it ended with {self.process.returncode}: {self.log()}")

    def log(self) -> str:
        """
        The end of what it wrote on its console.
        """
        return (self.folder / "console.log").read_text(errors="replace")[-2000:]

    def stop(self) -> None:
        """
        Ask it to end, and kill it where it does not.
        """
        _end(self.process)
        for helper in self.helpers:
            helper.terminate()
            helper.wait()


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    beams = _beams(process.pid)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for beam in beams:
            with contextlib.suppress(psutil.NoSuchProcess):
                beam.send_signal(number)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            continue
        return
    process.kill()
    process.wait()


def _beams(pid: int) -> list[psutil.Process]:
    """
    The VM that *pid* is, or that it has started through su and a shell.
    """
    started = psutil.Process(pid)
    return [each for each in (started, *started.children(recursive=True)) if "beam" in each.name()]
