# SPDX-License-Identifier: Apache-2.0
"""The cost of hits so far, while the cost of one hit changes."""

from __future__ import annotations

import pytest

from scope_ebpf.attach.plan import Attachment, Item, Plan
from scope_ebpf.budget.hit_costs import CostLedger, HitCosts
from scope_ebpf.kernel.bpf.stats import ProgramStats
from scope_ebpf.kernel.cost import HitCost

PLACE = Attachment("send_entry", "message", "erts_send_message", 0, 0)
PLAN = Plan((Item("send", "symbol", "erts_send_message", (PLACE,), ""),))


def test_a_total_cost_never_falls():
    """
    A lower cost holds for new hits only; the total stays, as a counter must.
    """
    ledger = CostLedger()
    assert ledger.total("send", 1000, 2e-6) == pytest.approx(0.002)
    assert ledger.total("send", 1000, 1e-6) == pytest.approx(0.002)
    assert ledger.total("send", 3000, 1e-6) == pytest.approx(0.004)


def test_costs_follow_the_run_times_of_the_kernel():
    """
    A program that runs longer than the measured one costs that much more from then on.
    """
    costs = HitCosts(PLAN, HitCost(1e-6, 2e-6))
    assert costs.spent({"send_entry": 1000}) == {"send": pytest.approx(0.001)}
    costs.update({"send_entry": ProgramStats(1000, 1000 * 1.1e-6)})
    assert costs.by_event() == {"send": pytest.approx(2e-6)}
    assert costs.spent({"send_entry": 1500}) == {"send": pytest.approx(0.002)}
    costs.update({"send_entry": ProgramStats(2000, 2000 * 0.1e-6)})
    assert costs.spent_on("send", {"send_entry": 1500}) == pytest.approx(0.002)
