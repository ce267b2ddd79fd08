# SPDX-License-Identifier: Apache-2.0
"""
The real ``scope-trace`` as a process of its own, and what a witness sees of it from outside.

    with trace(beam.pid, "--events", "spawn") as run:
        beam.plant("spawns 23")
        assert 23 == run.stop().document["events"]["spawn"]["count"]
"""

from __future__ import annotations

import json
import os
import re
import select
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import documents
import psutil
from beams_run import PATIENCE, Beam, require

from scope_ebpf.attach.plan import EVENTS
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.kernel.attach import attacher
from scope_ebpf.planning.planner import make_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SCOPE_TRACE = (sys.executable, "-m", "scope_ebpf.cli.main")
BREAKPOINT = 0xCC


def require_root() -> None:
    """
    Skip, or fail where CI asks for it, without the privileges that BPF needs.
    """
    require(os.geteuid() == 0, "BPF programs take root")


def wait_until(holds: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """
    What *holds* returns, once it is true; fails when that takes longer than anything can.
    """
    deadline = time.monotonic() + seconds
    while not (result := holds()):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.005)
    return result


def is_full(pipe: int) -> bool:
    """
    Whether a pipe has no room for a third of a second, so that more waits behind what is in it.
    """
    room = select.poll()
    room.register(pipe, select.POLLOUT)
    if room.poll(0):
        return False
    time.sleep(0.3)
    return not room.poll(0)


def holder_of(pid: int) -> psutil.Process:
    """
    The process that holds the breakpoints of a daemon or a trace.
    """
    children = psutil.Process(pid).children()
    (holder,) = [child for child in children if attacher.__file__ in child.cmdline()]
    return holder


@dataclass(frozen=True)
class Outcome:
    """
    What a run left behind.
    """

    code: int
    output: str
    errors: str

    @cached_property
    def document(self) -> dict[str, Any]:
        """
        The document of ``--format json``.
        """
        assert self.code == 0, self.errors
        return json.loads(self.output)

    @cached_property
    def events(self) -> dict[str, Any]:
        """
        What the document says of each event.
        """
        return self.document["events"]

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """
        The events of ``--format jsonl``; every line must parse.
        """
        return [json.loads(line) for line in self.output.splitlines()]

    @property
    def complaints(self) -> list[str]:
        """
        What was said on stderr besides what it costs and that the trace begins.
        """
        usual = ("scope-trace: tracing process", "scope-trace: this takes")
        return [line for line in self.errors.splitlines() if not line.startswith(usual)]

    def reported(self, event: str) -> tuple[int, int]:
        """
        Count and losses of an event in the report that a stream leaves on stderr.
        """
        row = re.search(rf"^{event} +([\d,]+) +[\d,.]+ +([\d,]+)", self.errors, re.MULTILINE)
        assert row, self.errors
        return int(row[1].replace(",", "")), int(row[2].replace(",", ""))


