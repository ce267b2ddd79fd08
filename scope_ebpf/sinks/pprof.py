# SPDX-License-Identifier: Apache-2.0
"""
The format of pprof: gzipped protobuf, as its published ``profile.proto`` has it.

The messages are described here by the names and numbers of that file (package
``perftools.profiles``), as far as they are used.
"""

from __future__ import annotations

import gzip
from functools import cache
from typing import TYPE_CHECKING, Any

from scope_ebpf.sinks.protobuf import messages

if TYPE_CHECKING:
    from scope_ebpf.results.profile import Frame, Profile

_PACKAGE = "perftools.profiles"
_SCHEMA = {
    "Profile": (
        ("sample_type", 1, "*ValueType"),
        ("sample", 2, "*Sample"),
        ("mapping", 3, "*Mapping"),
        ("location", 4, "*Location"),
        ("function", 5, "*Function"),
        ("string_table", 6, "*string"),
        ("time_nanos", 9, "int64"),
        ("duration_nanos", 10, "int64"),
        ("period_type", 11, "ValueType"),
        ("period", 12, "int64"),
        ("comment", 13, "*int64"),
        ("default_sample_type", 14, "int64"),
    ),
    "ValueType": (("type", 1, "int64"), ("unit", 2, "int64")),
    "Sample": (
        ("location_id", 1, "*uint64"),
        ("value", 2, "*int64"),
        ("label", 3, "*Label"),
    ),
    "Label": (("key", 1, "int64"), ("str", 2, "int64"), ("num", 3, "int64")),
    "Mapping": (("id", 1, "uint64"), ("filename", 5, "int64"), ("has_functions", 7, "bool")),
    "Location": (
        ("id", 1, "uint64"),
        ("mapping_id", 2, "uint64"),
        ("address", 3, "uint64"),
        ("line", 4, "*Line"),
    ),
    "Line": (("function_id", 1, "uint64"), ("line", 2, "int64")),
    "Function": (
        ("id", 1, "uint64"),
        ("name", 2, "int64"),
        ("system_name", 3, "int64"),
        ("filename", 4, "int64"),
        ("start_line", 5, "int64"),
    ),
}


@cache
def message() -> Any:
    """The class of ``perftools.profiles.Profile``."""
    return messages(_PACKAGE, _SCHEMA, "proto3")["Profile"]


class _Strings(dict[str, int]):
    """A table of strings, the empty one first, as the format wants it."""

    def __init__(self) -> None:
        super().__init__({"": 0})

    def __missing__(self, text: str) -> int:
        self[text] = len(self)
        return self[text]


def pprof(profile: Profile) -> bytes:
    """
    Each stack with its number of samples and the nanoseconds that they represent.

    A sample's labels are its ``thread`` and its ``process``.
    """
    document = message()()
    strings = _Strings()
    what = "cpu" if profile.kind == "cpu" else "waiting"
    for kind, unit in (("samples", "count"), (what, "nanoseconds")):
        document.sample_type.add(type=strings[kind], unit=strings[unit])
    document.default_sample_type = strings[what]
    document.period_type.type, document.period_type.unit = strings[what], strings["nanoseconds"]
    document.period = round(1e9 / profile.hz)
    document.time_nanos = round(profile.started * 1e9)
    document.duration_nanos = round(profile.seconds * 1e9)
    document.mapping.add(id=1, filename=strings[str(profile.target["exe"])], has_functions=True)
    document.comment.append(strings[profile.title])
    _samples(document, profile, strings)
    document.string_table.extend(strings)
    packed: bytes = document.SerializeToString()
    return gzip.compress(packed, mtime=0)


def _samples(document: Any, profile: Profile, strings: _Strings) -> None:
    locations: dict[Frame, int] = {}
    functions: dict[Frame, int] = {}
    merged: dict[tuple[str, tuple[Frame, ...]], list[int]] = {}
    for sample in profile.samples:
        values = merged.setdefault((sample.thread, sample.stack), [0, 0])
        values[0] += 1
        values[1] += sample.weight_ns
    for (thread, stack), values in merged.items():
        location_ids = [
            _location(document, frame, locations, functions, strings) for frame in stack
        ]
        added = document.sample.add(location_id=location_ids[::-1], value=values)
        added.label.add(key=strings["thread"], str=strings[thread])
        added.label.add(key=strings["process"], str=strings[stack[0].name])


def _location(
    document: Any,
    frame: Frame,
    locations: dict[Frame, int],
    functions: dict[Frame, int],
    strings: _Strings,
) -> int:
    if frame not in locations:
        function = frame._replace(line=None)
        if function not in functions:
            functions[function] = len(functions) + 1
            document.function.add(
                id=functions[function],
                name=strings[frame.name],
                system_name=strings[frame.name],
                filename=strings[frame.file or ""],
            )
        locations[frame] = len(locations) + 1
        added = document.location.add(id=locations[frame], mapping_id=1)
        added.line.add(function_id=functions[function], line=frame.line or 0)
    return locations[frame]
