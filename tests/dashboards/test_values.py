# SPDX-License-Identifier: Apache-2.0
"""
Our figures beside those that RabbitMQ exports of its own node, side by side.
"""

from __future__ import annotations

from collections import Counter

import pytest
import scene as scenes
from witness import Samples, value

#: Ours under its own name, and RabbitMQ's, under which ours is exported too: what only rises.
#: RabbitMQ asked the VM before we read and after, so ours lies between: no tolerance. (Its names of
#: counters need not end in _total, but the reader of the exposition format makes them so.)
RISING = {
    "beam_reductions_total": "erlang_vm_statistics_reductions_total",
    "beam_context_switches_total": "erlang_vm_statistics_context_switches_total",
    "beam_garbage_collections_total": (
        "erlang_vm_statistics_garbage_collection_number_of_gcs_total"
    ),
    "beam_garbage_collection_reclaimed_bytes_total": (
        "erlang_vm_statistics_garbage_collection_bytes_reclaimed_total"
    ),
    "beam_atoms": "erlang_vm_atom_count",
}
#: What does not change while a VM runs: equal.
FIXED = {
    "beam_process_limit": "erlang_vm_process_limit",
    "beam_port_limit": "erlang_vm_port_limit",
    "beam_atom_limit": "erlang_vm_atom_limit",
    "beam_schedulers": "erlang_vm_schedulers",
    "beam_ets_tables": "erlang_vm_memory_ets_tables",
}
#: Of these we have the names of prometheus.erl alone, for they are labels of series of ours.
NAMED = (
    "erlang_vm_schedulers_online",
    "erlang_vm_dirty_cpu_schedulers",
    "erlang_vm_dirty_cpu_schedulers_online",
    "erlang_vm_dirty_io_schedulers",
    "erlang_vm_thread_pool_size",
    "erlang_vm_wordsize_bytes",
    "erlang_vm_smp_support",
)
BYTES = (
    "erlang_vm_statistics_bytes_received_total",
    "erlang_vm_statistics_bytes_output_total",
)
#: What goes on under load at any moment: all of these but atoms.
MOVED = sorted({*RISING.values(), *BYTES} - {"erlang_vm_atom_count"})
#: What comes and goes. A client of RabbitMQ is a connection of some processes and ports itself.
MOVING = {
    "beam_processes": ("erlang_vm_process_count", 6),
    "beam_ports": ("erlang_vm_port_count", 4),
}
#: Memory at rest, which still moves while it is read: the larger of a tenth and of so many bytes.
MEMORY = {
    "processes": ("erlang_vm_memory_bytes_total", {"kind": "processes"}),
    "system": ("erlang_vm_memory_bytes_total", {"kind": "system"}),
    "binary": ("erlang_vm_memory_system_bytes_total", {"usage": "binary"}),
    "ets": ("erlang_vm_memory_system_bytes_total", {"usage": "ets"}),
}
SLACK = 1 << 20
#: What is larger than that, so that more than the half of it must be seen.
MUCH = 8 * SLACK


@pytest.fixture(params=["loaded", "resting"])
def looks(scene, request):
    return getattr(scene, request.param)


@pytest.mark.parametrize("name", RISING)
def test_a_counter_lies_between_two_answers_of_the_vm(looks, name):
    """
    Under load and at rest, by either name, no less than before and no more than after.
    """
    theirs = RISING[name]
    low, high = (value(look, theirs) for look in (looks.before, looks.after))
    for ours in (name, theirs):
        assert low <= value(looks.ours, ours) <= high


@pytest.mark.parametrize("name", BYTES)
def test_bytes_through_ports_lie_between_two_answers_of_the_vm(looks, name):
    """
    What came in and went out is no less than before and no more than after.
    """
    low, high = (value(look, name) for look in (looks.before, looks.after))
    assert low <= value(looks.ours, name) <= high


@pytest.mark.parametrize("name", MOVED)
def test_under_load_a_counter_is_neither_of_the_answers(scene, name):
    """
    It goes on from one answer to our look, and from there to the other answer.
    """
    before, ours, after = (
        value(look, name) for look in (scene.loaded.before, scene.loaded.ours, scene.loaded.after)
    )
    assert before < ours < after


