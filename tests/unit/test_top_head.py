# SPDX-License-Identifier: Apache-2.0
"""
The figures above the table of ``top``, and when they are red.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scope_ebpf.cli.top_head import Reading, ago, spans
from scope_ebpf.cli.top_memory import Confined, MemoryLimits
from scope_ebpf.cli.top_table import Row

if TYPE_CHECKING:
    from pathlib import Path

CALM = Reading(
    uptime=90_061,
    stopped=False,
    cpu=1.834,
    utilization={"normal": 0.42, "dirty_cpu": 0.0, "dirty_io": 0.1},
    online=4,
    waiting=3.0,
    processes=1723,
    process_limit=262144,
    resident_bytes=1_234_000_000,
    confined=Confined(1_300_000_000, 2_000_000_000),
)


def mailbox(messages: int) -> Row:
    """
    A process with so many messages.
    """
    process = {"pid": "<0.97.0>", "name": "shop", "label": None, "behaviour": None}
    process |= {"module": None, "initial_call": "shop:init/1", "message_queue_len": messages}
    return Row(1, process, None, None)


def test_a_calm_vm_has_all_figures_and_none_is_red():
    """
    Utilization, run queue, processes, memory, its limit, the longest mailbox, and for how long.
    """
    found = spans(CALM, mailbox(999))
    assert [text for text, _ in found] == [
        "schedulers 42% of 4",
        "run queue 3.0",
        "processes 1,723/262,144",
        "memory 1.23 GB",
        "cgroup 1.3 GB/2 GB (65%)",
        "mailbox 999 of <0.97.0> shop",
        "dirty cpu 0%",
        "dirty io 10%",
        "CPU 1.83 cores",
        "up 1d 1h",
    ]
    assert {""} == {style for _, style in found}


@pytest.mark.parametrize(
    ("wrong", "messages", "red"),
    [
        ({"utilization": CALM.utilization | {"normal": 0.85}}, 0, "schedulers 85% of 4"),
        ({"utilization": CALM.utilization | {"dirty_io": 1.0}}, 0, "dirty io 100%"),
        ({"stopped": True, "utilization": None}, 0, "schedulers stopped"),
        ({"waiting": 4.1}, 0, "run queue 4.1"),
        ({"processes": 209_716}, 0, "processes 209,716/262,144"),
        ({"confined": Confined(900, 1000)}, 0, "cgroup 900 B/1 kB (90%)"),
        ({}, 1000, "mailbox 1.0k of <0.97.0> shop"),
    ],
)
def test_what_is_past_its_threshold_is_red(wrong: dict[str, object], messages: int, red: str):
    """
    That figure alone.
    """
    found = spans(CALM._replace(**wrong), mailbox(messages) if messages else None)
    assert [red] == [text for text, style in found if style == "alarm"]


def test_what_is_not_known_is_said():
    """
    None is never shown as 0.
    """
    nothing = Reading(5, stopped=False, **dict.fromkeys(list(Reading._fields)[2:]))
    texts = [text for text, _ in spans(nothing, None)]
    assert "schedulers not known" in texts
    assert not [text for text in texts if "0" in text.removeprefix("up ")]
    assert nothing.as_json(None)["utilization"] is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.9, "59s"), (60, "1m 0s"), (3661, "1h 1m"), (9e5, "10d 10h")],
)
def test_a_time_of_running_has_its_two_largest_units(seconds: float, text: str):
    """
    So it has at most seven characters for a month.
    """
    assert text == ago(seconds)


def group(folder: Path, limit: str, used: int, cached: int, names: tuple[str, str, str]) -> None:
    """
    Files of a cgroup.
    """
    folder.mkdir(parents=True)
    for name, text in zip(names, (limit, str(used), f"x 1\n{names[2]} {cached}\n"), strict=True):
        (folder / (name if "." in name else "memory.stat")).write_text(text)


V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


@pytest.mark.parametrize(
    ("line", "root", "names", "none"),
    [
        ("0::/pod/shop\n", "", V2, "max\n"),
        ("3:cpu:/x\n4:memory:/pod/shop\n0::/\n", "memory", V1, "9223372036854771712\n"),
    ],
)
def test_the_limit_that_has_least_left_counts(
    tmp_path: Path, line: str, root: str, names: tuple[str, str, str], none: str
):
    """
    The pod's as well as the container's, without the file cache; none at all is no limit.
    """
    (tmp_path / "7").mkdir()
    (tmp_path / "7/cgroup").write_text(line)
    group(tmp_path / root / "pod", "1000\n", 950, 100, names)
    group(tmp_path / root / "pod/shop", none, 600, 0, names)
    assert MemoryLimits(7, tmp_path, tmp_path).read() == Confined(850, 1000)
    (tmp_path / root / "pod" / names[0]).write_text(none)
    assert MemoryLimits(7, tmp_path, tmp_path).read() is None
    assert MemoryLimits(8, tmp_path, tmp_path).read() is None
