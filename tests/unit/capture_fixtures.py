# SPDX-License-Identifier: Apache-2.0
"""
Captures made by hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from stream_fixtures import UNKNOWN, record

from scope_ebpf import events
from scope_ebpf.attach.plan import Attachment, Item, Plan
from scope_ebpf.beam.memory.terms import PidCodec, PortCodec
from scope_ebpf.beam.processes.labels import Label
from scope_ebpf.capture.facts import Clocks, End, Head
from scope_ebpf.capture.store import FileStore
from scope_ebpf.capture.writer import Names, Writer
from scope_ebpf.results.summary import Cost

if TYPE_CHECKING:
    from pathlib import Path

TARGET = {
    "pid": 4711,
    "exe": "/opt/beam.smp",
    "node": "shop@host",
    "otp_release": "25",
    "erts_version": "13.1.5",
    "flavor": "jit",
    "schedulers": 2,
}
#: The monotonic clock is a second behind the one since boot, and shows 10 s at 22:13:20 UTC.
CLOCKS = Clocks(10 * 10**9, 1_700_000_000 * 10**9, 11 * 10**9)
SECOND = 10**9
ATOM = 77 << 6 | 0x0B
SCHEDULERS = {101: ("normal", 1), 102: ("normal", 2)}


def pid(number: int) -> int:
    """
    The term of <0.NUMBER.0> in OTP 25.
    """
    return number << 32 | number << 4 | 3


def plan() -> Plan:
    """
    Everything is seen, but for one event that cannot be.
    """
    attachment = Attachment("spawn_entry", "process", "erl_create_process", 0x123, 0x400123)
    items = [Item(name, "symbol", "erl_create_process", (attachment,), "") for name in events.KINDS]
    items[-1] = Item(items[-1].event, "unavailable", "", (), "the reason")
    return Plan(tuple(items))


def head(**more) -> Head:
    """
    What holds for a capture of a VM of OTP 25.
    """
    facts = {"target": TARGET, "host": {}, "clocks": CLOCKS, "plan": plan()}
    return Head(**facts | {"pids": PidCodec(), "ports": PortCodec(), "notes": ("a note",)} | more)


def maps(**counts: int) -> tuple[np.ndarray, np.ndarray]:
    """
    The maps of a session that counted so many events of the first class of each kind.
    """
    tallies = np.zeros((len(events.KINDS), events.CLASSES, 2), events.COUNTERS)
    durations = np.zeros((len(events.KINDS), events.CLASSES, 2), events.HISTOGRAM)
    for name, count in counts.items():
        tallies[events.KINDS[name].id, 0, 1]["count"] = count
        tallies[events.KINDS[name].id, 0, 0]["lost"] = 1
    gc = events.KINDS["gc"]
    tallies[gc.id, gc.classes.index("major"), 0]["count"] += 3
    durations[gc.id, gc.classes.index("major"), 0]["slots"][10] = 3
    durations[gc.id, gc.classes.index("major"), 1]["total_ns"] = 4_000
    return tallies, durations


END = End(2.5, "interrupted", Cost(1234, 0.5, 0.25), ("a note", "another"))


def story() -> np.ndarray:
    """
    Process 1 runs on scheduler 1, sends to process 2 and itself, and waits; 2 runs on scheduler 2,
    takes what it was sent, collects, and can go on.
    """
    at = 10 * SECOND
    one, two = ({"process": pid(n), "tid": 100 + n} for n in (1, 2))
    out = {"class": "out", "reductions": 23}
    enters = {"class": "in", "duration_ns": UNKNOWN, "reductions": UNKNOWN, "runnable": UNKNOWN}
    return np.concatenate(
        [
            record("schedule", time_ns=at + 1000, **one, **enters),
            record("send", time_ns=at + 2000, **one, receiver=pid(2), message=0xA0),
            record("send", time_ns=at + 2100, **one, receiver=pid(1), message=0xB0),
            record("receive", time_ns=at + 2200, **one, message=0xB0, sender=pid(1)),
            record("schedule", time_ns=at + 3000, **one, **out, duration_ns=2000, runnable=0),
            record("schedule", time_ns=at + 2500, **two, **enters),
            record("receive", time_ns=at + 2600, **two, message=0xA0, sender=pid(1)),
            record("receive", time_ns=at + 2700, **two, message=0xC0, sender=pid(9)),
            record(
                "gc",
                time_ns=at + 3100,
                **two,
                duration_ns=200,
                reclaimed=5,
                live=7,
                **{"class": "major"},
            ),
            record("schedule", time_ns=at + 3500, **two, **out, duration_ns=1000, runnable=1),
            record("exit", time_ns=at + 3600, **two, reason=ATOM, **{"class": "normal"}),
        ]
    )


def write(
    path: Path,
    *batches: np.ndarray,
    end: End | None = END,
    facts: Head | None = None,
    addresses: dict[int, str] | None = None,
    marked: dict[int, str] | None = None,
) -> None:
    """
    Write a capture of some batches of records.
    """
    store, names = FileStore(path.open("wb", buffering=0)), Names()
    writer = Writer(store, names)
    writer.head(facts or head())
    names.process(pid(1), Label("<0.1.0>", "planted_main"))
    names.atom(ATOM, "normal")
    for address, text in (addresses or {}).items():
        names.address(address, text)
    for number, text in (marked or {}).items():
        names.marked(number, text)
    for batch in batches or (story(),):
        writer.records(batch)
    writer.samples(
        {
            "threads": [[tid, *role] for tid, role in SCHEDULERS.items()],
            "run_queues": [[10 * SECOND + 500, [3, 0, 0, 0]]],
            "mailboxes": [[10 * SECOND + 600, [[pid(2), 23]]]],
        }
    )
    writer.maps(11 * SECOND, 99, *maps(spawn=23))
    if end:
        writer.end(end)
    store.close()
