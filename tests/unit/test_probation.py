# SPDX-License-Identifier: Apache-2.0
"""
Found functions compared with the VM's counters while a run counts.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from test_budget_judge import ALL, plan

from scope_ebpf import events
from scope_ebpf.beam.hidden.resolve import Hidden
from scope_ebpf.errors import (
    NoAnswerError,
    NoSuchProcessError,
    NotPermittedError,
    ReadRefusedError,
    ScopeError,
)
from scope_ebpf.runs import probation


class Session:
    """
    A session that has counted 12 of every kind.
    """

    def __init__(self) -> None:
        self.released: list[str] = []
        tally = np.zeros((len(events.KINDS), 16, 1), [("count", "u8")])
        tally["count"][:, 0] = 12
        self.tallies = lambda: tally

    def count(self, *, on: bool) -> None:
        assert on

    def release(self, names: set[str]) -> None:
        self.released += names


@pytest.mark.parametrize(
    ("error", "compared"),
    [
        (NoSuchProcessError("process 4711 has ended"), True),
        (NoSuchProcessError("process 4711 has ended"), False),
        (NotPermittedError("no"), True),
        (NoAnswerError("late"), True),
        (ReadRefusedError("no"), True),
    ],
)
def test_a_vm_that_ends_leaves_what_was_counted(
    error: ScopeError, compared: bool, monkeypatch: pytest.MonkeyPatch
):
    """
    The last comparison counts; an event that was never compared is taken out, and nothing fails.
    """
    now = dict(ALL)

    def read() -> dict[str, int]:
        if not now:
            raise error
        return dict(now)

    counters = SimpleNamespace(names=lambda: set(ALL), now=read, schedulers=lambda: 2)
    monkeypatch.setattr(probation, "ReferenceCounters", lambda _: counters)
    monkeypatch.setattr(probation, "hidden_of", lambda _: Hidden())
    monkeypatch.setattr(probation, "prove", lambda *_: None)
    probed = probation.Probation(SimpleNamespace(binary=None), plan("spawn", "port_open"))
    session = Session()
    probed.begin(session)
    now |= {"spawned": 12, "opened": 4000}
    for second in (1.0, 2.0) if compared else ():
        probed.look(session, second)
    now.clear()
    probed.finish(session)
    expected = ["port_open"] if compared else ["port_open", "spawn"]
    assert expected == sorted(session.released)
