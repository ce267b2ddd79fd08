# SPDX-License-Identifier: Apache-2.0
"""
Releases that do not exist: the structs of one that does, with a field more or fewer somewhere.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
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
    before = [offset for offset in fields.values() if offset < at]
    return by > 0 or at + by >= (max(before) + _WORD if before else 0)


def drifted(release: Measured, drift: Drift) -> Measured:
    """
    The release as it would be.
    """
    structs: Structs = {name: dict(fields) for name, fields in release.structs.items()}
    fields = structs[drift.struct]
    start = fields[drift.field]
    for name, offset in fields.items():
        if offset >= start:
            fields[name] = offset + drift.by
    if (aligned := ALIGNED[drift.struct]) is not None:
        structs[aligned]["sizeof"] = -(-fields["sizeof"] // _LINE) * _LINE
    return replace(release, structs=structs)


def any_of(release: Measured, chance: Random) -> Drift:
    """
    One of them: each struct as often as any other.
    """
    struct = chance.choice([*ALIGNED])
    return chance.choice([one for one in drifts(release) if one.struct == struct])
