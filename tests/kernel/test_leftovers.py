# SPDX-License-Identifier: Apache-2.0
"""
Breakpoints that stay when the process that holds them is killed: found, reported, and removed.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import beams_run
import pytest
from beams_run import PATIENCE
from test_daemon import QUICK, always, daemon, named
from tracing import BREAKPOINT, require_root, scope_trace, trace

from scope_ebpf.attach.plan import Attachment
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.kernel.attach import leftovers
from scope_ebpf.kernel.attach.uprobes import Attacher, Uprobes, has_multi
from scope_ebpf.planning.planner import make_plan, semaphores

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scope_ebpf.beam.vm.target import Target

#: Functions of which some keep a breakpoint when their holder is killed.
MANY = 150


class Scene(NamedTuple):
    """
    A VM, its target, and functions of it that can be attached to.
    """

    beam: beams_run.Beam
    target: Target
    sites: list[Attachment]

    @property
    def found(self) -> list[int]:
        return leftovers.find(self.target.identity)

    def heal(self, attacher: Attacher | None = None) -> int:
        return leftovers.heal(self.target.identity, semaphores(self.target.binary), attacher)


def scene_of(beam: beams_run.Beam) -> Iterator[Scene]:
    """
    The scene of a VM, which has no leftover breakpoint before and after.
    """
    target = inspect(beam.pid)
    binary = target.binary
    names = re.compile(r"(?:erts|ets|db)_.*")
    functions = [s for s in binary.matching(names) if s.is_function and s.size > 64]
    offsets = sorted({binary.file_offset(s.address) for s in functions})[:MANY]
    sites = [Attachment("left", "", "left", offset, 0) for offset in offsets]
    scene = Scene(beam, target, sites)
    assert [] == scene.found
    yield scene
    assert [] == scene.found
    beam.plant("messages 23")


@pytest.fixture(scope="module")
def observed_vm() -> Iterator[beams_run.Beam]:
    require_root()
    with named() as beam:
        yield beam


@pytest.fixture
def scene(observed_vm: beams_run.Beam) -> Iterator[Scene]:
    yield from scene_of(observed_vm)


def attached(scene: Scene, sites: list[Attachment], holder: Attacher) -> Uprobes:
    """
    Breakpoints in all of *sites*, in one link.
    """
    program = leftovers._load_nothing(multi=has_multi())
    uprobes = Uprobes(scene.target.identity, holder, multi=has_multi())
    try:
        assert [None] == uprobes.attach([(program, sites)])
    finally:
        os.close(program)
    return uprobes


def leave(scene: Scene, sites: list[Attachment]) -> list[int]:
    """
    Kill the holder of *sites* while it removes them, until the kernel leaves some; their offsets.
    """
    deadline = time.monotonic() + PATIENCE
    while not (left := scene.found):
        assert time.monotonic() < deadline, "the kernel leaves nothing"
        holder = Attacher()
        uprobes = attached(scene, sites, holder)
        os.close(holder.detach(uprobes.numbers))
        time.sleep(random.SystemRandom().uniform(0, 0.004))  # when it is under way
        os.kill(holder.pid, 9)
        holder.close()
    return left


def write_breakpoints(scene: Scene) -> list[int]:
    """
    Write breakpoints into functions that only libraries call, so that none is hit; their offsets.

    No process holds them, and they are found and removed like those that the kernel has left.
    """
    binary = scene.target.binary
    names = re.compile(r"enif_(?:rwlock|tsd|map_iterator|thread|cond)_.*")
    offsets = sorted(binary.file_offset(s.address) for s in binary.matching(names))
    (span,) = leftovers._text(scene.beam.pid, os.fstat(scene.target.identity.file).st_ino)
    with Path(f"/proc/{scene.beam.pid}/mem").open("rb+", buffering=0) as memory:
        for offset in offsets:
            memory.seek(span.address + offset - span.offset)
            memory.write(bytes([BREAKPOINT]))
    assert len(offsets) > 20
    return offsets


def test_held_breakpoints_stay(scene: Scene):
    """
    Held breakpoints stay and their hits count; the others are removed.
    """
    held = scene.sites[:23]
    with trace(scene.beam.pid, "--events", "spawn") as run:
        others = set(scene.found)
        assert others
        with Attacher() as holder:
            uprobes = attached(scene, held, holder)
            left = set(write_breakpoints(scene))
            before = set(scene.found)
            assert before == others | left | {site.offset for site in held}
            assert len(left) == scene.heal()
            assert before - left == set(scene.found)
            uprobes.detach()
        scene.beam.plant("spawns 23")
        assert 23 == run.stop().events["spawn"]["count"]


def test_one_refused_site_does_not_keep_the_others(scene: Scene):
    """
    A site that the kernel refuses does not keep the others in, and costs one more request.
    """
    left = write_breakpoints(scene)
    refused = leftovers._site(1 << 40, 0)  # beyond the file
    sites = [leftovers._site(offset, 0) for offset in left]
    with Attacher() as holder:
        identity, multi = scene.target.identity, has_multi()
        touched = leftovers._touch(identity, [refused, *sites], holder, multi=multi)
    assert leftovers._AT_ONCE - 1 == touched
    assert left[touched:] == scene.found
    assert len(left) - touched == scene.heal()


SEIZE = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.ptrace(0x4206, int(sys.argv[1]), 0, 0):  # PTRACE_SEIZE
    sys.exit(f"errno {ctypes.get_errno()}")
print("ready", flush=True)
sys.stdin.read()
"""


