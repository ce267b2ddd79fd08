# SPDX-License-Identifier: Apache-2.0
"""
Quotas of the cgroups around a VM, in trees of either version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scope_ebpf.cgroups import (
    MemoryLimit,
    Throttled,
    Throttling,
    container_and_pod,
    memory_limit,
)

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


ID = "0123456789abcdef" * 4
UID = "9a3c1f52-7b1e-4b7c-8a55-0c1d2e3f4a5b"
SLICE = f"kubepods-burstable-pod{UID.replace('-', '_')}.slice"


def files(folder: Path, cgroup: str, texts: dict[str, str]) -> tuple[Path, Path]:
    """
    A /proc with process 7 in *cgroup*, and a cgroup tree with the files *texts*.
    """
    (folder / "proc/7").mkdir(parents=True)
    (folder / "proc/7/cgroup").write_text(cgroup)
    for name, text in texts.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "proc", folder / "cgroup"


def test_the_cgroup_nearest_to_its_memory_limit_counts(tmp_path: Path):
    """
    The pod is fuller than the container; file pages that can be dropped are not in use; kills are
    those in the pod, where the containers before this one lived.
    """
    roots = files(
        tmp_path,
        f"0::/kube/{SLICE}/cri-containerd-{ID}.scope\n",
        {
            "kube/memory.max": "100000\n",
            "kube/memory.current": "1000\n",
            "kube/memory.events": "oom_kill 23\n",
            f"kube/{SLICE}/memory.max": "1000\n",
            f"kube/{SLICE}/memory.current": "960\n",
            f"kube/{SLICE}/memory.stat": "anon 800\ninactive_file 60\n",
            f"kube/{SLICE}/memory.events": "low 0\noom 9\noom_kill 3\n",
            f"kube/{SLICE}/cri-containerd-{ID}.scope/memory.max": "2000\n",
            f"kube/{SLICE}/cri-containerd-{ID}.scope/memory.current": "700\n",
        },
    )
    assert MemoryLimit(900, 1000, 3) == memory_limit(7, *roots)


def test_a_memory_limit_of_version_1(tmp_path: Path):
    """
    Version 1 has other names, and the whole range of numbers for no limit.
    """
    texts = {
        "memory/box/memory.limit_in_bytes": "4096\n",
        "memory/box/memory.usage_in_bytes": "3000\n",
        "memory/box/memory.stat": "inactive_file 1\ntotal_inactive_file 1000\n",
        "memory/box/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    }
    roots = files(tmp_path, "4:memory:/box\n2:cpu,cpuacct:/other\n", texts)
    assert MemoryLimit(2000, 4096, 2) == memory_limit(7, *roots)
    (roots[1] / "memory/box/memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory_limit(7, *roots) is None


@pytest.mark.parametrize("limit", ["max\n", "", "-5\n", "0\n", "1e9\n", "9" * 70_000])
def test_what_is_no_memory_limit_is_no_figure(tmp_path: Path, limit: str):
    """
    No limit, nonsense, and a process that has ended: there is nothing to say.
    """
    texts = {"box/memory.max": limit, "box/memory.current": "1\n"}
    roots = files(tmp_path, "0::/box\n", texts)
    assert memory_limit(7, *roots) is None
    assert memory_limit(8, *roots) is None


@pytest.mark.parametrize(
    ("cgroup", "container", "pod"),
    [
        (f"/system.slice/docker-{ID}.scope", ID, ""),
        (f"/docker/{ID}", ID, ""),
        (f"/kubepods/burstable/pod{UID}/{ID}", ID, UID),
        (f"/kubepods.slice/x.slice/{SLICE}/cri-containerd-{ID}.scope", ID, UID),
        (f"/kubepods.slice/{SLICE}/crio-{ID}.scope/container", ID, UID),
        (f"/kubepods/pod{'0' * 32}/{ID}", ID, "0" * 32),
        (f"/docker/{ID}/docker/{ID[::-1]}", ID[::-1], ""),
        ("/system.slice/rabbitmq.service", "", ""),
        (f"/user.slice/{ID[:-1]}", "", ""),
        (f"/user.slice/{ID}{ID}", "", ""),
        ("/podman/x", "", ""),
        ("", "", ""),
    ],
)
def test_container_and_pod_of_a_cgroup(cgroup: str, container: str, pod: str):
    """
    The innermost container and its pod, as docker, containerd and CRI-O name their cgroups with
    either driver.
    """
    assert container_and_pod(cgroup) == (container, pod)
