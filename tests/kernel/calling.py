# SPDX-License-Identifier: Apache-2.0
"""
The real ``scope-trace calls`` as a process of its own.

    with calling(beam.pid, "called:target/2") as run:
        beam.plant("local 23")
        assert 23 == run.stop().summary["calls"]
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import documents
from beams_run import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CALLS = (sys.executable, "-m", "scope_ebpf.cli.main", "calls")


@dataclass
class Run:
    process: subprocess.Popen[bytes]
    events: list[dict[str, Any]] = field(default_factory=list)
    pending: bytes = b""

    def wait_for(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """
        Read on until an event is *wanted*; that event.
        """
        assert self.process.stdout is not None
        deadline = time.monotonic() + PATIENCE
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while True:
                while b"\n" in self.pending:
                    line, _, self.pending = self.pending.partition(b"\n")
                    self.events.append(documents.load(line))
                    if wanted(self.events[-1]):
                        return self.events[-1]
                assert selector.select(max(0.0, deadline - time.monotonic())), self.events[-3:]
                chunk = os.read(self.process.stdout.fileno(), 1 << 16)
                assert chunk, f"it ended: {self.error()}"
                self.pending += chunk

    def stop(self, number: int = signal.SIGINT) -> Run:
        """
        End it as Ctrl-C does, and read what it said.
        """
        self.process.send_signal(number)
        return self.finish()

    def finish(self) -> Run:
        """
        Wait for its own end, and read what it said.
        """
        out, _ = self.process.communicate(timeout=PATIENCE)
        self.events += documents.load_lines(self.pending + out)
        self.pending = b""
        assert self.process.returncode == 0, self.process.returncode
        return self

    def error(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def of(self, kind: str) -> list[dict[str, Any]]:
        """
        The events of one kind.
        """
        return [event for event in self.events if event["event"] == kind]

    @property
    def summary(self) -> dict[str, Any]:
        return self.of("summary")[0]

    def counts(self) -> dict[str, int]:
        """
        Calls by function, all versions.
        """
        counts: dict[str, int] = {}
        for row in self.summary["functions"]:
            counts[row["function"]] = counts.get(row["function"], 0) + row["calls"]
        return counts


@contextmanager
def calling(pid: int, *arguments: str) -> Iterator[Run]:
    """
    A run that counts already; killed at the end of the block if it still runs.
    """
    command = [*CALLS, "--max-cost", "100%", *arguments]
    command += ["--pid", str(pid), "--duration", "0", "--format", "jsonl"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe) as process:
        try:
            assert process.stderr is not None
            said = process.stderr.readline().decode()
            assert said.startswith("watching "), said + process.stderr.read().decode()
            yield Run(process)
        finally:
            process.kill()


def refused(pid: int, *arguments: str) -> tuple[int, str]:
    """
    Exit code and message of a run that does not begin.
    """
    done = subprocess.run(
        [*CALLS, *arguments, "--pid", str(pid)], capture_output=True, text=True, timeout=PATIENCE
    )
    return done.returncode, done.stderr