@pytest.mark.parametrize("name", FIXED)
def test_a_limit_is_that_of_the_vm(looks, name):
    """
    What does not change is equal, by either name.
    """
    theirs = value(looks.before, FIXED[name])
    assert theirs > 0
    assert [theirs, theirs] == [value(looks.ours, name), value(looks.ours, FIXED[name])]


@pytest.mark.parametrize("name", NAMED)
def test_what_the_vm_is_has_the_names_of_prometheus_erl(looks, name):
    """
    Schedulers of each type, those online, the thread pool and the word are equal.
    """
    assert value(looks.before, name) == value(looks.ours, name)


@pytest.mark.parametrize("name", MOVING)
def test_a_gauge_is_that_of_the_vm(looks, name):
    """
    Processes and ports agree, but for those of the connection over which RabbitMQ was asked.
    """
    theirs, own = MOVING[name]
    said = [value(look, theirs) for look in (looks.before, looks.after)]
    for ours in (name, theirs):
        assert min(said) - own <= value(looks.ours, ours) <= max(said) + own


def near(ours: float, said: list[float]) -> bool:
    low, high = min(said), max(said)
    return low - max(low / 10, SLACK) <= ours <= high + max(high / 10, SLACK)


@pytest.mark.parametrize("kind", MEMORY)
def test_memory_is_that_of_the_vm(scene, kind):
    """
    At rest, by either name, the VM's kinds of memory are what it says itself.
    """
    name, labels = MEMORY[kind]
    said = [value(look, name, **labels) for look in (scene.resting.before, scene.resting.after)]
    assert min(said) > MUCH
    ours = value(scene.resting.ours, "beam_memory_bytes", kind=kind)
    assert near(ours, said), (ours, said)
    assert near(value(scene.resting.ours, name, **labels), said)


@pytest.mark.parametrize(
    ("ours", "usage"),
    [
        ("beam_allocator_carriers_bytes", "carriers_size"),
        ("beam_allocator_blocks_bytes", "blocks_size"),
    ],
)
def test_allocators_are_those_of_the_vm(scene, ours, usage):
    """
    At rest, what each allocator has and has given out is what RabbitMQ adds up of its instances.
    """
    looks = scene.resting
    said = [allocators(look, usage) for look in (looks.before, looks.after)]
    names = [dict(labels)["allocator"] for name, labels in looks.ours if name == ours]
    assert len(names) >= 8
    assert {"binary", "ets", "eheap"} <= {name for name in names if said[0][name] > MUCH}
    wrong = {
        name: (have, theirs)
        for name in names
        if not near(
            have := value(looks.ours, ours, allocator=name), theirs := [one[name] for one in said]
        )
    }
    assert wrong == {}


def allocators(look: Samples, usage: str) -> Counter[str]:
    """
    Bytes by allocator, over all its instances and kinds of carriers.
    """
    sizes: Counter[str] = Counter()
    for (name, pairs), size in look.items():
        labels = dict(pairs)
        if name == "erlang_vm_allocators" and labels["usage"] == usage:
            sizes[labels["alloc"].removesuffix("_alloc")] += size
    return sizes


def test_a_run_queue_full_of_planted_processes_is_seen_by_both(scene):
    """
    Who wants to run and has no scheduler waits, every one, in our number and in theirs.

    Processes of RabbitMQ wait among them, and one may be moved between queues as they are read.
    """
    waiting = scenes.BUSY - value(scene.crowded, "beam_schedulers")
    ours = value(scene.crowded, "beam_run_queue_length", scheduler_type="normal")
    assert waiting - 1 <= ours <= waiting * 2
    assert waiting - 1 <= scene.queued <= waiting * 2


def test_an_empty_run_queue_is_seen_by_both(scene):
    """
    At rest nothing waits for a scheduler but who is asked.
    """
    ours = value(scene.resting.ours, "beam_run_queue_length", scheduler_type="normal")
    assert ours <= 4
    assert value(scene.resting.after, "erlang_vm_statistics_run_queues_length") <= 4


def test_the_planted_mailbox_is_seen_with_its_name(scene):
    """
    The process that reads nothing is first in the ranking, with all that waits for it.
    """
    first = value(scene.resting.ours, "beam_top_mailbox_messages", rank="1", name=scenes.DEAF)
    assert first == scenes.WAITING
