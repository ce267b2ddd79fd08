# SPDX-License-Identifier: Apache-2.0
"""Reads captures: the facts of the whole capture, and its records in blocks."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.capture import samples
from scope_ebpf.capture.facts import End, Head, head_of
from scope_ebpf.capture.frames import BlockKind, Frames
from scope_ebpf.capture.samples import Samples
from scope_ebpf.capture.schema import Schema
from scope_ebpf.capture.values import Value, document
from scope_ebpf.errors import CaptureError
from scope_ebpf.relations import checked_summary
from scope_ebpf.results.summary import Cost, Summary, fold

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

#: Samples of losses that are kept: one a second for twelve days.
_MOST = 1 << 20
_MAPS_HEAD = 16
_FIRST = "the first block"
#: A FIFO does not block, and no terminal becomes the controlling one.
_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@dataclass(slots=True)
class Maps:
    """The session's maps at one moment."""

    time_ns: int
    #: Hits of all hooks.
    hits: int
    #: ``events.COUNTERS``, shape ``(kinds, classes, 1)``.
    tallies: NDArray[np.void]
    #: ``events.HISTOGRAM``, shape ``(kinds, classes, 1)``.
    durations: NDArray[np.void]


@dataclass
class Contents(Samples):
    """All of a capture but its records."""

    head: Head = field(kw_only=True)
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
    #: Blocks, none of records, whose contents do not fit their kind.
    left_out: int = 0
    #: What is wrong with the first of them: block, field and cause.
    wrong: str = ""
    #: Records of kinds that this program does not know.
    unknown: dict[str, int] = field(default_factory=dict)

    def summary(self) -> Summary:
        """
        The summary that the trace gave when it ended.

        For a capture without an end, from the maps as they were written last.
        """
        head, maps, end = self.head, self.maps, self.end
        shape = (len(events.KINDS), events.CLASSES, 1)
        tallies = maps.tallies if maps else np.zeros(shape, events.COUNTERS)
        durations = maps.durations if maps else np.zeros(shape, events.HISTOGRAM)
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
        return checked_summary(summary)


class _NoBlocksError(CaptureError):
    """Not even the first block is there."""


