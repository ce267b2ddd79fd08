# SPDX-License-Identifier: Apache-2.0
"""
Quotas of the cgroups around a VM, in trees of either version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.cgroups import Throttled, Throttling

if TYPE_CHECKING:
    from pathlib import Path


def tree(folder: Path, cgroup: str, stats: dict[str, str]) -> tuple[Path, Path]:
    """
    A /proc with process 7 in *cgroup*, and a cgroup tree with the *stats* of each folder.
    """
    (folder / "proc/7").mkdir(parents=True)
    (folder / "proc/7/cgroup").write_text(cgroup)
    for name, text in stats.items():
        path = folder / "cgroup" / name / "cpu.stat"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "proc", folder / "cgroup"


def test_the_most_throttled_cgroup_counts(tmp_path: Path):
    """
    A pod's quota throttles its containers, so it is read besides the container's own.
    """
    stat = "usage_usec 5\nnr_periods {}\nnr_throttled {}\nthrottled_usec {}\n"
    roots = tree(
        tmp_path,
        "0::/pod/box\n",
        {"pod": stat.format(90, 20, 4_000_000), "pod/box": stat.format(100, 10, 1_500_000)},
    )
    assert Throttled(90, 20, 4.0) == Throttling(7, *roots).read()


def test_version_1_has_a_tree_of_its_own_for_the_cpu(tmp_path: Path):
    """
    Where the CPU controller is one of version 1, its time is in nanoseconds.
    """
    roots = tree(
        tmp_path,
        "4:memory:/x\n2:cpu,cpuacct:/box\n0::/\n",
        {"cpu,cpuacct/box": "nr_periods 8\nnr_throttled 3\nthrottled_time 2500000000\n"},
    )
    assert Throttled(8, 3, 2.5) == Throttling(7, *roots).read()


def test_without_a_quota_there_is_no_figure(tmp_path: Path):
    """
    A cgroup without periods, and a process that has ended, have none.
    """
    roots = tree(tmp_path, "0::/box\n", {"box": "usage_usec 5\nnr_periods 0\nnr_throttled 0\n"})
    assert Throttling(7, *roots).read() is None
    assert Throttling(8, *roots).read() is None


def test_figures_only_grow_whichever_is_throttled_most(tmp_path: Path):
    """
    Pod and container are throttled by turns: the growth since the last reading is added, of the one
    that was throttled more, and nothing of a cgroup that is made anew.
    """
    stat = "nr_periods {}\nnr_throttled {}\nthrottled_usec {}\n"
    roots = tree(
        tmp_path,
        "0::/pod/box\n",
        {"pod": stat.format(5000, 20, 4_000_000), "pod/box": stat.format(3000, 10, 3_500_000)},
    )
    throttling = Throttling(7, *roots)
    assert Throttled(5000, 20, 4.0) == throttling.read()
    (roots[1] / "pod/box/cpu.stat").write_text(stat.format(3010, 20, 5_500_000))
    assert Throttled(5010, 30, 6.0) == throttling.read()
    (roots[1] / "pod/cpu.stat").write_text(stat.format(5020, 30, 4_500_000))
    assert Throttled(5030, 40, 6.5) == throttling.read()
    (roots[1] / "pod/box/cpu.stat").write_text(stat.format(2, 1, 10_000))
    assert Throttled(5030, 40, 6.5) == throttling.read()
    (roots[1] / "pod/box/cpu.stat").write_text(stat.format(3, 2, 110_000))
    assert Throttled(5031, 41, 6.6) == throttling.read()


def test_what_was_counted_stays_when_its_cgroup_is_gone(tmp_path: Path):
    """
    A counter that ended and came back would have been reset; one that stays was not.
    """
    roots = tree(
        tmp_path, "0::/box\n", {"box": "nr_periods 8\nnr_throttled 3\nthrottled_usec 50\n"}
    )
    throttling = Throttling(7, *roots)
    before = throttling.read()
    (roots[1] / "box/cpu.stat").unlink()
    assert before == throttling.read()
