# SPDX-License-Identifier: Apache-2.0
"""
Rings that hold anything: batches are taken out of them and streamed.
"""

from __future__ import annotations

import io
import json
import mmap
import os
from typing import TYPE_CHECKING

import mutation
import numpy as np
from stream_fixtures import Terms

from scope_ebpf import events
from scope_ebpf.kernel.bpf.ring import Ring
from scope_ebpf.sinks.stream import Stream

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

_SIZE = mmap.PAGESIZE
_STEP = events.RECORD.itemsize
_LENGTHS = (56, 56, 56, 56 | 1 << 30, 56 | 1 << 31, 56 | 3 << 30, 0, 55, 64, 0xFFFFFFFF)


class Rings:
    """
    One case is one ring: some good records, some of them spoilt, at any position.
    """

    def __init__(self, _folder: Path) -> None:
        # As the kernel maps it: consumer, producer, and the data twice; here only once writable.
        self._fd = os.memfd_create("ring")
        os.ftruncate(self._fd, 2 * mmap.PAGESIZE + 2 * _SIZE)
        self._map = mmap.mmap(self._fd, 2 * mmap.PAGESIZE + 2 * _SIZE)
        self._ring = Ring(self._fd, _SIZE)
        self._styles = ("jsonl", "text")

    def run(self, random: Random) -> None:
        """
        Raises RingError for records of other sizes.
        """
        start = random.choice((0, 1, 63, 64, 1 << 20, (1 << 40) + 5)) * _STEP
        count = random.randint(0, min(20, _SIZE // _STEP))
        data = b"".join(_record(random) for _ in range(count))
        offset = start % _SIZE
        for copy in (0, _SIZE):
            base = 2 * mmap.PAGESIZE + (offset + copy) % (2 * _SIZE)
            whole = data[: 2 * mmap.PAGESIZE + 2 * _SIZE - base]
            self._map[base : base + len(whole)] = whole
        self._map[0:8] = start.to_bytes(8, "little")
        self._map[mmap.PAGESIZE : mmap.PAGESIZE + 8] = (start + len(data)).to_bytes(8, "little")
        output = io.StringIO()
        stream = Stream(output, Terms(), random.choice(self._styles), _who)  # type: ignore[arg-type]
        with self._ring.batch(random.choice((None, 1, 5))) as records:
            stream.write(records)
        after = int.from_bytes(self._map[0:8], "little")
        assert start <= after <= start + len(data)
        for text in output.getvalue().splitlines():
            assert text.isprintable()
            if text.startswith("{"):
                json.loads(text)


def _record(random: Random) -> bytes:
    row = np.zeros(1, events.RECORD)
    row["ring_length"] = random.choice(_LENGTHS) if random.random() < 0.05 else 56
    row["time_ns"] = mutation.word(random)
    row["kind"] = random.randrange(len(events.KINDS))
    for name in ("class", "flags"):
        row[name] = random.choice((0, 0, 1, 2, 255))
    row["tid"] = random.getrandbits(32)
    row["process"] = mutation.word(random)
    row["body"] = [[mutation.word(random) for _ in range(4)]]
    if random.random() < 0.02:
        row["kind"] = random.getrandbits(16)
    return row.tobytes()


def _who(pids: list[int]) -> dict[int, str | None]:
    return {pid: "\x1b[2J" if pid & 1 else None for pid in pids}