class Run:
    """
    A ``scope-trace`` that runs.
    """

    def __init__(self, command: Sequence[str], output: IO[bytes] | int | None, **popen) -> None:
        self._output = tempfile.TemporaryFile() if output is None else output  # noqa: SIM115
        self._errors = b""
        self.command = command
        # A session of its own, so that no signal to the tests' terminal reaches it.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.PIPE,
            start_new_session=True,
            **popen,
        )
        self.pid = self.process.pid

    def wait_for_counting(self) -> None:
        """
        Return once the trace counts; fails with what it said if it ends instead.
        """
        deadline = time.monotonic() + PATIENCE
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stderr, selectors.EVENT_READ)
            while b"; Ctrl-C ends it\n" not in self._errors:
                assert selector.select(max(0, deadline - time.monotonic())), "no trace began"
                chunk = os.read(self.process.stderr.fileno(), 65536)
                assert chunk, f"no trace began: {self._errors.decode()}"
                self._errors += chunk

    def send(self, number: int) -> None:
        """
        Send a signal to the process that traces.
        """
        os.kill(self.pid, number)

    def so_far(self) -> bytes:
        """
        What it has written on stdout until now.
        """
        return os.pread(self._output.fileno(), 1 << 24, 0)

    def wait(self) -> Outcome:
        """
        What it left behind, once it has ended on its own.
        """
        errors = self.process.communicate(timeout=PATIENCE)[1]
        text = ""
        if not isinstance(self._output, int):
            self._output.seek(0)
            text = self._output.read().decode()
            documents.check(text)
        documents.check_outputs(self.command)
        return Outcome(self.process.returncode, text, (self._errors + errors).decode())

    def stop(self, number: int = signal.SIGINT) -> Outcome:
        """
        End it as Ctrl-C does, and take what it leaves behind.
        """
        self.send(number)
        return self.wait()

    def close(self) -> None:
        """
        Kill it, if it still runs.
        """
        with suppress(ProcessLookupError):
            if self.process.poll() is None:
                os.kill(self.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        if not isinstance(self._output, int):
            self._output.close()


@contextmanager
def starting(
    pid: int,
    *words: str,
    prefix: Sequence[str] = (),
    output: IO[bytes] | int | None = None,
    **popen,
) -> Iterator[Run]:
    """
    A ``scope-trace`` of *pid* without an end, as soon as it is a process.
    """
    words = ("--pid", str(pid), "--duration", "0", *words)
    run = Run([*prefix, *SCOPE_TRACE, *words], output, **popen)
    try:
        yield run
    finally:
        run.close()


@contextmanager
def trace(pid: int, *words: str, form: str = "json", **more) -> Iterator[Run]:
    """
    A ``scope-trace`` of *pid* without an end, counting everything whatever it costs.
    """
    streams = form == "jsonl" or "--stream" in words
    if "--budget" not in words:
        words = (*words, "--max-cost", "100%", *(() if streams else ("--exact",)))
    with starting(pid, "--format", form, *words, **more) as run:
        run.wait_for_counting()
        yield run


def scope_trace(*words: str, prefix: Sequence[str] = (), **popen) -> Outcome:
    """
    Run a command to its end.
    """
    run = Run([*prefix, *SCOPE_TRACE, *words], None, **popen)
    try:
        return run.wait()
    finally:
        run.close()


@dataclass
class Variant:
    """
    A VM and the attach variant by which its events are traced.
    """

    beam: Beam
    via: str

    def words(self, events: str) -> tuple[str, ...]:
        """
        The options of scope-trace for this variant and *events*.
        """
        return ("--via", self.via, "--events", events)

    def watch(self, events: str, *commands: str, more: tuple[str, ...] = ()) -> Outcome:
        """
        Trace *events* while the VM carries out *commands*.
        """
        with trace(self.beam.pid, *self.words(events), *more) as run:
            for command in commands:
                self.beam.plant(command)
            outcome = run.stop()
        assert outcome.complaints == []
        return outcome


def hooked_addresses(pid: int, events: Sequence[str] = EVENTS) -> dict[int, int]:
    """
    The addresses in the memory of a target that hooks may have, with the file's byte there.
    """
    target = inspect(pid)
    found = {}
    for via in ("symbol", "usdt"):
        for attachment in make_plan(target.binary, target.flavor, events, via).attachments:
            if attachment.tracepoint:
                continue
            byte = target.binary.read(attachment.address, 1)[0]
            found[target.base + attachment.address] = byte
    return found


def bytes_at(pid: int, addresses: Sequence[int]) -> dict[int, int]:
    """
    The byte that the target has at each address now.
    """
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        found = {}
        for address in addresses:
            memory.seek(address)
            found[address] = memory.read(1)[0]
        return found


def breakpoints(pid: int, addresses: dict[int, int]) -> int:
    """
    The number of *addresses* at which the target has a breakpoint.
    """
    return sum(byte == BREAKPOINT for byte in bytes_at(pid, list(addresses)).values())


#: What the kernel shows of a file descriptor: its kind, and the line with its number.
_NUMBERED = ("prog_id", "map_id", "link_id")


def bpf_numbers(pid: int) -> dict[str, set[int]]:
    """
    The numbers of the programs, maps and links that a process holds; empty if it has ended.
    """
    found: dict[str, set[int]] = {kind: set() for kind in _NUMBERED}
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
            with suppress(OSError):
                for line in entry.read_text().splitlines():
                    name, _, value = line.partition(":")
                    if name in _NUMBERED:
                        found[name].add(int(value))
    return found


def holdings(pid: int) -> dict[str, set[int]]:
    """
    The same of a process and of its children, one of which holds its links.
    """
    found = bpf_numbers(pid)
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            for kind, numbers in bpf_numbers(int(child)).items():
                found[kind] |= numbers
    return found


def held_anywhere() -> dict[str, set[int]]:
    """
    The same of all processes together.
    """
    found: dict[str, set[int]] = {kind: set() for kind in _NUMBERED}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            for kind, numbers in bpf_numbers(int(entry.name)).items():
                found[kind] |= numbers
    return found


def in_kernel() -> dict[str, set[int]]:
    """
    The numbers of all programs, maps and links that the kernel has.
    """
    kinds = zip(_NUMBERED, ("prog", "map", "link"), strict=True)
    return {kind: {entry["id"] for entry in _bpftool(what)} for kind, what in kinds}


def _bpftool(what: str) -> list[dict[str, Any]]:
    command = ["bpftool", "--json", what, "show"]
    for _ in range(10):
        # It fails when something vanishes between two of its calls.
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return json.loads(done.stdout or "[]")
    raise AssertionError(f"bpftool {what}: {done.stdout}{done.stderr}")


def left_behind(before: dict[str, set[int]]) -> dict[str, set[int]]:
    """
    The numbers that the kernel has in addition to *before* and that no process holds.
    """
    now, held = in_kernel(), held_anywhere()
    for program in _bpftool("prog"):
        if program["id"] in held["prog_id"]:
            held["map_id"] |= set(program.get("map_ids", []))
    return {kind: now[kind] - before[kind] - held[kind] for kind in now}


def nothing_left(before: dict[str, set[int]]) -> None:
    """
    Wait until the kernel has freed all that came after *before* and that no process holds.
    """
    left: dict[str, set[int]] = {}

    def nothing() -> bool:
        left.update(left_behind(before))
        return not any(left.values())

    try:
        wait_until(nothing, "the end of everything")
    except AssertionError:
        raise AssertionError(f"left behind: {left}") from None
