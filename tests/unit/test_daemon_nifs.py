# SPDX-License-Identifier: Apache-2.0
"""
Native functions under few names: nothing that was counted is lost, and nothing ever shrinks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scope_ebpf.beam.vm.threads import TaskFaults
from scope_ebpf.budget.estimate import share_error
from scope_ebpf.daemon.readings import nifs
from scope_ebpf.daemon.readings.nifs import NAMES, OTHER, Nifs
from scope_ebpf.daemon.readings.threads import Faults
from scope_ebpf.errors import ReadRefusedError
from scope_ebpf.kernel.observers.thread_watch import Mfa

if TYPE_CHECKING:
    from collections.abc import Mapping


class Texts:
    """
    Atoms whose text is their number; that of 99 cannot be read.
    """

    def __init__(self, _target: object) -> None:
        pass

    def text(self, term: int) -> str:
        if term == 99:
            raise ReadRefusedError("gone")
        return f"a{term}"


@pytest.fixture(autouse=True)
def texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nifs, "Atoms", Texts)


def updated(names: Nifs, found: Mapping[int, tuple[int, int]]):
    return names.update({Mfa(module, 1, 2): counts for module, counts in found.items()})


def test_a_function_that_was_found_often_has_a_name():
    """
    Ten samples give it one, with what was found in that look; a single sample is other.
    """
    seen = updated(Nifs(None, 0.01), {5: (20, 3), 6: (1, 0)})
    assert {"a5:a1/2": (0.2, 3), OTHER: (0.01, 0)} == {k: tuple(v) for k, v in seen.items()}


def test_what_cannot_be_named_is_other():
    """
    An atom that cannot be read leaves its function among the others.
    """
    assert list(updated(Nifs(None, 1.0), {99: (50, 1)})) == [OTHER]


@given(st.lists(st.dictionaries(st.integers(0, 9), st.integers(0, 40)), max_size=8))
def test_names_are_bounded_and_figures_only_grow(looks):
    """
    However many functions are found, in whatever order: few names, all samples, no step back.
    """
    names, totals = Nifs(None, 1.0), {}
    before: dict[str, float] = {}
    for look in looks:
        for module, more in look.items():
            totals[module] = totals.get(module, 0) + more
        seen = updated(names, {module: (count, 0) for module, count in totals.items()})
        assert len(seen) <= NAMES + 1
        assert sum(one.seconds for one in seen.values()) == pytest.approx(sum(totals.values()))
        assert all(seen[name].seconds >= value for name, value in before.items())
        before = {name: one.seconds for name, one in seen.items()}


def test_page_faults_stay_when_a_thread_ends():
    """
    A scheduler's faults are its type's; the rest of the process is other; none is ever less.
    """
    faults = Faults()
    faults.add([TaskFaults(7, "normal", 1, 100, 1), TaskFaults(0, None, 0, 150, 2)])
    accounting = faults.add([TaskFaults(8, "normal", 1, 30, 0), TaskFaults(0, None, 0, 190, 2)])
    assert accounting.counts[0] == 1
    assert (accounting.minor[0], accounting.minor[-1]) == (130, 60)
    assert (accounting.major[0], accounting.major[-1]) == (1, 1)


def test_a_share_of_few_samples_is_hardly_known():
    """
    Without samples anything may be; a share of none of a hundred may still be some hundredths.
    """
    assert share_error(0, 0) == 1.0
    assert 0.02 < share_error(0, 100) < 0.06
    assert share_error(5_000, 10_000) == pytest.approx(0.0098, abs=0.0005)
