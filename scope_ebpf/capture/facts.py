# SPDX-License-Identifier: Apache-2.0
"""What a capture says beside its records, as JSON: target, clocks, plan, and how it ended."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

from scope_ebpf.beam.terms import PidCodec, PortCodec, Shuffle
from scope_ebpf.errors import CaptureError
from scope_ebpf.plan import Attachment, Item, Plan
from scope_ebpf.summary import Cost


@dataclass(frozen=True, slots=True)
class Clocks:
    """The same moment on three clocks, ns."""

    monotonic: int
    realtime: int
    boottime: int

    @classmethod
    def now(cls) -> Clocks:
        """Read them one after the other: within a microsecond on most machines."""
        return cls(time.monotonic_ns(), time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME))

    @property
    def to_wall(self) -> int:
        """What to add to a record's time to have the time of day, ns."""
        return self.realtime - self.monotonic

    @property
    def to_boot(self) -> int:
        """What to add to a record's time to have the time since boot, ns."""
        return self.boottime - self.monotonic


@dataclass(frozen=True)
class Head:
    """Everything that holds for the whole capture. *target* is ``Target.as_json()``."""

    target: dict[str, Any]
    host: dict[str, Any]
    clocks: Clocks
    plan: Plan
    pids: PidCodec
    ports: PortCodec
    notes: tuple[str, ...] = ()
    #: Records before this one were dropped by a flight recorder.
    flight: bool = False


@dataclass(frozen=True, slots=True)
class End:
    """What is known when a trace is over; :attr:`cost` is None where it was not measured."""

    duration_seconds: float
    stopped_because: str
    cost: Cost
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """As the last block has it."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, document: Any) -> End:
        """The other way round; CaptureError for what is none."""
        try:
            cost = document["cost"]
            return cls(
                float(document["duration_seconds"]),
                str(document["stopped_because"]),
                Cost(int(cost["hits"]), cost["cpu_seconds"], cost["share_of_target"]),
                tuple(map(str, document["notes"])),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CaptureError(f"its end cannot be read: {error!r}") from None


def plan_as_json(plan: Plan) -> list[dict[str, Any]]:
    """Each event, how it is seen or why not, and where its hooks were."""
    return [
        {
            "event": item.event,
            "via": item.via,
            "hook": item.hook,
            "reason": item.reason,
            "attachments": [
                {name: getattr(place, name) for name in _PLACE} for place in item.attachments
            ],
        }
        for item in plan.items
    ]


_PLACE = ("program", "family", "name", "offset", "address", "returns", "semaphore", "tracepoint")


def plan_of(document: Any) -> Plan:
    """The other way round: the same plan without the arguments of USDT sites."""
    return Plan(
        tuple(
            Item(
                str(item["event"]),
                item["via"],
                str(item["hook"]),
                tuple(Attachment(**{n: place[n] for n in _PLACE}) for place in item["attachments"]),
                str(item["reason"]),
            )
            for item in document
        )
    )


def head_as_json(head: Head, schema: dict[str, Any]) -> dict[str, Any]:
    """The first block."""
    return {
        "schema": schema,
        "target": head.target,
        "host": head.host,
        "clocks": dataclasses.asdict(head.clocks),
        "plan": plan_as_json(head.plan),
        "pids": _codec_as_json(head.pids),
        "ports": _codec_as_json(head.ports),
        "notes": list(head.notes),
        "flight": head.flight,
    }


def head_of(document: Any) -> Head:
    """The other way round; CaptureError for what is none."""
    try:
        return Head(
            target={"node": None} | dict(document["target"]),
            host=dict(document["host"]),
            clocks=Clocks(**{name: int(value) for name, value in document["clocks"].items()}),
            plan=plan_of(document["plan"]),
            pids=PidCodec(_shuffle_of(document["pids"])),
            ports=PortCodec(_shuffle_of(document["ports"])),
            notes=tuple(map(str, document["notes"])),
            flight=bool(document["flight"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CaptureError(f"its first block cannot be read: {error!r}") from None


def _codec_as_json(codec: PidCodec | PortCodec) -> dict[str, int] | None:
    return dataclasses.asdict(codec.shuffle) if codec.shuffle else None


def _shuffle_of(document: Any) -> Shuffle | None:
    if document is None:
        return None
    return Shuffle(**{name: int(value) & 0xFFFFFFFFFFFFFFFF for name, value in document.items()})
