# SPDX-License-Identifier: Apache-2.0
"""
Reads the profiles that ``scope-trace profile -o`` wrote, and others of those formats.

A file may be a stranger's: only a regular one is opened, bytes are bounded before and after
decompression, frames and stacks are counted before they are built, and every value is checked where
it is read.
"""

from __future__ import annotations

import io
import json
import os
import re
import stat
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scope_ebpf.errors import CaptureError
from scope_ebpf.results.profile import Frame
from scope_ebpf.results.profile_diff import Recorded, Weighted
from scope_ebpf.sinks.plain import plain, spelled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

#: Bytes of a file, and of what is decompressed from it.
_MOST_BYTES = 64 << 20
#: Frames of one stack that are read: what is deeper was not sampled by us.
_MOST_FRAMES = 8192
#: Nanoseconds.
_MOST_WEIGHT = 1 << 63
#: Frames of all stacks together.
_MOST_ALL = 1 << 25
#: Stacks, equal ones too: a larger number takes minutes to read.
_MOST_STACKS = 1 << 22
#: Stacks that differ, and frames that do.
_MOST_DIFFERENT = 1 << 20
#: Samples of a profile: 1,000 CPUs have so many in four months at 99 Hz.
_MOST_SAMPLES = 1 << 40
#: Python's numbers beyond that have equal hashes.
_MOST_LINE = 1 << 60
_TOO_MANY = "it has too many frames"
_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_GZIP = 31
#: Nanoseconds in one unit; weights without a unit are compared as they are.
_UNITS = {"nanoseconds": 1.0, "microseconds": 1e3, "milliseconds": 1e6, "seconds": 1e9, "none": 1.0}

_ARITY = re.compile(r"\d{1,3}")
_ENDED = re.compile(r"(?<=\S) \(ended[^()]*\)$")
_LINE = re.compile(r" \(([^()]+):(\d{1,9})\)$")
_EMBEDDED = re.compile(rb'<script id="profile"[^<>]*>([A-Za-z0-9+/=]*)</script>')
_KERNEL = "_[k]"


def read(path: str) -> Recorded:
    """
    The profile in *path*, by its ending.

    CaptureError with the reason for a file that cannot be read or is not one of these formats.
    """
    reader = next((reader for end, reader in READERS.items() if path.endswith(end)), None)
    if reader is None:
        raise CaptureError(f"{path}: its ending names no format; there are {', '.join(READERS)}")
    content = _content(path)
    try:
        found = reader(content)
    except CaptureError as error:
        raise CaptureError(f"{path}: {error}") from None
    except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError, RecursionError) as e:
        raise CaptureError(f"{path} is not a profile of that format: {e!r}") from e
    if not found.stacks:
        raise CaptureError(f"{path} has no samples: the VM was idle, or the file is of no profile")
    return found._replace(name=found.name or Path(path).name)


def _content(path: str) -> bytes:
    """The bytes of a regular file; nothing else is opened, nor waited for."""
    try:
        _require_regular(os.stat(path))  # noqa: PTH116 - a device may do things when it is opened
        with os.fdopen(os.open(path, _OPEN), "rb") as file:
            _require_regular(os.fstat(file.fileno()))
            content = file.read(_MOST_BYTES + 1)
    except CaptureError as error:
        raise CaptureError(f"{path} {error}") from None
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        why = error.strerror if isinstance(error, OSError) else error
        raise CaptureError(f"cannot read {path}: {why}") from None
    if len(content) > _MOST_BYTES:
        raise CaptureError(f"{path} is larger than {_MOST_BYTES >> 20} MiB: profile for less time")
    return content


def _require_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise CaptureError("is no regular file, and so no profile")


def _inflated(content: bytes) -> bytes:
    inflater = zlib.decompressobj(_GZIP)
    try:
        made = inflater.decompress(content, _MOST_BYTES + 1)
    except zlib.error as error:
        raise CaptureError(f"it is not gzipped data: {error}") from None
    if len(made) > _MOST_BYTES or inflater.unconsumed_tail:
        raise CaptureError(f"it is larger than {_MOST_BYTES >> 20} MiB when it is decompressed")
    if not inflater.eof:
        raise CaptureError("its compressed data are cut off")
    return made


