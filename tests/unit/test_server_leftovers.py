# SPDX-License-Identifier: Apache-2.0
"""
Messages that were moved while they waited: no window cuts them off, and no queue time is wrong.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.errors import ReadRefusedError
from scope_ebpf.results.server_events import bucket_of
from scope_ebpf.runs import moments, server_events, target_cost
from scope_ebpf.runs.loop import Stop
from scope_ebpf.runs.server_events import Counting
from scope_ebpf.runs.server_windows import Windows

if TYPE_CHECKING:
    import pytest

SHOP, CART = events.SLOT_FIRST, events.SLOT_FIRST + 1
SECOND = 1_000_000_000
ROW = np.dtype([("id", np.uint64), ("mailbox", np.int64)])


class Watch:
    """
    What hooks counted: *taken* messages of each slot after 1 ms, and entries of those that wait.
    """

    def __init__(self, taken: dict[int, int]) -> None:
        self.made = np.zeros(events.SERVER_SLOTS, events.SERVER_STATS)
        for slot, number in taken.items():
            self.made["casts"][slot] = self.made["sent_casts"][slot] = number
            self.made["queue"][slot, bucket_of(1e-3)] = number
        self.entries = np.zeros(0, events.SERVER_MESSAGE)

    def wait(self, *rows: tuple[int, int, int]) -> None:
        """
        Entries: receiver, slot, and when it was sent.
        """
        self.entries = np.zeros(len(rows), events.SERVER_MESSAGE)
        for name, values in zip(
            ("receiver", "slot", "sent_ns"), zip(*rows, strict=True), strict=True
        ):
            self.entries[name] = values

    def stats(self) -> np.ndarray:
        return self.made

    def waiting_messages(self) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(len(self.entries)), self.entries

    def forget_messages(self, addresses: np.ndarray) -> None:
        self.entries = np.delete(self.entries, addresses)

    def forget_open(self) -> None:
        self.entries = self.entries[:0]

    def open_calls(self) -> np.ndarray:
        return np.zeros(0, events.SERVER_CALL)

    given_up_calls = open_calls

    def counts(self) -> dict[str, int]:
        return {"server_send": 9, "lost": 0, "unreadable": 0}

    def edges(self) -> list[object]:
        return []

    modules = tags = dict

    def open_window(self, *_: object) -> int:
        return 0

    def close_window(self) -> int:
        return SECOND

    def is_over(self) -> bool:
        return True

    def attach(self, *, light: bool = False) -> None:
        pass

    detach = release = attach


class Planted:
    """
    A VM whose living processes have so many messages; None for one that cannot be read.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, watch: Watch) -> None:
        self.mailboxes: dict[int, int] | None = {}
        table = SimpleNamespace(at=self.at, slots_of=lambda receivers: receivers)
        target = SimpleNamespace(pid=0, binary="", flavor="jit", identity=None)
        self.viewer = SimpleNamespace(target=target, table=table)
        monkeypatch.setattr(target_cost, "cpu_seconds", lambda _: 1.0)
        monkeypatch.setattr(server_events, "server_hooks", lambda *_, **__: ([1], ""))
        monkeypatch.setattr(server_events, "server_settings", lambda _: None)
        monkeypatch.setattr(server_events, "ServerWatch", lambda *_, **__: watch)
        counters = SimpleNamespace(now=lambda: {"reductions": 7})
        monkeypatch.setattr(moments, "ReferenceCounters", lambda _: counters)

    def at(self, receivers: np.ndarray) -> SimpleNamespace:
        if self.mailboxes is None:
            raise ReadRefusedError("it is gone")
        there = [(one, self.mailboxes[one]) for one in receivers.tolist() if one in self.mailboxes]
        return SimpleNamespace(torn=0, unreadable=0, rows=np.array(there, ROW))


def begun(counting: Counting) -> Counting:
    counting._measurement = SimpleNamespace(cost=lambda *_: None)
    counting._names |= {SHOP: "shop", CART: "cart"}
    counting._began = 0
    return counting


