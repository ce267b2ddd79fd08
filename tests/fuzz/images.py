# SPDX-License-Identifier: Apache-2.0
"""
The memory of a VM that says something else at each reading.

    python tests/fuzz/images.py PID     records a live VM (as root) into image.bin, which lies here

What was read of a stock OTP 25 once is read again, by all that reads a VM, with some of the
readings changed: evil numbers, pointers that were seen before (so there are circles, and structs
of other types), noise, and nothing at all.
"""

from __future__ import annotations

import json
import lzma
import struct
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import mutation
import numpy as np

from scope_ebpf.beam.code import modules
from scope_ebpf.beam.code.functions import Functions, parse
from scope_ebpf.beam.code.modules import Modules
from scope_ebpf.beam.code.tables import CodeMap
from scope_ebpf.beam.elf.contents import Symbol, UnreadableElfError
from scope_ebpf.beam.layouts import checks
from scope_ebpf.beam.memory.process_memory import Memory
from scope_ebpf.beam.memory.search import SEARCHES
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.beam.processes.detail import FIELDS, detail
from scope_ebpf.beam.processes.sizes import memory_bytes
from scope_ebpf.beam.processes.sweep import Sweep, collected
from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.beam.vm import discover, nifs, schedulers
from scope_ebpf.beam.vm.constants import kernel_constants
from scope_ebpf.beam.vm.counters import CounterReader
from scope_ebpf.beam.vm.node import NodeName
from scope_ebpf.beam.vm.schedulers import Schedulers
from scope_ebpf.beam.vm.threads import Thread
from scope_ebpf.cli.process_text import lines
from scope_ebpf.daemon.readings import memory as readers
from scope_ebpf.daemon.readings import snapshots

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

PAGE = 4096
IMAGE = Path(__file__).with_name("image.bin")
_RANGE = np.dtype("<u8,<u8")


class Pages(Memory):
    """
    Pages that were recorded; with *behind*, a live process's, those that are missing are added.
    """

    def __init__(self, pages: dict[int, bytes], behind: Memory | None = None) -> None:
        super().__init__(0)
        self.pages = pages
        self._behind = behind

    def content(self, address: int, size: int) -> bytes:
        """
        What is there, up to the first page that is not.
        """
        made = b""
        while len(made) < size:
            number, offset = divmod(address + len(made), PAGE)
            page = self.pages.get(number) or self._record(number)
            if not page:
                break
            made += page[offset : offset + size - len(made)]
        return made

    def _record(self, number: int) -> bytes:
        if self._behind is None:
            return b""
        self.pages[number] = self._behind._read(number * PAGE, PAGE)
        return self.pages[number]

    def _read(self, address: int, size: int) -> bytes:
        self.calls += 1
        return self.content(address, size)

    def _readv(self, out: np.ndarray, remote: np.ndarray) -> int:
        self.calls += 1
        done = 0
        for base, length in remote.tolist():
            content = self.content(base, length)
            out[done : done + len(content)] = np.frombuffer(content, np.uint8)
            done += len(content)
            if len(content) < length:
                break
        return done


