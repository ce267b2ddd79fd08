# SPDX-License-Identifier: Apache-2.0
"""
Captures of two nodes with planted calls from one to the other, and clocks that differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from capture_fixtures import END, SECOND, TARGET, head, pid

from scope_ebpf import events
from scope_ebpf.beam.processes.labels import Label
from scope_ebpf.capture.facts import Clocks
from scope_ebpf.capture.reader import Capture
from scope_ebpf.capture.store import FileStore
from scope_ebpf.capture.writer import Names, Writer

if TYPE_CHECKING:
    from pathlib import Path

US = 1000
#: When each moment of a call is, behind its beginning: sent, out, in, taken, and the same back.
MOMENTS = (0, 10, 60, 100, 300, 310, 380, 400)
#: Between two calls.
EVERY = 1000 * US
#: The clock of b is so far ahead.
AHEAD = 250_000_000
_A, _B, _SERVER = (number << 6 | 0x0B for number in (101, 102, 103))
_CALL, _REPLY = (form << 56 for form in (events.FORM_CALL, events.FORM_REPLY))
_OUT = events.KINDS["dist_out"].classes
_REMOTE = events.KINDS["send"].classes.index("remote")


def planted(folder: Path, count: int) -> list[Capture]:
    """
    The captures of a@one and b@two: *count* calls of <0.1.0> on a to planted_server on b.

    Of each call all is seen, and it takes as long as MOMENTS say.
    """
    nodes: dict[str, list[np.ndarray]] = {"a@one": [], "b@two": []}
    for number in range(count):
        times = [20 * SECOND + number * EVERY + moment * US for moment in MOMENTS]
        _call(nodes, 7000 + number, times, number)
    return [_capture(folder, name, records) for name, records in nodes.items()]


def _call(
    nodes: dict[str, list[np.ndarray]], reference: int, times: list[int], number: int
) -> None:
    a, b = nodes.values()
    sent, out, came, taken, replied, back, home, ended = times
    remote = {"class": _REMOTE}
    a.append(_record("send", sent, process=pid(1), form=_CALL | reference, **remote))
    reference_word = events.REMOTE_REF << 62 | reference
    name = events.REMOTE_NAME << 62 | _SERVER >> 6
    for part, (operation, cls, receiver) in enumerate(
        ((19, "monitor", reference_word), (6, "message", name))
    ):
        packet = {"number": 2 * number + part + 1, "check": 2 * number + part + 1, "size": 100}
        a.append(
            _record(
                "dist_out",
                out - 1 + part,
                process=1,
                flags=events.FLAG_TEXT_PID,
                peer=_B,
                receiver=receiver,
                operation=operation,
                **packet,
                **{"class": _OUT.index(cls)},
            )
        )
        b.append(_record("dist_in", came - 1 + part, peer=_A, **packet))
    b.append(
        _record("receive", taken, process=pid(2), sender=_A, message=9, form=_CALL | reference)
    )
    b.append(_record("send", replied, process=pid(2), form=_REPLY | reference, **remote))
    packet = {"number": number + 1, "check": 1_000_000 + number, "size": 50}
    b.append(
        _record(
            "dist_out",
            back,
            process=2,
            flags=events.FLAG_TEXT_PID,
            peer=_A,
            operation=33,
            receiver=reference_word,
            **packet,
            **{"class": _OUT.index("message")},
        )
    )
    a.append(_record("dist_in", home, peer=_B, **packet))
    a.append(
        _record("receive", ended, process=pid(1), sender=_B, message=8, form=_REPLY | reference)
    )


def _record(kind: str, time: int, **fields: int) -> np.ndarray:
    made = np.zeros(1, events.RECORDS[kind])
    made["kind"], made["time_ns"] = events.KINDS[kind].id, time
    for name, value in fields.items():
        made[name] = value
    return made.view(events.RECORD)


def _capture(folder: Path, name: str, records: list[np.ndarray]) -> Capture:
    path = folder / f"{name[0]}.scope"
    store, names = FileStore(path.open("wb", buffering=0)), Names()
    for term, text in ((_A, "a@one"), (_B, "b@two"), (_SERVER, "planted_server")):
        names.atom(term, text)
    names.process(pid(1), Label("<0.1.0>", "planted_main"))
    names.process(pid(2), Label("<0.2.0>", "planted_server"))
    writer = Writer(store, names)
    moved = AHEAD if name == "b@two" else 0
    clocks = Clocks(10 * SECOND, 1_700_000_000 * SECOND + moved, 11 * SECOND)
    host = {"name": name.partition("@")[2]}
    writer.head(head(target=TARGET | {"node": name}, clocks=clocks, host=host))
    writer.records(np.concatenate(records))
    writer.end(END)
    store.close()
    return Capture(path)
