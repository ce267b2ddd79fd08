# SPDX-License-Identifier: Apache-2.0
"""
What a tenant does to be looked at all the time keeps nobody else from being observed, and costs a
bounded number of looks, lines and series.
"""

from __future__ import annotations

import os
import select
import shutil
import time
from typing import TYPE_CHECKING

import beams_run
import pytest
from fakes import compiled, running
from prometheus_client.parser import text_string_to_metric_families
from test_daemon import always, daemon, name_flags, named
from test_daemon_discovery import unnamed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Scene
    from test_daemon import Running

#: A user of its own: what looks at it may take is used up, and others are not to wait for that.
TENANT = 4242
TARGETS = ("scope_ebpf_targets",)
#: Takes a new name twice a second, loses it again, and so on.
RENAMER = (
    "spawn(fun F() -> F2 = fun F2(N) -> "
    'net_kernel:start(list_to_atom("n" ++ integer_to_list(N) ++ "@127.0.0.1"), '
    "#{dist_listen => false}), timer:sleep(200), net_kernel:stop(), F2(N + 1) end, F2(1) end), "
    "receive after infinity -> ok end."
)
#: Forty processes with a message each, of which all have new names four times a second.
CHURN = (
    "F = fun F(N) -> Ps = [begin P = spawn(fun() -> receive never -> ok end end), "
    'register(list_to_atom("p" ++ integer_to_list(N * 40 + I)), P), P ! hello, P end '
    "|| I <- lists:seq(1, 40)], timer:sleep(250), [exit(P, kill) || P <- Ps], F(N + 1) end, "
    "spawn(fun() -> F(1) end), receive after infinity -> ok end."
)