class Capture:
    """A capture at *path*. Raises CaptureError, with the reason, for any other file."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def contents(self, room: int | None = None) -> Contents:
        """
        Read everything once, and keep what is not records.

        *room* are the bytes of memory for names and samples, if not those for one capture.
        """
        room = samples.ROOM if room is None else room
        with self._opened() as (frames, head, schema):
            contents = Contents(head=head_of(head, schema.names), room=room)
            for block in frames:
                contents.raw_bytes += len(block.payload)
                try:
                    _take(contents, schema, block.kind, block.payload)
                except CaptureError as error:
                    if block.kind == BlockKind.RECORDS:
                        frames.damage = f"{error} at byte {frames.end:,}"
                    else:
                        contents.left_out += 1
                        contents.wrong = contents.wrong or str(error)
        contents.damage, contents.file_bytes = frames.damage, frames.end
        contents.unknown = schema.unknown
        return contents

    def batches(self, at_least: int = 1) -> Iterator[NDArray[np.void]]:
        """
        The records in the order in which they were written, as ``events.RECORD``.

        Batches are whole blocks, joined until they have *at_least* records. There are
        none in a file that has just been begun.
        """
        with suppress(_NoBlocksError):
            yield from self._batches(at_least)

    def _batches(self, at_least: int) -> Iterator[NDArray[np.void]]:
        waiting: list[NDArray[np.void]] = []
        count = 0
        with self._opened() as (frames, _, schema):
            for block in frames:
                if block.kind != BlockKind.RECORDS:
                    continue
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

    @contextmanager
    def _opened(self) -> Iterator[tuple[Frames, Value, Schema]]:
        """The blocks behind the first one, that one, and the schema which is in it."""
        with self.open() as file:
            try:
                frames = Frames(file)
                head = _first(frames)
                yield frames, head, Schema(head["schema"])
            except CaptureError as error:
                raise type(error)(f"{self.path}: {error}") from None
            except OSError as error:
                raise CaptureError(f"cannot read {self.path}: {error.strerror}") from None

    def open(self) -> IO[bytes]:
        """A regular file; nothing else is opened, nor waited for."""
        try:
            self._refuse_other(self.path.stat())  # a device may do things when it is opened
            file = os.fdopen(os.open(self.path, _OPEN), "rb")
        except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
            why = error.strerror if isinstance(error, OSError) else error
            raise CaptureError(f"cannot read {self.path}: {why}") from None
        try:
            self._refuse_other(os.fstat(file.fileno()))  # it may be another one by now
        except CaptureError:
            file.close()
            raise
        return file

    def _refuse_other(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise CaptureError(f"{self.path} is no regular file, and so no capture")


def _first(frames: Frames) -> Value:
    """The first block, which is needed for all others."""
    block = next(iter(frames), None)
    if block is None:
        raise _NoBlocksError(f"nothing of it can be read: {frames.damage or 'it has no blocks'}")
    if block.kind == BlockKind.CLUSTER:
        raise CaptureError("it holds captures of several nodes, which this command does not take")
    if block.kind != BlockKind.HEAD:
        raise CaptureError("its first block is not there")
    return document(block.payload, _FIRST)


@contextmanager
def sound(*captures: Capture) -> Iterator[None]:
    """
    Turn any exception that captures cause while the block runs into a CaptureError.

    Its fields are checked where they are read; this is for errors that those checks do not foresee.
    """
    try:
        yield
    except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as error:
        paths = ", ".join(str(capture.path) for capture in captures)
        verb = "makes" if len(captures) == 1 else "make"
        raise CaptureError(f"{paths} {verb} no sense: {error!r}") from error


def _take(contents: Contents, schema: Schema, kind: int, payload: bytes) -> None:
    """Add one block; CaptureError if its contents do not fit its kind."""
    taker = _TAKERS.get(kind)
    if taker:  # else it is of a later version
        taker(contents, schema, payload)


def _take_records(contents: Contents, schema: Schema, payload: bytes) -> None:
    rows = schema.records(payload)
    if len(rows):
        first, last = int(rows["time_ns"].min()), int(rows["time_ns"].max())
        contents.first_ns = min(contents.first_ns, first) if contents.records else first
        contents.last_ns = max(contents.last_ns, last)
        contents.records += len(rows)


def _take_names(contents: Contents, _schema: Schema, payload: bytes) -> None:
    contents.take_names(document(payload, "a block of names"))


def _take_samples(contents: Contents, _schema: Schema, payload: bytes) -> None:
    contents.take_samples(document(payload, "a block of samples"))


def _take_end(contents: Contents, _schema: Schema, payload: bytes) -> None:
    contents.end = End.of(document(payload, "the last block"))


def _take_maps(contents: Contents, schema: Schema, payload: bytes) -> None:
    maps = _maps_of(payload, schema)
    contents.maps = maps
    lost = maps.tallies["lost"][:, :, 0].sum(axis=1)
    by_kind = {kind.name: int(lost[kind.id]) for kind in events.KINDS.values() if lost[kind.id]}
    if len(contents.losses) < _MOST:
        contents.losses.append((maps.time_ns, by_kind))


def _maps_of(payload: bytes, schema: Schema) -> Maps:
    kinds, classes = schema.shape
    fields = [(t, n) for t in (events.COUNTERS, events.HISTOGRAM) for n in t.names or ()]
    widths = [int(np.prod(dtype[name].shape, dtype=int)) for dtype, name in fields]
    if len(payload) != _MAPS_HEAD + 8 * kinds * classes * sum(widths):
        raise CaptureError("a block of maps has another size than its maps")
    values = np.frombuffer(payload, "<u8")
    made = [np.zeros((kinds, classes), dtype) for dtype in (events.COUNTERS, events.HISTOGRAM)]
    offset = 2
    for (dtype, name), width in zip(fields, widths, strict=True):
        target = made[0 if dtype is events.COUNTERS else 1][name]
        column = values[offset : offset + kinds * classes * width]
        target[...] = column.reshape(target.shape)
        offset += column.size
    tallies, durations = (schema.by_class(array)[:, :, np.newaxis] for array in made)
    return Maps(int(values[0]), int(values[1]), tallies, durations)


_TAKERS: dict[int, Callable[[Contents, Schema, bytes], None]] = {
    BlockKind.RECORDS: _take_records,
    BlockKind.NAMES: _take_names,
    BlockKind.SAMPLES: _take_samples,
    BlockKind.MAPS: _take_maps,
    BlockKind.END: _take_end,
}
