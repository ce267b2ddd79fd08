# SPDX-License-Identifier: Apache-2.0
"""
Programs that have lost their target look at the next one of the same build.
"""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING

import beams_run
import pytest

from scope_ebpf import events
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.kernel.attach.uprobes import Attacher
from scope_ebpf.kernel.observers.program_pool import ProgramPool
from scope_ebpf.sessions import open_governed_session, plan_target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scope_ebpf.kernel.observers.governed import GovernedSession
    from scope_ebpf.kernel.observers.programs import Programs

WANTED = ("spawn", "exit", "gc", "dist_busy")
PATIENCE = beams_run.PATIENCE


@pytest.fixture(scope="module")
def attacher() -> Iterator[Attacher]:
    """
    What puts hooks in.
    """
    beams_run.require(os.geteuid() == 0, "attaching BPF programs takes root")
    with Attacher() as running:
        yield running


def session(beam: beams_run.Beam, attacher: Attacher, pool: ProgramPool) -> GovernedSession:
    """
    A session on *beam* for the events :data:`WANTED`.
    """
    target = inspect(beam.pid)
    return open_governed_session(target, plan_target(target, WANTED), attacher, pool)


def spawned(beam: beams_run.Beam, session: GovernedSession) -> int:
    """
    Plant 23 processes; how many were counted of them.
    """
    session.attach("spawn")
    session.enable("spawn", None)
    assert beam.plant("spawns 23") == 23
    tallies, _ = session.kind("spawn")
    return int(tallies["count"].sum())


def programs_of(session: GovernedSession) -> Programs:
    """
    What a session has loaded.
    """
    return session._loaded.programs


def hooks_are_out(pool: ProgramPool) -> None:
    """
    Wait until the one that is kept may be taken.
    """
    (idle,) = pool._idle
    assert idle.leaving
    for fd in idle.leaving:
        assert select.select([fd], [], [], PATIENCE)[0], "the hooks of the first are never out"


@pytest.mark.parametrize("build", ["stock25", "usdt25"])
def test_the_next_vm_of_a_build_takes_programs_that_are_as_new(build: str, attacher: Attacher):
    """
    It counts its own 23 processes and none of the other VM's, with the programs of that one.
    """
    pool = ProgramPool(2, PATIENCE)
    with beams_run.planted(build, "+S", "1:1") as first, session(first, attacher, pool) as seen:
        programs = programs_of(seen)
        assert spawned(first, seen) == 23
    hooks_are_out(pool)
    with beams_run.planted(build, "+S", "1:1") as second, session(second, attacher, pool) as seen:
        assert programs_of(seen) is programs
        assert set(seen.hits().values()) == {0}
        assert not any(stats.runs for stats in seen.program_stats().values())
        assert not any(counted["count"].any() for counted, _ in [seen.kinds()])
        assert spawned(second, seen) == 23
    pool.expire(everything=True)
    assert len(pool) == 0


def test_programs_for_other_settings_are_loaded_anew(attacher: Attacher):
    """
    An offset is a constant of a program, so a VM with another one gets programs of its own.
    """
    pool = ProgramPool(2, PATIENCE)
    with beams_run.planted("stock25", "+S", "1:1") as beam:
        with session(beam, attacher, pool) as seen:
            build = programs_of(seen).build
        assert len(pool) == 1
        settings = build.settings[:-4] + b"\1\0\0\0"
        assert len(settings) == events.SETTINGS.itemsize
        other = pool.acquire(build._replace(settings=settings))
        assert len(pool) == 1
        other.close()
    pool.expire(everything=True)


def test_no_more_are_kept_than_there_is_room_for(attacher: Attacher):
    """
    The longest unused are closed first, and after their time all are.
    """
    pool = ProgramPool(1, 0.2)
    with beams_run.planted("stock25", "+S", "1:1") as beam:
        sessions = [session(beam, attacher, pool) for _ in range(2)]
        for seen in sessions:
            seen.__enter__()
        for seen in sessions:
            seen.close()
    assert len(pool) == 1
    deadline = time.monotonic() + PATIENCE
    while len(pool) and time.monotonic() < deadline:
        pool.expire()
        time.sleep(0.05)
    assert len(pool) == 0
