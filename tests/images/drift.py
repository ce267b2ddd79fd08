# SPDX-License-Identifier: Apache-2.0
"""
Releases that do not exist: the structs of one that does, with a field more or fewer somewhere.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection
    from random import Random

    from measured import Measured, Structs

#: What figures come from, and what each is the aligned size of.
ALIGNED: Final = {
    "ErtsSchedulerData": "ErtsAlignedSchedulerData",
    "ErtsRunQueue": "ErtsAlignedRunQueue",
    "DbTableCommon": None,
    "Allctr_t": None,
    "ErtsAlcFixList_t": None,
    "Process": None,
    "ErtsPTab": None,
    "IndexTable": None,
    "Atom": None,
    "RegProc": None,
    "ErtsMessage": None,
    "ErtsMonLnkNode": None,
    "ErtsPSD": None,
    "ErlNode": None,
    "DistEntry": None,
    "ranges": None,
    "BeamCodeHeader": None,
    "BeamCodeLineTab": None,
    "ErtsCodeInfo": None,
    "Module": None,
}
SHIFTS: Final = (-64, -32, -16, -8, 8, 16, 32, 64)
_WORD, _LINE = 8, 64
#: Bytes of fields that are arrays; others are taken for a word.
_ARRAYS: Final = {
    "cpool.stat.blocks_size": 12 * 8,
    "cpool.stat.no_blocks": 12 * 8,
    "sbcs.carriers": 3 * 16,
    "mbcs.carriers": 3 * 16,
    "sbcs.blocks": 12 * 48,
    "mbcs.blocks": 12 * 48,
    "procs.prio_info": 4 * 12,
}


class Drift(NamedTuple):
    """
    *by* bytes more, or fewer, before *field* of *struct*.
    """

    struct: str
    field: str
    by: int


def drifts(release: Measured) -> list[Drift]:
    """
    Every drift that a release may have.
    """
    return [
        Drift(struct, field, by)
        for struct in ALIGNED
        for field in release.structs[struct]
        for by in SHIFTS
        if _possible(release.structs[struct], field, by)
    ]


def _possible(fields: dict[str, int], field: str, by: int) -> bool:
    """
    Whether the fields before it leave so much room: only what is not known can be missing.
    """
    at = fields[field]
    if field == "sizeof" and "hfrag.mem" in fields:
        return False  # a message ends with its payload
    ends = [start + _ARRAYS.get(name, _WORD) for name, start in fields.items() if start < at]
    return by > 0 or at + by >= max(ends, default=0)


def drifted(release: Measured, drift: Drift) -> Measured:
    """
    The release as it would be; structs that contain the one that drifts are moved with it.
    """
    structs: Structs = {name: dict(fields) for name, fields in release.structs.items()}
    _move(structs, *drift)
    if drift.struct == "ErtsMonLnkNode":  # links hold one, the data of monitors and links two
        for struct, field, nodes in _NODES:
            if field in structs.get(struct, ()):
                structs[struct][field] += nodes * drift.by
    fragment, _, inner = drift.field.partition(".")
    if drift.struct == "ErtsMessage" and fragment == "hfrag":
        _move(structs, "ErlHeapFragment", inner, drift.by)
    return replace(release, structs=structs)


#: Where nodes of links and monitors lie in others: struct, field, and nodes before it.
_NODES: Final = (
    ("ErtsMonitorData", "u.target", 1),
    ("ErtsMonitorData", "ref", 2),
    ("ErtsMonitorData", "refc", 2),
    ("ErtsMonitorData", "sizeof", 2),
    ("ErtsMonitorDataHeap", "sizeof", 2),
    ("ErtsMonitorSuspend", "sizeof", 2),
    ("ErtsILink", "sizeof", 1),
    ("ErtsLinkData", "sizeof", 2),
)


def _move(structs: Structs, struct: str, field: str, by: int) -> None:
    fields = structs[struct]
    start = fields[field]
    for name, offset in fields.items():
        if offset >= start:
            fields[name] = offset + by
    if (aligned := ALIGNED.get(struct)) is not None:
        structs[aligned]["sizeof"] = -(-fields["sizeof"] // _LINE) * _LINE


def any_of(release: Measured, chance: Random, structs: Collection[str] = tuple(ALIGNED)) -> Drift:
    """
    One of them, of *structs*: each struct as often as any other.
    """
    struct = chance.choice([*structs])
    return chance.choice([one for one in drifts(release) if one.struct == struct])