def samples(running: Running) -> dict[tuple[str, ...], float]:
    """
    All samples: by name, then the values of their labels.
    """
    return {
        (s.name, *(value for _, value in sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(running.get())
        for s in family.samples
    }


def until(running: Running, holds: Callable[[dict[tuple[str, ...], float]], bool], what: str):
    """
    The first samples for which *holds*.
    """
    deadline = time.monotonic() + beams_run.PATIENCE
    while not holds(found := samples(running)):
        assert time.monotonic() < deadline, f"never: {what}"
        select.select([], [], [], 0.1)  # there is nothing to wait for but the next look
    return found


def nodes(running: Running, pid: int) -> set[str]:
    """
    What *pid* is called in one scrape: one name, or none.
    """
    families = text_string_to_metric_families(running.get())
    infos = [s.labels for f in families for s in f.samples if s.name == "beam_target_info"]
    return {labels["node"] for labels in infos if labels["pid"] == str(pid)}


def looks(found: dict[tuple[str, ...], float], *results: str) -> float:
    return sum(found["scope_ebpf_looks_total", result] for result in results)


def lines(running: Running) -> int:
    """
    How many lines the daemon has written that nobody has read yet.
    """
    errors, text = running.process.stderr.fileno(), b""
    while select.select([errors], [], [], 0)[0] and (more := os.read(errors, 1 << 16)):
        text += more
    return text.count(b"\n")


@pytest.fixture
def newcomer(scene: Scene) -> Iterator[None]:
    """
    After what the test does meanwhile a VM that starts only then is observed with every hook.
    """
    yield
    with named("+S", "1:1", emulator=scene.folder / "emulator") as beam:
        scene.daemon.until(beam.pid, always)


def test_fakes_cost_one_look_and_get_no_hooks(scene: Scene):
    """
    Five hundred processes of a program without a VM's memory: one look each time it is tried
    again, and a VM that starts beside them is observed.
    """
    tenant = compiled("tenant", scene.folder)
    before = samples(scene.daemon)
    with running(tenant, "fakes", "500", user=TENANT) as process:
        assert ["ready\n"] * 500 == [process.stdout.readline() for _ in range(500)]
        until(scene.daemon, lambda now: looks(now, "spared") >= 500, "looks at all")
        with named("+S", "1:1", emulator=scene.folder / "emulator") as beam:
            scene.daemon.until(beam.pid, always)
            now = samples(scene.daemon)
    assert 2 == now[TARGETS]
    assert 1 <= looks(now, "refused") - looks(before, "refused") <= 8


def test_fakes_that_are_observed_keep_no_vm_out(scene: Scene, tmp_path: Path):
    """
    Forty have a VM's first atoms, so that they are observed by turns; a VM that starts beside them
    is taken in before those that wait, and they are gone when they end.
    """
    tenant = compiled("tenant", tmp_path, "-DATOMS")
    tenant = tenant.rename(scene.folder / "tenant-with-atoms")
    with running(tenant, "fakes", "40", user=TENANT) as process:
        assert ["ready\n"] * 40 == [process.stdout.readline() for _ in range(40)]
        until(scene.daemon, lambda now: now[TARGETS] >= 4, "some are observed")
        with named("+S", "1:1", emulator=scene.folder / "emulator") as beam:
            scene.daemon.until(beam.pid, always)
    until(scene.daemon, lambda now: now[TARGETS] == 1, "the end of the fakes")


def test_names_of_threads_in_a_loop_reach_user_space_once_a_second(scene: Scene, newcomer):
    """
    Of a million names that the kernel learns the daemon looks at a few, and says nothing.
    """
    tenant = compiled("tenant", scene.folder)
    runs = ("scope_ebpf_program_runs_total", "vm_start")
    lines(scene.daemon)
    before = samples(scene.daemon)
    with running(tenant, "flood", "1", user=TENANT) as process:
        assert "ready\n" == process.stdout.readline()
        now = until(scene.daemon, lambda now: now[runs] >= before[runs] + 1e6, "a million names")
    every = ("vm", "unwanted", "no_beam", "refused", "spared", "ended")
    assert looks(now, *every) - looks(before, *every) < 500
    assert lines(scene.daemon) < 20


def test_a_node_that_is_renamed_in_a_loop_has_four_labels(scene: Scene):
    """
    Stock OTP, no privileges, no port mapper: its name when it is found, and three more an hour.
    """
    env = {"BINDIR": str(scene.folder / "emulator")}
    held = ("scope_ebpf_renames_held_total",)
    begun, labels = samples(scene.daemon)[held], set()
    with beams_run.start_beam("usdt25", "+S", "1:1", *unnamed(), eval=RENAMER, env=env) as beam:

        def is_held(now: dict[tuple[str, ...], float]) -> bool:
            labels.update(nodes(scene.daemon, beam.pid))
            return now[held] >= begun + 4

        until(scene.daemon, is_held, "names that are held back")
    assert 2 <= len(labels) <= 4


def test_names_in_rankings_are_bounded(scene: Scene, tmp_path: Path):
    """
    Processes that all have new names a second later: a hundred are reported, the rest as other.
    """
    emulator = shutil.copytree(scene.folder / "emulator", tmp_path / "emulator")
    config = (
        'scan_interval = "200ms"\nmin_age = 0\ntop = 20\nsnapshot_interval = "1s"\n'
        f'include_paths = ["^{emulator}/"]\n'
    )
    names = set()
    env = {"BINDIR": str(emulator)}
    with (
        beams_run.start_beam("usdt25", "+S", "1:1", *name_flags(), eval=CHURN, env=env) as beam,
        daemon(config, tmp_path) as observing,
    ):

        def is_held(found: dict[tuple[str, ...], float]) -> bool:
            tops = {key for key in found if key[0].startswith("beam_top_")}
            names.update(name for _, name, rank in tops if rank != "other")
            return samples(observing)["scope_ebpf_top_names_held_total",] >= 40

        observing.until(beam.pid, is_held)
    assert "other" in names
    assert len(names - {"?", "other"}) <= 100
