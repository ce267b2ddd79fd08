# SPDX-License-Identifier: Apache-2.0
"""
What is said of schedulers in states that no VM is asked to be in for a test.
"""

from __future__ import annotations

from scope_ebpf.beam.vm.nifs import NativeFunction
from scope_ebpf.beam.vm.schedulers import Queue, Scheduler
from scope_ebpf.beam.vm.threads import Thread
from scope_ebpf.cli.trouble import STUCK, Health, crowded, stuck, suspended

NIF = NativeFunction("/lib/block.so", "block:all/0", "block_all")


def scheduler(number: int, role: str = "normal", *, waits: int = 0, **about) -> Scheduler:
    """
    One that runs a process, unless *about* says something else.
    """
    queue = Queue({"normal": waits}, 0, 0, 0) if role == "normal" or number == 1 else None
    fields = {"doing": "running", "process": f"<0.{number}.0>", "function": "a:b/1"}
    return Scheduler(Thread(number, role, number, "R", 0.0, 0), queue=queue, **fields | about)


def test_who_just_began_is_not_stuck():
    """
    Every scheduler in a native function for a moment is nothing; for longer, nothing else runs.
    """
    found = [scheduler(1, nif=NIF, waits=2), scheduler(2, nif=NIF, waits=1)]
    assert stuck(found, lambda _: STUCK / 2) is None
    assert stuck(found, lambda item: 7.0 * item.thread.number) == (
        "Every scheduler is in a native function of /lib/block.so: nothing runs for 7.0 s or "
        "longer, and 3 wait."
    )


def test_a_port_that_is_busy_is_not_stuck_and_neither_is_who_has_nothing_to_do():
    """
    A port is on its scheduler at each look, for one task after the other.
    """
    port = scheduler(1, process=None, function=None, port="#Port<0.5>")
    idle = scheduler(2, doing="sleeping", process=None)
    assert stuck([port, idle], lambda _: 60.0) is None


def test_a_process_in_a_bif_keeps_its_scheduler_too():
    """
    No native function of a library, but the same process for seconds: which, where, who waits.
    """
    found = [scheduler(1), scheduler(2, waits=4, name="shop")]
    assert stuck(found, lambda item: 2.5 if item.thread.number == 2 else 0.0) == (
        "1 of 2 schedulers run one process and take no other, normal 2 for 2.5 s or longer: "
        "<0.2.0> shop in a:b/1; 4 wait there."
    )


def test_schedulers_that_are_away_are_no_trouble_while_nothing_waits_for_them():
    """
    A VM that was started with fewer schedulers online is as it should be.
    """
    away = scheduler(2, doing="suspended", process=None)
    assert suspended([scheduler(1), away]) is None
    assert suspended([scheduler(1, doing="sleeping", process=None, waits=1), away]) is None
    assert "1 of 2 schedulers is suspended" in (suspended([scheduler(1, waits=3), away]) or "")


def test_a_pool_with_one_that_is_free_or_without_a_queue_is_not_crowded():
    """
    Work that waits while one dirty scheduler is idle waits for a moment only.
    """
    pool = [scheduler(n, "dirty_io", waits=3) for n in (1, 2)]
    assert crowded(pool, "dirty_io") == (
        "All 2 dirty_io schedulers are busy and 3 wait for them; 2 are in a:b/1."
    )
    assert crowded([scheduler(n, "dirty_io") for n in (1, 2)], "dirty_io") is None
    assert crowded([pool[0], scheduler(2, "dirty_io", doing="sleeping")], "dirty_io") is None


def test_schedulers_that_are_not_online_hide_no_trouble():
    """
    Of eight schedulers two are online: both in a native function is every scheduler, and two of two
    dirty ones that are busy is a full pool.
    """
    away = [scheduler(n, doing="suspended", process=None) for n in range(3, 9)]
    found = [scheduler(1, nif=NIF), scheduler(2, nif=NIF), *away]
    assert "Every scheduler is in" in (stuck(found, lambda _: 7.0) or "")
    pool = [scheduler(n, "dirty_cpu", waits=3) for n in (1, 2)]
    gone = scheduler(3, "dirty_cpu", doing="suspended", process=None)
    assert "All 2 dirty_cpu schedulers are busy" in (crowded([*pool, gone], "dirty_cpu") or "")


def test_a_vm_that_could_not_be_looked_at_is_not_called_well():
    """
    What was refused is said, and a limit of nothing divides nothing.
    """
    health = Health(None, {"atoms": (1, 0)}, "its schedulers are not read")
    assert "Could not be looked at: its schedulers are not read" == health.text()
    assert "its schedulers are not read" == health.as_json()["refused"]