def test_breakpoints_of_a_debugger_stay(scene: Scene):
    """
    While a debugger is attached none is removed, since its breakpoints look like leftover ones.
    """
    command = [sys.executable, "-c", SEIZE, str(scene.beam.pid)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as debugger:
        assert "ready\n" == debugger.stdout.readline()
        left = write_breakpoints(scene)
        assert 0 == scene.heal()
        assert left == scene.found
    assert len(left) == scene.heal()


def test_the_doctor_lists_and_the_next_trace_heals(scene: Scene):
    """
    The doctor lists leftover breakpoints and changes nothing; a trace removes them and says so.
    """
    left = write_breakpoints(scene)
    words = ("doctor", str(scene.beam.pid), "--format")
    with Attacher() as holder:
        attached(scene, scene.sites[:23], holder)
        listed = json.loads(scope_trace(*words, "json").output)["breakpoints"]
        assert (23, len(left)) == (len(listed["held"]), len(listed["left"]))
        text = scope_trace(*words, "text").output
        assert "23 breakpoints are held by other tools or traces now" in text
        assert f"{len(left)} breakpoints are in its text that nobody is known to hold" in text
    assert left == scene.found
    done = scope_trace("--pid", str(scene.beam.pid), "--duration", "0.1", "--format", "json")
    note = f"{len(left)} breakpoints that a killed tool had left were taken out"
    assert note in done.document["notes"]


def test_the_next_daemon_heals(scene: Scene, tmp_path: Path):
    """
    A daemon removes the leftover breakpoints of a new target, also where it has no hook itself.
    """
    left = write_breakpoints(scene)
    with daemon(QUICK, tmp_path) as running:
        running.until(scene.beam.pid, always)
        assert not set(left) & set(scene.found)
        code, errors = running.end()
    assert 0 == code
    assert f'breakpoints of nobody go out" pid={scene.beam.pid} count={len(left)}' in errors


def test_what_a_killed_holder_left_is_healed():
    """
    The kernel leaves breakpoints of a killed holder, USDT probes among them: all of them are
    removed, and the VM no longer counts a user of the probes.
    """
    require_root()
    with beams_run.planted("usdt25") as beam:
        for scene in scene_of(beam):
            binary = scene.target.binary
            probes = [s for s in binary.usdt_sites if s.name.startswith(("gc_", "process", "me"))]
            plan = make_plan(binary, "jit", via="usdt")
            probed = {a.offset: a for a in plan.attachments if a.semaphore}
            sites = [*scene.sites, *probed.values()]  # the last ones are the most likely to stay
            assert probes

            def counted(scene=scene, probes=probes) -> int:
                base = scene.target.base
                return sum(scene.target.memory.u16(base + s.semaphore) for s in probes)

            while not counted():
                left = leave(scene, sites)
                assert set(left) <= {site.offset for site in sites}
                if not counted():
                    scene.heal()
            assert len(left) == scene.heal()
            assert 0 == counted()
