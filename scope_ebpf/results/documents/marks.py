# SPDX-License-Identifier: Apache-2.0
"""The document of ``marks``."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from scope_ebpf.results.documents.servers import ServerCost
from scope_ebpf.results.documents.vms import Target


class MarkedCode(TypedDict):
    """The marked code that the VM has loaded."""

    modules: int
    #: With a marker at their entry.
    functions: int
    #: Of all modules; both, with a comma between, where they differ.
    profile: str


class MarkDurations(TypedDict):
    """Durations of calls in seconds; null where they are not known."""

    mean: float | None
    p50: float | None
    p99: float | None
    #: The longest duration that could be measured; null where there is no such bound.
    reach: float | None


_Class = TypedDict("_Class", {"class": Literal["callback", "function"]})


class MarkedFunction(_Class):
    """The calls of one marked function."""

    module: str
    function: str
    arity: int
    calls: int
    #: A second.
    rate: float
    #: The standard error of both, as a part of them; 0 where everything was counted.
    error_ratio: float
    #: Calls that an exception or the end of the process ended; null where that cannot be seen.
    failures: int | None
    #: Calls that were under way at the end; null where only moments were seen.
    running: int | None
    #: Calls whose end was seen, whose durations are given.
    timed: int
    duration_seconds: MarkDurations | None
    #: Messages of a callback by their first atom; "" for those without. Null where some of them
    #: found no room.
    tags: dict[str, int] | None
    #: What a callback returned, the same.
    returned: dict[str, int] | None


class MarksDocument(TypedDict):
    """Calls of marked functions."""

    schema: Literal[1]
    target: Target
    duration_seconds: float
    marked: MarkedCode
    #: The part of the time in which calls were counted.
    sampling_ratio: float
    functions: list[MarkedFunction]
    #: Calls of functions that found no room of their own: counted together.
    others: int
    #: Hits of markers of functions that were not watched.
    other_hits: int
    #: Functions that cannot be distinguished, because their ids are the same; they are left out.
    collided: list[str]
    #: What found no room in the hooks' maps, or could not be read.
    lost: int
    cost: ServerCost
    #: What a reader of the figures should know.
    notes: list[str]
