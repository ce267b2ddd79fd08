# SPDX-License-Identifier: Apache-2.0
"""
Facts of a capture beside its records, as JSON: target, clocks, plan, and how it ended.

Reading it back checks each field, so users of a :class:`Head` or an :class:`End` need not.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from scope_ebpf import events
from scope_ebpf.attach.plan import Attachment, Item, Plan
from scope_ebpf.beam.memory.terms import PidCodec, PortCodec, Shuffle
from scope_ebpf.capture.values import SIGNED
from scope_ebpf.results.summary import Cost

if TYPE_CHECKING:
    from collections.abc import Container

    from scope_ebpf.capture.values import Value
    from scope_ebpf.results.documents import vms

#: Upper limits: of a process (Linux's PID_MAX_LIMIT is less), of seconds, of
#: schedulers of one kind (OTP allows 1,024), and of lines in a list.
PID, SECONDS, SCHEDULERS, LINES = (1 << 31) - 1, 1e10, 4096, 4096
#: Shorter traces have no rate.
_SHORTEST = 1e-9


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
        """Difference of the time of day and a record's time, ns."""
        return self.realtime - self.monotonic

    @property
    def to_boot(self) -> int:
        """Difference of the time since boot and a record's time, ns."""
        return self.boottime - self.monotonic


@dataclass(frozen=True)
class Head:
    """Facts of the whole capture."""

    target: vms.Target
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
    """Facts of a trace that are known at its end."""

    duration_seconds: float
    stopped_because: str
    cost: Cost
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The last block."""
        return {**dataclasses.asdict(self), "cost": self.cost._asdict()}

    @classmethod
    def of(cls, document: Value) -> End:
        """The reverse; CaptureError if it is not one."""
        cost, duration = document["cost"], document["duration_seconds"]
        seconds = duration.number(SECONDS)
        return cls(
            seconds if seconds >= _SHORTEST else 0.0,
            document["stopped_because"].text(),
            Cost(
                cost["hits"].whole(),
                _number(cost["cpu_seconds"]),
                _number(cost["share_of_target"]),
            ),
            _texts(document["notes"]),
        )


def _number(value: Value) -> float | None:
    return None if value.raw is None else value.number(SECONDS)


def _texts(value: Value) -> tuple[str, ...]:
    return tuple(item.text() for item in value.items(LINES))


def plan_as_json(plan: Plan) -> list[dict[str, Any]]:
    """Each event, how it is seen or why not, and where its hooks were."""
    return [
        {
            "event": item.event,
            "via": item.via,
            "hook": item.hook,
            "reason": item.reason,
            "attachments": [
                {name: getattr(one, name) for name in _FIELDS} for one in item.attachments
            ],
        }
        for item in plan.items
    ]


_FIELDS = ("program", "family", "name", "offset", "address", "returns", "semaphore", "tracepoint")
_VIAS = ("symbol", "usdt", "tracepoint", "unavailable")


def plan_of(document: Value, known: Container[str] = ()) -> Plan:
    """
    The reverse: the same plan without the arguments of USDT sites.

    Events that this program does not know, but the capture's own schema among *known* does,
    are left out: a later version wrote them.
    """
    items = []
    for item in document.items(LINES):
        event = item["event"]
        if event.text() in events.KINDS:
            items.append(_item_of(item, event.text()))
        elif event.text() not in known:
            event.wrong("an event that the capture's schema has")
    return Plan(tuple(items))


def _item_of(item: Value, event: str) -> Item:
    # one_of() has seen that it is one of them.
    via = cast('Literal["symbol", "usdt", "tracepoint", "unavailable"]', item["via"].one_of(*_VIAS))
    attachments = tuple(_attachment_of(one) for one in item["attachments"].items(LINES))
    return Item(event, via, item["hook"].text(), attachments, item["reason"].text())


def _attachment_of(raw: Value) -> Attachment:
    program, family, name = (raw[field].text() for field in _FIELDS[:3])
    return Attachment(
        program,
        family,
        name,
        raw["offset"].whole(),
        raw["address"].whole(),
        returns=raw["returns"].truth(),
        semaphore=raw["semaphore"].whole(),
        tracepoint=raw["tracepoint"].truth(),
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


def head_of(document: Value, known: Container[str] = ()) -> Head:
    """
    The reverse; CaptureError that names the field that is wrong.

    *known* are the events that the capture's schema has.
    """
    return Head(
        target=_target_of(document["target"]),
        host={name: _host_fact(fact) for name, fact in document["host"].fields(64)},
        clocks=_clocks_of(document["clocks"]),
        plan=plan_of(document["plan"], known),
        pids=PidCodec(_shuffle_of(document["pids"])),
        ports=PortCodec(_shuffle_of(document["ports"])),
        notes=_texts(document["notes"]),
        flight=document["flight"].truth(),
    )


def _target_of(document: Value) -> vms.Target:
    node = document.get("node", None)
    flavor = cast('Literal["jit", "emu"]', document["flavor"].one_of("jit", "emu"))
    return {
        "pid": document["pid"].whole(PID),
        "exe": document["exe"].text(),
        "node": None if node.raw is None else node.text(),
        "otp_release": document["otp_release"].text(64),
        "erts_version": document["erts_version"].text(64),
        "flavor": flavor,
        "schedulers": document["schedulers"].whole(SCHEDULERS),
    }


def _host_fact(value: Value) -> str | int | None:
    if value.raw is None:
        return None
    return value.whole() if isinstance(value.raw, int) else value.text()


def _clocks_of(document: Value) -> Clocks:
    names = [field.name for field in dataclasses.fields(Clocks)]
    return Clocks(**{name: document[name].whole(SIGNED) for name in names})


def _codec_as_json(codec: PidCodec | PortCodec) -> dict[str, int] | None:
    return codec.shuffle._asdict() if codec.shuffle else None


def _shuffle_of(document: Value) -> Shuffle | None:
    if document.raw is None:
        return None
    shifts = {name: document[name].whole(63) for name in ("low_shift", "high_shift")}
    masks = {name: document[name].whole() for name in ("mask", "low_mask", "high_mask")}
    return Shuffle(**masks, **shifts)
