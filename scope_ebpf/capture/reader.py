# SPDX-License-Identifier: Apache-2.0
"""Reads captures: what holds for the whole of one, and its records in blocks."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scope_ebpf import events
from scope_ebpf.capture.facts import End, Head, head_of
from scope_ebpf.capture.frames import BlockKind, Frames
from scope_ebpf.capture.schema import Schema
from scope_ebpf.errors import CaptureError
from scope_ebpf.relations import told_apart
from scope_ebpf.summary import Cost, Summary, fold

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

#: What is kept of a capture in memory at most, of each kind: more is a file that was made up.
_MOST = 1 << 20
_MAPS_HEAD = 16


@dataclass(slots=True)
class Name:
    """Who a process was when it was looked at last."""

    name: str | None
    initial_call: str | None
    behaviour: str | None
    module: str | None

    @property
    def who(self) -> str | None:
        """The shortest that tells a person who this is."""
        return self.name or (self.module if self.behaviour else None) or self.initial_call


@dataclass(slots=True)
class Maps:
    """The session's maps at one moment, shape ``(kinds, classes, 1)``."""

    time_ns: int
    hits: int
    tallies: NDArray[np.void]
    durations: NDArray[np.void]


@dataclass
class Contents:
    """All of a capture but its records."""

    head: Head
    processes: dict[int, Name] = field(default_factory=dict)
    atoms: dict[int, str] = field(default_factory=dict)
    #: tid: role, number.
    threads: dict[int, tuple[str, int]] = field(default_factory=dict)
    #: Time in ns, and the length of each scheduler's run queue.
    run_queues: list[tuple[int, list[int]]] = field(default_factory=list)
    #: Time in ns, and messages that wait, by process.
    mailboxes: list[tuple[int, dict[int, int]]] = field(default_factory=list)
    #: Time in ns, and records lost until then, by kind.
    losses: list[tuple[int, dict[str, int]]] = field(default_factory=list)
    maps: Maps | None = None
    end: End | None = None
    #: Records, and when the first and the last were made, ns.
    records: int = 0
    first_ns: int = 0
    last_ns: int = 0
    #: Bytes of all blocks behind the first before compression, and of all in the file.
    raw_bytes: int = 0
    file_bytes: int = 0
    #: Why there is no more of it; empty for a whole one.
    damage: str = ""
    #: Whole blocks, none of records, that say something else than their kind does.
    left_out: int = 0
    #: Records of kinds that this program does not know.
    unknown: dict[str, int] = field(default_factory=dict)

    def summary(self) -> Summary:
        """
        The summary that the trace gave when it ended.

        Of a capture without an end: what the maps said when they were written last.
        """
        head, maps, end = self.head, self.maps, self.end
        shape = (len(events.KINDS), events.CLASSES, 1)
        tallies = maps.tallies if maps else np.zeros(shape, events.TALLY)
        durations = maps.durations if maps else np.zeros(shape, events.DURATIONS)
        if end is None:
            until = maps.time_ns if maps else head.clocks.monotonic
            seconds = max(0, until - head.clocks.monotonic) / 1e9
            why = f"the capture has no end: {self.damage or 'its last block is missing'}"
            notes = ("counts are those of the last whole second in the capture",)
            end = End(seconds, why, Cost(maps.hits if maps else 0, None, None), head.notes + notes)
        summary = Summary(
            target=head.target,
            duration_seconds=end.duration_seconds,
            stopped_because=end.stopped_because,
            events=fold(head.plan, tallies, durations),
            cost=end.cost,
            notes=end.notes,
        )
        return told_apart(summary)


