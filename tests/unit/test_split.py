# SPDX-License-Identifier: Apache-2.0
"""
What schedulers are at, from the words of planted ones.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from scope_ebpf.beam.processes.table import COLLECTING
from scope_ebpf.beam.vm import split
from scope_ebpf.beam.vm.schedulers import SLEEP_FLAGS, SLEEPING, SUSPENDED, WAITING
from scope_ebpf.beam.vm.split import STATES, Split

#: Schedulers: sleep flags, process, its state, port, native function, and what each is at.
PLANTED = [
    (0, 0x100, 0, 0, 0, "erlang"),
    (0, 0x200, COLLECTING, 0, 0, "gc"),
    (0, 0x300, 0, 0, 7, "nif"),
    (0, 0, 0, 9, 0, "port"),
    (SLEEPING | WAITING, 0, 0, 0, 0, "sleep"),
    (SUSPENDED, 0, 0, 0, 0, "sleep"),
    (WAITING, 0, 0, 0, 0, "busy_wait"),
    (0, 0, 0, 0, 0, "other"),
]
STATE = 8


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> Split:
    """
    A sampler of the planted schedulers.
    """
    flags, processes, states, ports, natives, _ = (
        np.array(one) for one in zip(*PLANTED, strict=True)
    )
    addresses = np.arange(len(PLANTED), dtype=np.uint64)
    ssi = addresses + np.uint64(0x1000)
    words = dict(zip((ssi + np.uint64(SLEEP_FLAGS)).tolist(), flags.tolist(), strict=True))
    words |= {int(p) + STATE: int(s) for p, s in zip(processes, states, strict=True)}

    def gather(wanted: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        found = np.array([words[one] for one in wanted.tolist()], np.uint32)
        return found.view(np.uint8).reshape(-1, size), np.ones(len(found), np.bool_)

    read = [one.astype(np.uint64) for one in (ssi, processes, ports, natives)]
    monkeypatch.setattr(split, "schedulers", lambda _: {"normal": addresses})
    monkeypatch.setattr(split, "fields", lambda *_: read)
    memory = SimpleNamespace(gather=gather)
    layout = SimpleNamespace(offset=lambda *_: STATE)
    return Split(SimpleNamespace(memory=memory, layout=layout))


def test_each_scheduler_is_at_one_thing(sampled: Split):
    """
    By its process, port and flags; what was taken is not counted again.
    """
    assert {} == sampled.take()
    sampled.sample()
    sampled.sample()
    found = sampled.take()
    at = [state for *_, state in PLANTED]
    assert at == [max(STATES, key=found["normal", n + 1].shares.get) for n in range(len(at))]
    assert all(one.samples == 2 and 1.0 == sum(one.shares.values()) for one in found.values())
    assert {} == sampled.take()


def test_the_error_becomes_smaller_with_the_root_of_the_samples(sampled: Split):
    """
    A share of 1 in 400 samples is off by no more than some tenths of a percent.
    """
    for _ in range(400):
        sampled.sample()
    errors = [one.error for one in sampled.take().values()]
    assert errors == pytest.approx([0.0049] * len(PLANTED))
