# SPDX-License-Identifier: Apache-2.0
"""
Memory that is read by another process: what it gives, and what becomes of one that does not answer.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
import socket
import struct
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from beams_run import PATIENCE

from scope_ebpf.beam.memory import process_memory, reader, reader_child
from scope_ebpf.beam.memory.process_memory import Memory, UnreadableMemoryError
from scope_ebpf.beam.memory.reader import Reader, Readers
from scope_ebpf.daemon.looks.hangs import MOST, PERIOD, Hangs
from scope_ebpf.daemon.looks.owners import ROOT, Owner
from scope_ebpf.errors import NoAnswerError, NoSuchProcessError, ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TEXT = bytes(range(256)) * 8192
BUFFER = ctypes.create_string_buffer(TEXT)
#: A child that says that it is there, and does with the first request what comes behind this.
BEGIN = """
import os, sys, time
channel, was = int(sys.argv[1]), 0
os.write(channel, was.to_bytes(8, "little"))
request = os.read(channel, 64)
"""
EVIL, OTHER = Owner(666, ""), Owner(1000, "")


@pytest.fixture
def readers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[[str | None], Readers]]:
    """
    Makes what reads memory from now on: our child, or one that behaves as *acts* says.
    """
    made = []
    monkeypatch.setattr(process_memory._Current, "reader", process_memory._Current.reader)

    def make(behaviour: str | None = None) -> Readers:
        child = tmp_path / "child.py"
        child.write_text(BEGIN + (behaviour or ""))
        made.append(Readers(child) if behaviour else Readers())
        process_memory.read_by(made[-1])
        return made[-1]

    yield make
    for each in made:
        each.close()
    made.clear()
    gc.collect()  # errors hold what is open


def test_it_reads_what_is_read_without_it(readers):
    """
    Words, many ranges at once, two megabytes, and memory that is not there.
    """
    readers()
    own, start = Memory(os.getpid()), ctypes.addressof(BUFFER)
    assert int.from_bytes(TEXT[8:16], "little") == own.u64(start + 8)
    assert own.read(start, len(TEXT)) == TEXT
    addresses = np.arange(start, start + 3000 * 8, 8, dtype=np.uint64)
    rows, good = own.gather(np.concatenate([addresses, np.array([8], np.uint64)]), 8)
    assert rows[:-1].tobytes() == TEXT[: 3000 * 8]
    assert [True] * 3000 + [False] == good.tolist()
    with pytest.raises(UnreadableMemoryError):
        own.u64(8)
    with pytest.raises(NoSuchProcessError):
        Memory(2**22).u64(start)


def test_one_that_hangs_is_left_behind(readers):
    """
    The reading is given up in time, and the next one is done by another.
    """
    hanging = readers("time.sleep(1000)")
    hanging.begin(0.2)
    (pid,) = hanging.pids()
    with pytest.raises(NoAnswerError, match=r"cannot be read within 0\.2 s"):
        Memory(os.getpid()).u64(ctypes.addressof(BUFFER))
    assert not hanging.pids()
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert not hanging.left()
    readers()
    assert Memory(os.getpid()).u16(ctypes.addressof(BUFFER)) == 0x100


@pytest.mark.parametrize(
    "behaviour",
    [
        "sys.exit()",
        "os.write(channel, b'?')",
        "os.write(channel, (9).to_bytes(8, 'little'))",
        "os.write(channel, (-10**6).to_bytes(8, 'little', signed=True))",
        "os.write(channel, b'8' * 64)",
    ],
)
def test_an_answer_that_is_none_is_refused(readers, behaviour: str):
    """
    One that ends, and answers that are too short, too much, no error or too long: asked twice.
    """
    wrong = readers(behaviour + "\ntime.sleep(1000)")
    with pytest.raises(ReadRefusedError, match="has ended"):
        Memory(os.getpid()).u64(ctypes.addressof(BUFFER))
    assert not wrong.pids()


def test_one_that_was_killed_is_replaced(readers):
    """
    The reading thread does not notice.
    """
    ours = readers()
    ours.begin()
    (pid,) = ours.pids()
    os.kill(pid, 9)
    assert Memory(os.getpid()).u16(ctypes.addressof(BUFFER)) == 0x100
    assert [pid] != ours.pids()


def test_one_that_does_not_start_is_refused(readers, tmp_path: Path):
    """
    A missing program ends at once.
    """
    broken = readers("")
    broken._child = tmp_path / "nothing"
    with pytest.raises(ReadRefusedError, match="does not start"):
        broken.begin()


def test_each_thread_has_its_own(readers):
    """
    So that no thread waits for another's reading; all end together.
    """
    ours = readers()
    ours.begin()
    thread = threading.Thread(target=ours.begin)
    thread.start()
    thread.join()
    assert len(set(ours.pids())) == 2
    ours.close()
    with pytest.raises(ReadRefusedError, match="any more"):
        Memory(os.getpid()).u16(ctypes.addressof(BUFFER))


def test_all_threads_are_woken_before_any_process_is_waited_for(readers, monkeypatch):
    """
    One that is blocked holds nobody up.
    """
    ours, done = readers(), []
    ours.begin()
    thread = threading.Thread(target=ours.begin)
    thread.start()
    thread.join()
    wake, end = Reader.wake, Reader.end
    monkeypatch.setattr(Reader, "wake", lambda one: done.append("wake") or wake(one))
    monkeypatch.setattr(Reader, "end", lambda one, most: done.append("end") or end(one, most))
    ours.close()
    assert ["wake", "wake", "end", "end"] == done


def test_one_that_starts_while_all_end_is_left(readers, monkeypatch):
    """
    Nobody waits for it then.
    """
    ours, made = readers(), []

    def start(*given: object) -> Reader:
        made.append(Reader(*given))
        ours.close()
        return made[-1]

    monkeypatch.setattr(reader, "Reader", start)
    with pytest.raises(ReadRefusedError, match="any more"):
        ours.begin()
    assert made[0].process.wait(PATIENCE) == -9
    assert not ours.pids()


def test_the_child_is_asked_for_as_many_ranges_as_the_kernel_takes():
    """
    What the child has room for is what a memory asks for at most.
    """
    assert reader_child.IOVECS_BYTES == process_memory.IOV_MAX * process_memory._IOVEC.itemsize


def test_an_owner_is_refused_after_three_readings_that_hang():
    """
    For an hour; the first is enough while three readers are left behind. Root and others go on.
    """
    left, now = [0], [1000.0]
    hangs = Hangs(lambda: left[0], lambda: now[0])
    hangs.add(EVIL)
    hangs.add(ROOT)
    assert not hangs.refusal(EVIL)
    left[0] = MOST
    assert "1 processes of uid 666" in hangs.refusal(EVIL)
    assert not hangs.refusal(OTHER)
    assert not hangs.refusal(ROOT)
    left[0] = 0
    for _ in range(MOST - 1):
        hangs.add(EVIL)
    assert "3 processes of uid 666" in hangs.refusal(EVIL)
    now[0] += PERIOD
    assert not hangs.refusal(EVIL)


def test_the_child_answers_with_the_bytes_that_it_read_or_the_error():
    """
    It says that it is there, reads ranges behind each other, and ends with its channel.
    """
    shared = mmap.mmap(-1, reader_child.IOVECS_BYTES + mmap.PAGESIZE)
    view = ctypes.c_char.from_buffer(shared)
    ours, its = socket.socketpair()
    child = threading.Thread(
        target=reader_child.serve, args=(its.fileno(), ctypes.addressof(view)), daemon=True
    )
    child.start()

    def asked(pid: int) -> int:
        ours.send(reader_child.REQUEST.pack(pid, 2, 12))
        return reader_child.ANSWER.unpack(ours.recv(64))[0]

    with its, ours:
        ours.settimeout(PATIENCE)
        assert reader_child.ANSWER.pack(0) == ours.recv(64)
        start = ctypes.addressof(BUFFER)
        shared[:32] = struct.pack("<4Q", start + 64, 4, start, 8)
        assert (12, -errno.ESRCH, 12) == (asked(os.getpid()), asked(2**22), asked(os.getpid()))
        assert TEXT[64:68] + TEXT[:8] == shared[reader_child.IOVECS_BYTES :][:12]
        ours.shutdown(socket.SHUT_RDWR)
        child.join(PATIENCE)
    assert not child.is_alive()
    del view
    shared.close()