class Image:
    """
    Pages in the order of their addresses, for readings of many ranges at once.
    """

    def __init__(self, numbers: list[int], data: bytes) -> None:
        self._numbers = np.array(numbers, np.int64)
        self._data = np.frombuffer(data, np.uint8)
        self._there = set(numbers)

    def offsets(self, bases: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, int]:
        """
        The offsets of ranges in the data, and how many of them, from the first, are in it.
        """
        ends = bases + np.maximum(lengths, np.uint64(1)) - np.uint64(1)
        first, last = ((at // np.uint64(PAGE)).astype(np.int64) for at in (bases, ends))
        slots = np.searchsorted(self._numbers, first)
        slots[slots == len(self._numbers)] = 0
        until = np.clip(slots + (last - first), 0, len(self._numbers) - 1)
        there = (self._numbers[slots] == first) & (self._numbers[until] == last) & (ends >= bases)
        count = len(bases) if there.all() else int(there.argmin())
        return slots * PAGE + (bases % np.uint64(PAGE)).astype(np.int64), count

    def copy(self, out: np.ndarray, remote: np.ndarray) -> int:
        """
        Fill *out* with ranges; return how many bytes there are before one that is missing.
        """
        if not len(remote) or int(remote["f0"][0]) // PAGE not in self._there:
            return 0
        lengths = remote["f1"]
        offsets, count = self.offsets(remote["f0"], lengths)
        size = int(lengths[:count].sum())
        if not size:
            return 0
        if count > 1 and (lengths[:count] == lengths[0]).all():
            within = np.arange(int(lengths[0]))
            out[:size] = self._data[offsets[:count, None] + within].reshape(-1)
            return size
        done = 0
        for offset, length in zip(offsets[:count].tolist(), lengths[:count].tolist(), strict=True):
            out[done : done + length] = self._data[offset : offset + length]
            done += length
        return done


class Evil(Memory):
    """
    An image with *rate* of the ranges changed; the words of earlier ones are used again.
    """

    def __init__(self, image: Image, random: Random, rate: float) -> None:
        super().__init__(0)
        self._image = image
        self._random = random
        self._rate = rate
        self._seen = [0]

    def _read(self, address: int, size: int) -> bytes:
        out = np.empty(size, np.uint8)
        return out[: self._readv(out, np.array([(address, size)], _RANGE))].tobytes()

    def _readv(self, out: np.ndarray, remote: np.ndarray) -> int:
        self.calls += 1
        random = self._random
        ranges = remote.view(_RANGE)
        if random.random() < self._rate / 10:
            ranges = ranges[: random.randint(0, len(ranges))]  # not mapped any more
        done = self._image.copy(out, ranges)
        if done >= 8 and len(self._seen) < 5000:
            offset = random.randrange(done - 7) & ~7
            self._seen += struct.unpack_from("<Q", out[offset : offset + 8].tobytes())
        changes = min(len(ranges) * self._rate, 16)
        for _ in range(int(changes) + (random.random() < changes % 1)):
            if done:
                self._change(out, done)
        return done

    def _change(self, out: np.ndarray, size: int) -> None:
        random = self._random
        width = min(random.choice((1, 2, 4, 8, 8, 8)), size)
        word = random.choice(self._seen) if random.random() < 0.4 else mutation.word(random)
        data = (word & (1 << 8 * width) - 1).to_bytes(width, "little")
        offset = random.randrange(size - width + 1) // width * width
        many = random.choice((1, 1, 1, 4)) if offset + 4 * width <= size else 1
        out[offset : offset + many * width] = np.frombuffer(data * many, np.uint8)


class Binary:
    """
    A file of which only the *facts* are left that were asked for.
    """

    machine, relative, entry, path = "x64", True, 0, Path("/beam.smp")
    segments: tuple[()] = ()
    usdt_sites: tuple[()] = ()

    def __init__(self, facts: dict[str, Any], hidden: tuple[str, ...] = ()) -> None:
        self._facts = facts
        self._hidden = hidden

    def symbol(self, name: str) -> Symbol | None:
        found = None if name in self._hidden else self._facts["symbols"].get(name)
        return Symbol(name, *found) if found else None

    def section_address(self, name: str) -> tuple[int, int] | None:
        found = self._facts["sections"].get(name)
        return (found[0], found[1]) if found else None

    def section(self, name: str) -> bytes | None:
        return None

    def matching(self, pattern: object) -> list[Symbol]:
        return []

    def function_at(self, address: int) -> Symbol | None:
        return None

    def references(self, address: int, size: int) -> list[int]:
        found: list[int] = self._facts["references"].get(f"{address} {size}", [])
        return found

    def read(self, address: int, size: int) -> bytes:
        found = self._facts["code"].get(f"{address} {size}")
        if found is None:
            raise UnreadableElfError("not recorded")
        return bytes.fromhex(found)


def target_of(facts: dict[str, Any], memory: Memory, binary: Any) -> discover.Beam:
    """
    The target whose *memory* and *binary* these are.
    """
    return discover.Beam(
        pid=0, exe="/beam.smp", node=None, otp_release=facts["otp_release"],
        erts_version=facts["erts_version"], flavor=facts["flavor"],
        schedulers=facts["schedulers"], usdt=False, started=0.0, base=facts["base"],
        binary=binary, memory=memory,
        identity=mock.Mock(),
    )  # fmt: skip


def _top(target: discover.Beam) -> None:
    viewer = Viewer(target)
    snapshot = viewer.table.snapshot()
    rows = snapshot.rows[:: max(1, len(snapshot) // 12)]
    memory_bytes(target, rows)
    json.dumps(viewer.describe(rows), allow_nan=False)


def _sweep(target: discover.Beam) -> None:
    viewer = Viewer(target)
    sweep = Sweep(viewer.table, viewer.heaps, 0.1)
    for _ in range(2):
        sweep.turn()
        slots = np.union1d(sweep.collectors(8), sweep.top("mailbox", 8).slots)
        sweep.of(slots)
    collected(sweep.table, slots, 0.01)


def _ps(target: discover.Beam) -> None:
    viewer = Viewer(target, FIELDS)
    rows = viewer.table.snapshot().rows
    for row in range(0, len(rows), max(1, len(rows) // 3)):
        for line in lines(detail(viewer, rows[row : row + 1])):
            assert line.isprintable()


def _schedulers(target: discover.Beam) -> None:
    for item in Schedulers(target, Viewer(target)).read():
        json.dumps(item.as_json(), allow_nan=False)


def _counters(target: discover.Beam) -> None:
    reader = CounterReader(target)
    for _ in range(2):
        _ = reader.read().waiting
    reader.limits()
    reader.addresses()


def _memory(target: discover.Beam) -> None:
    readers.Readers(target).read()


def _table(target: discover.Beam) -> None:
    table = snapshots.Table(target)
    for _ in range(2):
        table.read(5, lambda _seconds: None)


def _code(target: discover.Beam) -> None:
    atoms = Atoms(target)
    functions = Functions(target, atoms, Modules(target, atoms))
    functions.find(parse("gen_server:loop/7"))
    code = CodeMap(target, atoms)
    code.refresh()
    code.attributes("gen_server")


def _start(target: discover.Beam) -> None:
    NodeName(target).read()
    kernel_constants(target)


def _searches(target: discover.Beam) -> None:
    for name in SEARCHES:
        target.find(name)


PARTS: tuple[Callable[[discover.Beam], None], ...] = (
    _top, _sweep, _ps, _schedulers, _counters, _memory, _table, _code, _start,
)  # fmt: skip


class Images:
    """
    One case is one thing that reads a VM; sometimes of a VM whose symbols are hidden.
    """

    def __init__(self, _folder: Path) -> None:
        document, data = _load()
        self._facts = document
        self._image = Image(document["pages"], data)
        self._threads = [Thread(*row) for row in document["threads"]]

    def run(self, random: Random) -> None:
        """
        Raises ReadRefusedError for what does not fit.
        """
        memory = Evil(self._image, random, random.choice((0.0005, 0.005, 0.05, 0.3)))
        hidden = tuple(SEARCHES) if random.random() < 0.003 else ()
        part = _searches if hidden else random.choice(PARTS)
        target = target_of(self._facts, memory, Binary(self._facts, hidden))
        with _surroundings(memory, self._threads, self._facts["tables"]):
            part(target)


def _surroundings(memory: Memory, found: list[Thread], tables: list[int]) -> ExitStack:
    """
    Threads and module tables as they were, and the same memory for who would open it anew.
    """
    stack = ExitStack()
    for module in (schedulers, checks):
        stack.enter_context(mock.patch.object(module, "threads", return_value=found))
    for module in (readers, snapshots):
        stack.enter_context(mock.patch.object(module, "Memory", return_value=memory))
    stack.enter_context(mock.patch.object(modules, "_find", return_value=tables))
    stack.enter_context(mock.patch.object(readers, "say"))
    stack.enter_context(mock.patch.object(nifs, "_libraries", return_value=[]))
    return stack


def _load() -> tuple[dict[str, Any], bytes]:
    raw = lzma.decompress(IMAGE.read_bytes())
    size = int.from_bytes(raw[:4], "little")
    return json.loads(raw[4 : 4 + size]), raw[4 + size :]


class _Asked:
    """
    A live VM's file that remembers what it was asked.
    """

    def __init__(self, binary: Any, facts: dict[str, Any]) -> None:
        self._binary = binary
        self._facts = facts

    def symbol(self, name: str) -> Symbol | None:
        found = self._binary.symbol(name)
        if found:
            self._facts["symbols"][name] = [found.address, found.size, found.is_function]
        return found

    def section_address(self, name: str) -> tuple[int, int] | None:
        found = self._binary.section_address(name)
        self._facts["sections"][name] = found
        return found

    def read(self, address: int, size: int) -> bytes:
        found = self._binary.read(address, size)
        self._facts["code"][f"{address} {size}"] = found.hex()
        return found

    def references(self, address: int, size: int) -> list[int]:
        found: list[int] = self._binary.references(address, size)
        self._facts["references"][f"{address} {size}"] = found
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._binary, name)


class _Hidden:
    """
    The same without the symbols that a search would be for.
    """

    def __init__(self, binary: _Asked) -> None:
        self._binary = binary

    def symbol(self, name: str) -> Symbol | None:
        return None if name in SEARCHES else self._binary.symbol(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._binary, name)


def record(pid: int) -> None:
    """
    Read everything once, and keep the pages that were read.
    """
    live = discover.inspect(pid)
    names = ("otp_release", "erts_version", "flavor", "schedulers", "base")
    facts: dict[str, Any] = {name: getattr(live, name) for name in names}
    facts |= {"symbols": {}, "sections": {}, "code": {}, "references": {}}
    found = schedulers.threads(pid)
    facts["threads"] = [[getattr(t, name) for name in Thread.__slots__] for t in found]
    memory = Pages({}, live.memory)
    asked = _Asked(live.binary, facts)
    facts["tables"] = modules._find(live)
    with _surroundings(memory, found, facts["tables"]):
        for part in PARTS:
            part(target_of(facts, memory, asked))
        _searches(target_of(facts, memory, _Hidden(asked)))
    pages = {n: page for n, page in sorted(memory.pages.items()) if len(page) == PAGE}
    document = json.dumps(facts | {"pages": list(pages)}).encode()
    data = len(document).to_bytes(4, "little") + document + b"".join(pages.values())
    IMAGE.write_bytes(lzma.compress(data, preset=9))


if __name__ == "__main__":
    record(int(sys.argv[1]))
