# SPDX-License-Identifier: Apache-2.0
"""
The links of a VM at one moment, as plain data.

The JSON of :meth:`Links.as_json` is a contract; fields are added, never renamed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:
    from scope_ebpf.results.documents.links import LinkRow, LinksDocument
    from scope_ebpf.results.documents.vms import Target

#: Senders of one link that are named.
MOST_NAMED = 100


class Pair(NamedTuple):
    """A figure of each direction."""

    received: float
    sent: float

    def as_json(self) -> dict[str, float]:
        """The two fields, rates with one decimal."""
        return {"in": _short(self.received), "out": _short(self.sent)}


def _short(number: float) -> float:
    return number if isinstance(number, int) else round(number, 1)


@dataclass(frozen=True, slots=True)
class Sender:
    """A process that waits for a link, for *seconds* at least."""

    process: str
    name: str | None
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The fields of one sender."""
        return {"process": self.process, "name": self.name, "seconds": round(self.seconds, 3)}


@dataclass(frozen=True, slots=True)
class Row:
    """One link; None for what is not known. The fields are those of LinkRow."""

    peer: str
    state: str
    kind: str | None
    carrier: str | None
    tls: bool | None
    creation: int | None
    octets: Pair | None
    packets: Pair
    octet_rate: Pair | None
    packet_rate: Pair | None
    queued: int
    queued_rate: float | None
    driver_queued: int | None
    busy: bool
    full_seconds: float | None
    silent_seconds: float | None
    ticks_missed: int | None
    ticks_limit: int | None
    suspended_total: int | None
    suspended: tuple[Sender, ...]
    #: The fields of LinkSocket.
    tcp: dict[str, Any] | None

    def as_json(self) -> LinkRow:
        """The fields of one link."""
        row: dict[str, Any] = {
            "peer": self.peer,
            "state": self.state,
            "type": self.kind,
            "carrier": self.carrier,
            "tls": self.tls,
            "creation": self.creation,
            "bytes": self.octets and self.octets.as_json(),
            "packets": self.packets.as_json(),
            "bytes_per_second": self.octet_rate and self.octet_rate.as_json(),
            "packets_per_second": self.packet_rate and self.packet_rate.as_json(),
            "queued_bytes": self.queued,
            "queued_bytes_per_second": _rounded(self.queued_rate, 1),
            "driver_queued_bytes": self.driver_queued,
            "busy": self.busy,
            "full_seconds": _rounded(self.full_seconds, 3),
            "silent_seconds": _rounded(self.silent_seconds, 3),
            "ticks_missed": self.ticks_missed,
            "ticks_limit": self.ticks_limit,
            "suspended_total": self.suspended_total,
            "suspended": [one.as_json() for one in self.suspended],
            "tcp": self.tcp,
        }
        return cast("LinkRow", row)


def _rounded(number: float | None, digits: int) -> float | None:
    return None if number is None else round(number, digits)


@dataclass(slots=True)
class Links:
    """All links of a VM, the fullest first."""

    target: Target
    #: Seconds between the two looks that rates are of.
    interval: float | None
    rows: list[Row]
    refused: dict[str, str] = field(default_factory=dict)
    cpu_seconds: float = 0.0

    def as_json(self) -> LinksDocument:
        """The document of ``links --format json``."""
        return {
            "schema": 1,
            "target": self.target,
            "interval_seconds": _rounded(self.interval, 3),
            "links": [one.as_json() for one in self.rows],
            "refused": self.refused,
            "cost": {"own_cpu_seconds": round(self.cpu_seconds, 3), "hooks": 0},
        }