class Capture:
    """A capture at *path*. Raises CaptureError, with the reason, where it is none."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def contents(self) -> Contents:
        """Read everything once, and keep what is not records."""
        contents: Contents | None = None
        schema: Schema | None = None
        with self._open() as file:
            frames = self._frames(file)
            for block in frames:
                if contents is None or schema is None:
                    document = _document(block.payload) if block.kind == BlockKind.HEAD else None
                    if document is None:
                        raise CaptureError(f"{self.path}: its first block is not there")
                    contents, schema = Contents(head_of(document)), Schema(document.get("schema"))
                    continue
                contents.raw_bytes += len(block.payload)
                try:
                    _take(contents, schema, block.kind, block.payload)
                except CaptureError as error:
                    if block.kind == BlockKind.RECORDS:
                        frames.damage = f"{error} at byte {frames.end:,}"
                    else:
                        contents.left_out += 1
        if contents is None or schema is None:
            why = frames.damage or "it has no blocks"
            raise CaptureError(f"{self.path} is a capture of which nothing can be read: {why}")
        contents.damage, contents.file_bytes = frames.damage, frames.end
        contents.unknown = schema.unknown
        return contents

    def batches(self, at_least: int = 1) -> Iterator[NDArray[np.void]]:
        """
        The records in the order in which they were written, as ``events.RECORD``.

        Batches are whole blocks, put together until they have *at_least* so many.
        """
        waiting: list[NDArray[np.void]] = []
        count = 0
        schema: Schema | None = None
        with self._open() as file:
            for block in self._frames(file):
                if schema is None:
                    schema = Schema((_document(block.payload) or {}).get("schema"))
                elif block.kind == BlockKind.RECORDS:
                    try:
                        rows = schema.records(block.payload)
                    except CaptureError:
                        break  # contents() says so
                    waiting.append(rows)
                    count += len(rows)
                    if count >= at_least:
                        yield np.concatenate(waiting)
                        waiting, count = [], 0
        if count:
            yield np.concatenate(waiting)

    def _open(self) -> Any:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise CaptureError(f"cannot read {self.path}: {error.strerror}") from None

    def _frames(self, file: Any) -> Frames:
        try:
            return Frames(file)
        except CaptureError as error:
            raise CaptureError(f"{self.path}: {error}") from None
        except OSError as error:
            raise CaptureError(f"cannot read {self.path}: {error.strerror}") from None


def _document(payload: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _take(contents: Contents, schema: Schema, kind: int, payload: bytes) -> None:
    """Take one block up; CaptureError if it is not what its kind says."""
    if kind == BlockKind.RECORDS:
        rows = schema.records(payload)
        if len(rows):
            first, last = int(rows["time_ns"].min()), int(rows["time_ns"].max())
            contents.first_ns = min(contents.first_ns, first) if contents.records else first
            contents.last_ns = max(contents.last_ns, last)
            contents.records += len(rows)
        return
    if kind == BlockKind.MAPS:
        _take_maps(contents, schema, payload)
        return
    if kind not in (BlockKind.NAMES, BlockKind.SAMPLES, BlockKind.END):
        return  # of a later version
    document = _document(payload)
    if document is None:
        raise CaptureError("a block is no JSON object")
    try:
        if kind == BlockKind.END:
            contents.end = End.of(document)
        elif kind == BlockKind.NAMES:
            _take_names(contents, document)
        else:
            _take_samples(contents, document)
    except (TypeError, ValueError, KeyError) as error:
        raise CaptureError(f"a block cannot be read: {error!r}") from None


def _take_names(contents: Contents, document: dict[str, Any]) -> None:
    for term, parts in document.get("processes", ()):
        if len(contents.processes) < _MOST:
            name, call, behaviour, module = (None if p is None else str(p) for p in parts)
            contents.processes[int(term)] = Name(name, call, behaviour, module)
    for term, text in document.get("atoms", ()):
        if len(contents.atoms) < _MOST:
            contents.atoms[int(term)] = str(text)


def _take_samples(contents: Contents, document: dict[str, Any]) -> None:
    for tid, role, number in document.get("threads", ()):
        if len(contents.threads) < _MOST:
            contents.threads[int(tid)] = (str(role), int(number))
    if len(contents.run_queues) < _MOST:
        for time_ns, lengths in document.get("run_queues", ()):
            contents.run_queues.append((int(time_ns), [int(n) for n in lengths]))
    if len(contents.mailboxes) < _MOST:
        for time_ns, pairs in document.get("mailboxes", ()):
            found = {int(term): int(messages) for term, messages in pairs}
            contents.mailboxes.append((int(time_ns), found))


def _take_maps(contents: Contents, schema: Schema, payload: bytes) -> None:
    maps = _maps_of(payload, schema)
    contents.maps = maps
    lost = maps.tallies["lost"][:, :, 0].sum(axis=1)
    by_kind = {kind.name: int(lost[kind.id]) for kind in events.KINDS.values() if lost[kind.id]}
    if len(contents.losses) < _MOST:
        contents.losses.append((maps.time_ns, by_kind))


def _maps_of(payload: bytes, schema: Schema) -> Maps:
    kinds, classes = schema.shape
    fields = [(t, n) for t in (events.TALLY, events.DURATIONS) for n in t.names or ()]
    widths = [int(np.prod(dtype[name].shape, dtype=int)) for dtype, name in fields]
    if len(payload) != _MAPS_HEAD + 8 * kinds * classes * sum(widths):
        raise CaptureError("a block of maps has another size than its maps")
    values = np.frombuffer(payload, "<u8")
    made = [np.zeros((kinds, classes), dtype) for dtype in (events.TALLY, events.DURATIONS)]
    offset = 2
    for (dtype, name), width in zip(fields, widths, strict=True):
        target = made[0 if dtype is events.TALLY else 1][name]
        column = values[offset : offset + kinds * classes * width]
        target[...] = column.reshape(target.shape)
        offset += column.size
    tallies, durations = (schema.by_class(array)[:, :, np.newaxis] for array in made)
    return Maps(int(values[0]), int(values[1]), tallies, durations)