def test_a_window_cuts_off_what_waits_and_not_what_was_moved(monkeypatch):
    """
    Of three entries of a mailbox with one message, two were moved; who ended waits for nothing.
    """
    watch = Watch({SHOP: 30, CART: 60})
    planted = Planted(monkeypatch, watch)
    windows = begun(Windows(planted.viewer, Stop(), 0.01, None))
    for window in (1, 2, 3):
        for slot, number in ((SHOP, 10), (CART, 20)):
            watch.made["casts"][slot] = watch.made["sent_casts"][slot] = number * window
        watch.wait((5, SHOP, 1), (5, SHOP, 2), (5, SHOP, 3), (7, CART, 1), (9, CART, 1))
        planted.mailboxes = {5: 1, 7: 1}
        windows._moments._observe(1.0, 9, light=False)
    cut = windows._cut[0].sum(axis=1)
    assert {SHOP: 3, CART: 3} == {slot: cut[slot] for slot in np.flatnonzero(cut).tolist()}
    windows._moments._ended = 10 * SECOND
    found = windows.result()
    # Six of 39 were moved: how long messages wait for that module is not known.
    assert found.modules["shop"].queue.quantile(0.5) is None
    assert found.modules["cart"].queue.quantile(0.5) is not None
    assert any("no queue times of 1 module:" in note for note in found.notes)


def test_light_windows_count_what_this_node_sends(monkeypatch):
    """
    Of 30 calls ten came from another node: those are scaled by the windows that saw them alone.
    """
    watch = Watch({SHOP: 0})
    windows = begun(Windows(Planted(monkeypatch, watch).viewer, Stop(), 0.01, None))
    for light in (True, True, False):
        watch.made["calls"][SHOP] += 10 if light else 20
        watch.made["remote_calls"][SHOP] += 0 if light else 10
        watch.made["infos"][SHOP] += 0 if light else 5
        windows._moments._observe(1.0, 9, light=light)
    windows._moments._ended = 30 * SECOND
    windows._cpu = SimpleNamespace(seconds=1e6)
    found = windows.result()
    shop = found.modules["shop"]
    # 30 in 3 s, of 30 s; one window says nothing of the others.
    assert (300, 300) == (shop.calls, shop.own_calls)
    assert shop.infos is None
    assert any("calls and casts of this node alone" in note for note in found.notes)
    for _ in range(2):
        watch.made["infos"][SHOP] += 5
        windows._moments._observe(1.0, 9, light=False)
    windows._moments._ended = 30 * SECOND
    shop = windows.result().modules["shop"]
    # 30 in 5 s, and 10 in 3 s.
    assert (180 + 100, 180, 15 * 10) == (shop.calls, shop.own_calls, shop.infos)


def test_mailboxes_that_cannot_be_read_leave_no_queue_time(monkeypatch):
    """
    Nothing is known of what waited then.
    """
    watch = Watch({SHOP: 30})
    planted = Planted(monkeypatch, watch)
    windows = begun(Windows(planted.viewer, Stop(), 0.01, None))
    planted.mailboxes = None
    watch.wait((5, SHOP, 1), (5, SHOP, 2))
    windows._moments._observe(1.0, 9, light=False)
    assert (0, 2) == (windows._cut[0].sum(), windows._leftovers.moved[SHOP])


def test_messages_that_were_moved_make_queue_times_unknown_where_all_are_counted(monkeypatch):
    """
    Two of 102 of a module, of which one is seen only at the end; one of 1,001 is no matter.
    """
    watch = Watch({SHOP: 100, CART: 1000})
    planted = Planted(monkeypatch, watch)
    counting = begun(Counting(planted.viewer, None, Stop()))
    monkeypatch.setattr(counting._cpu, "update", lambda: None)
    planted.mailboxes = {5: 0, 7: 0}
    watch.wait((5, SHOP, 1), (7, CART, 1), (9, CART, 1))
    counting.look(100.0)
    watch.wait((5, SHOP, SECOND // 2), (5, SHOP, SECOND - 1))
    counting.end()
    found = counting.result()
    assert [2, 1] == counting._leftovers.moved[[SHOP, CART]].tolist()
    shop, cart = (found.modules[name].as_json() for name in ("shop", "cart"))
    assert (100, 1000) == (shop["casts"]["count"], cart["casts"]["count"])
    assert shop["queue_seconds"]["p50"] is shop["queue_seconds"]["mean"] is None
    assert cart["queue_seconds"]["p50"] is not None
