# SPDX-License-Identifier: Apache-2.0
"""What hits have cost, while their price is corrected."""

from __future__ import annotations

import pytest

from scope_ebpf.attach.plan import Attachment, Item, Plan
from scope_ebpf.budget.hit_costs import Bill, Prices
from scope_ebpf.kernel.bpf.stats import ProgramStats
from scope_ebpf.kernel.cost import HitCost

PLACE = Attachment("send_entry", "message", "erts_send_message", 0, 0)
PLAN = Plan((Item("send", "symbol", "erts_send_message", (PLACE,), ""),))


def test_what_was_spent_never_becomes_less():
    """
    A price that turns out lower holds from then on; what was told before stays, as a counter must.
    """
    bill = Bill()
    assert bill.total("send", 1000, 2e-6) == pytest.approx(0.002)
    assert bill.total("send", 1000, 1e-6) == pytest.approx(0.002)
    assert bill.total("send", 3000, 1e-6) == pytest.approx(0.004)


def test_the_kernel_is_believed_once_it_has_seen_enough():
    """
    A program that runs longer than the one that was measured costs that much more from then on.
    """
    prices = Prices(PLAN, HitCost(1e-6, 2e-6))
    assert prices.spent({"send_entry": 1000}) == {"send": pytest.approx(0.001)}
    prices.correct({"send_entry": ProgramStats(1000, 1000 * 1.1e-6)})
    assert prices.hit_costs() == {"send": pytest.approx(2e-6)}
    assert prices.spent({"send_entry": 1500}) == {"send": pytest.approx(0.002)}
    prices.correct({"send_entry": ProgramStats(2000, 2000 * 0.1e-6)})
    assert prices.spent_on("send", {"send_entry": 1500}) == pytest.approx(0.002)
