# SPDX-License-Identifier: Apache-2.0
"""
Pipes as outputs, with readers that read, have closed the pipe, or do nothing.
"""

from __future__ import annotations

import io
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from scope_ebpf import pipes
from scope_ebpf.pipes import PipeWriter, open_binary, open_raw, open_text, set_ending

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: More than a pipe holds.
LONG = b"x" * 999 + b"\n"
MUCH = LONG * 300


@pytest.fixture(autouse=True)
def _going_on() -> Iterator[None]:
    """
    No test leaves a command that is ending to the next.
    """
    yield
    set_ending(ending=False)


@pytest.fixture(params=["pipe", "socket", "not reopened"])
def ends(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """
    The end that is read and the one that is written to; a test may close the first.
    """
    if request.param == "socket":
        pair = socket.socketpair()
        found = [one.detach() for one in pair]
    else:
        found = list(os.pipe())
    if request.param == "not reopened":
        monkeypatch.setattr(pipes, "_reopened", lambda _fd: None)
    yield found
    for fd in found:
        os.close(fd)


def read_all(fd: int) -> tuple[threading.Thread, list[bytes]]:
    """
    A thread that reads *fd* to its end, and what it has read.
    """
    read: list[bytes] = []

    def run() -> None:
        while chunk := os.read(fd, 65536):
            read.append(chunk)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, read


def flood(output: PipeWriter) -> None:
    """
    Write without end.
    """
    while True:
        output.write(MUCH)


@pytest.mark.parametrize("ending", [False, True])
def test_a_reader_that_reads_gets_everything(ends: list[int], ending: bool):
    """
    More than the pipe holds arrives in order, whether the command is to end or not.
    """
    set_ending(ending=ending)
    thread, read = read_all(ends[0])
    with open_binary(os.dup(ends[1])) as output:
        for _ in range(5):
            output.write(MUCH)
    os.close(ends.pop())
    thread.join()
    assert b"".join(read) == MUCH * 5


def test_a_reader_that_does_not_read_is_given_up(ends: list[int], monkeypatch: pytest.MonkeyPatch):
    """
    A command that is to end waits for GRACE seconds, and then writes nothing more.
    """
    monkeypatch.setattr(pipes, "GRACE", 0.05)
    set_ending()
    with PipeWriter(os.dup(ends[1])) as output:
        with pytest.raises(BrokenPipeError, match="does not read"):
            flood(output)
        assert os.read(ends[0], 1 << 20)
        with pytest.raises(BrokenPipeError, match="does not read"):
            output.write(b"a gap would be before it")


def test_a_reader_that_has_closed_the_pipe_is_a_broken_pipe(ends: list[int]):
    """
    The error is that of a plain file.
    """
    os.close(ends.pop(0))
    with PipeWriter(os.dup(ends[0])) as output, pytest.raises(BrokenPipeError):
        output.write(b"nobody")


def test_others_who_share_a_pipe_still_wait_for_room(ends: list[int]):
    """
    The descriptor itself blocks as before, and is left open where it is not the writer's.
    """
    with PipeWriter(ends[1], closefd=False) as output:
        assert os.get_blocking(ends[1])
        assert 3 == output.write(b"abc")
    assert 3 == os.write(ends[1], b"def")
    assert b"abcdef" == os.read(ends[0], 10)


def test_what_is_no_pipe_is_a_plain_file(tmp_path: Path):
    """
    A regular file is opened as Python does.
    """
    path = tmp_path / "file"
    for function, data in ((open_text, "text"), (open_binary, b"bytes"), (open_raw, b"raw")):
        with function(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)) as output:
            assert not isinstance(getattr(output, "raw", output), PipeWriter)
            output.write(data)
        assert path.read_bytes() == (data if isinstance(data, bytes) else data.encode())
    with open_raw(os.open(path, os.O_WRONLY)) as output:
        assert isinstance(output, io.FileIO)


#: Each writes more than a pipe holds, to a reader that does not read, until a signal comes.
PROGRAMS = {
    "a run that writes to standard output": """
from scope_ebpf.runs.loop import Stop
from scope_ebpf.runs.terminal import open_output
stop = Stop()
with guarded_streams(), stop.on_signals(), open_output(None) as output:
    try:
        output.write("y" * 400_000)
        output.flush()
    except BrokenPipeError:
        sys.exit(0 if stop.reason else 3)
""",
    "a run that prints where it has stopped": """
from scope_ebpf.runs.loop import Stop
stop = Stop()
with guarded_streams():
    with stop.on_signals():
        os.write(1, b"y" * 65536)
        while not stop.reason:
            time.sleep(0.01)
    try:
        print("a report" * 9999, flush=True)
    except BrokenPipeError:
        sys.exit(0)
""",
    "a command that prints": """
with guarded_streams():
    try:
        print("y" * 400_000)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(0)
""",
}
SIGNALS = [
    ("a run that writes to standard output", signal.SIGTERM),
    ("a run that writes to standard output", signal.SIGINT),
    ("a run that writes to standard output", signal.SIGHUP),
    ("a run that prints where it has stopped", signal.SIGTERM),
    ("a command that prints", signal.SIGINT),
]


@pytest.mark.parametrize(("what", "number"), SIGNALS)
def test_a_signal_ends_a_program_whose_reader_does_not_read(what: str, number: int):
    """
    One signal is enough, though Python repeats a write that a signal has interrupted.
    """
    program = "import os, sys, time\nfrom scope_ebpf.pipes import guarded_streams\n"
    reading, writing = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", program + PROGRAMS[what]], stdout=writing)
    try:
        room = select.poll()
        room.register(writing, select.POLLOUT)
        while room.poll(0):
            assert process.poll() is None
        process.send_signal(number)
        assert 0 == process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()
        os.close(reading)
        os.close(writing)