def _speedscope(content: bytes) -> Recorded:
    document = json.loads(content)
    profiles, active = document["profiles"], document.get("activeProfileIndex") or 0
    profile = profiles[active]
    if profile["type"] != "sampled" or profile["unit"] not in _UNITS:
        raise CaptureError("it has no samples of time")
    unit = _UNITS[profile["unit"]]
    stacks = _Stacks()
    frames = [
        stacks.frame(f["name"], f.get("file"), f.get("line")) for f in document["shared"]["frames"]
    ]
    for numbers, weight in zip(profile["samples"], profile["weights"], strict=True):
        if any(type(number) is not int or number < 0 for number in numbers):
            raise CaptureError("a sample has a frame that is no number")
        stacks.add(len(numbers), (frames[number] for number in numbers), weight * unit, 1)
    name = document.get("name")
    return stacks.recorded(plain(name) if isinstance(name, str) else "")


def _html(content: bytes) -> Recorded:
    import base64

    found = _EMBEDDED.search(content)
    if found is None:
        raise CaptureError("no profile of ours is in the page")
    return _speedscope(_inflated(base64.b64decode(found[1], validate=True)))


def _folded(content: bytes) -> Recorded:
    stacks = _Stacks()
    for row in io.BytesIO(content):
        line = row.removesuffix(b"\n").decode("utf-8", "replace")
        if not line:
            continue
        stack, _, value = line.rpartition(" ")
        if not re.fullmatch(r"[0-9]{1,18}", value):
            raise CaptureError("a line does not end with one number")
        frames = (stacks.folded(text) for text in _split(stack))
        stacks.add(stack.count(";") + 1, frames, int(value) * 1e3, None)
    return stacks.recorded("")


def _split(stack: str) -> Iterator[str]:
    """The frames of a collapsed stack; nothing is split before the first is asked for."""
    yield from stack.split(";")


def _pprof(content: bytes) -> Recorded:
    from google.protobuf.message import DecodeError

    from scope_ebpf.sinks.pprof import message

    document = message()()
    try:
        document.ParseFromString(_inflated(content))
    except DecodeError as error:
        raise CaptureError(f"it is not pprof's message: {error}") from None
    tables = document.location, document.function, document.string_table
    if max(map(len, tables)) > _MOST_DIFFERENT:
        raise CaptureError(_TOO_MANY)
    text = list(document.string_table)
    units = [(text[kind.type], text[kind.unit]) for kind in document.sample_type]
    time = next((n for n, (_, unit) in enumerate(units) if unit in _UNITS), None)
    count = next((n for n, (_, unit) in enumerate(units) if unit == "count"), None)
    if time is None:
        raise CaptureError("it has no samples of time")
    stacks = _Stacks()
    locations = _locations(document, text, stacks)
    for sample in document.sample:
        ids = sample.location_id
        depth = len(ids)
        if depth <= _MOST_FRAMES:
            depth = sum(len(locations[number]) for number in ids)
        frames = (f for number in reversed(ids) for f in reversed(locations[number]))
        samples = None if count is None else int(sample.value[count])
        stacks.add(depth, frames, sample.value[time] * _UNITS[units[time][1]], samples)
    return stacks.recorded(plain(text[document.comment[0]]) if document.comment else "")


def _locations(document: Any, text: list[str], stacks: _Stacks) -> dict[int, list[Frame]]:
    """The frames of each location of a pprof message, the innermost first, by its number."""
    functions = {f.id: (text[f.name], text[f.filename] or None) for f in document.function}
    found: dict[int, list[Frame]] = {}
    lines = 0
    for each in document.location:
        lines += len(each.line)
        if len(each.line) > _MOST_FRAMES or lines > _MOST_DIFFERENT:
            raise CaptureError(_TOO_MANY)
        found[each.id] = [
            stacks.frame(*functions[n.function_id], n.line or None) for n in each.line
        ]
    return found


class _Stacks:
    """Checks stacks, merges equal ones, and gives each frame the kind that its name shows."""

    def __init__(self) -> None:
        #: The time, ns, and the number of samples of each stack.
        self._found: dict[tuple[Frame, ...], tuple[float, int | None]] = {}
        self._known: dict[Frame, Frame] = {}
        self._stacks = self._frames = self._samples = 0
        self._squares = 0.0

    def frame(self, name: str, file: str | None, line: int | None) -> Frame:
        """A frame that is not the outermost one; the same object for equal ones."""
        if not isinstance(name, str) or not isinstance(file, str | None):
            raise CaptureError("a name is no text")
        if not isinstance(line, int | None) or abs(line or 0) >= _MOST_LINE:
            raise CaptureError("a line is no number")
        kind = "native"
        if file == "[kernel]":
            kind = "kernel"
        elif _is_erlang(name):
            kind = "erlang"
        elif name.startswith("[") and not file:
            kind = "wait"
        return self._one(Frame(spelled(name), kind, file, line))

    def folded(self, text: str) -> Frame:
        """A frame of collapsed stacks: a name, and how other tools mark the kernel's."""
        if text.endswith(_KERNEL):
            return self.frame(text.removesuffix(_KERNEL), "[kernel]", None)
        found = _LINE.search(text)
        if found is None:
            return self.frame(text, None, None)
        return self.frame(text[: found.start()], found[1], int(found[2]))

    def add(self, depth: int, frames: Iterable[Frame], weight: float, samples: int | None) -> None:
        """
        Add a stack of *depth* *frames*, from the outermost on; CaptureError if it makes no sense.

        *frames* are not asked for before their number is known to be small.
        """
        self._stacks += 1
        self._frames += depth
        self._samples += samples or 0
        if not 0 < depth <= _MOST_FRAMES or self._frames > _MOST_ALL:
            raise CaptureError("it has a stack of no frames, or too many frames")
        if not 0 <= weight <= _MOST_WEIGHT or (samples is not None and samples < 0):
            raise CaptureError("it has a weight or a number of samples that is none")
        if self._stacks > _MOST_STACKS:
            raise CaptureError(f"it has more than {_MOST_STACKS:,} stacks")
        if self._samples > _MOST_SAMPLES:
            raise CaptureError(f"it has more than {_MOST_SAMPLES:,} samples")
        outermost, *rest = frames
        # Whether one had a name by the time that it was looked up is chance.
        name = _ENDED.sub("", outermost.name)
        if weight:
            self._merge((self._one(Frame(name, "process")), *rest), weight, samples)

    def recorded(self, name: str) -> Recorded:
        """The profile of that name with all stacks."""
        stacks = [Weighted(stack, *both) for stack, both in self._found.items()]
        return Recorded(name, stacks, self._squares)

    def _merge(self, stack: tuple[Frame, ...], weight: float, samples: int | None) -> None:
        before = self._found.get(stack, (0, None if samples is None else 0))
        number = None if samples is None else (before[1] or 0) + samples
        self._found[stack] = before[0] + weight, number
        if samples:
            self._squares += weight * weight / samples
        if len(self._found) > _MOST_DIFFERENT:
            raise CaptureError(f"it has more than {_MOST_DIFFERENT:,} different stacks")

    def _one(self, frame: Frame) -> Frame:
        if len(self._known) > _MOST_DIFFERENT:
            raise CaptureError(_TOO_MANY)
        return self._known.setdefault(frame, frame)


def _is_erlang(name: str) -> bool:
    """Whether it is M:F/A, or as Elixir writes it."""
    function, _, arity = name.rpartition("/")
    return (":" in function or "." in function) and _ARITY.fullmatch(arity) is not None


#: By the ending of a file's name.
READERS: dict[str, Callable[[bytes], Recorded]] = {
    ".json": _speedscope,
    ".html": _html,
    ".pb.gz": _pprof,
    ".folded": _folded,
}
