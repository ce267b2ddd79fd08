# SPDX-License-Identifier: Apache-2.0
"""
What /proc says of a process: over folders that stand for it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from scope_ebpf.daemon.readings.process import cgroup_of, read_process, user_of
from scope_ebpf.errors import NoSuchProcessError

if TYPE_CHECKING:
    from pathlib import Path


def process(folder: Path, pid: int, **files: str) -> Path:
    """
    A folder that stands for /proc, in which process *pid* has *files*.
    """
    (folder / str(pid)).mkdir()
    for name, text in files.items():
        (folder / str(pid) / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("0::/system.slice/rabbitmq.service\n", "/system.slice/rabbitmq.service"),
        ("0::/\n", "/"),
        ("12:memory:/box\n4:cpu,cpuacct:/box\n1:name=systemd:/box\n", "/box"),
        (
            "4:cpu,cpuacct:/a.slice\n3:freezer:/\n1:name=systemd:/a.slice/b.service\n0::/a.slice\n",
            "/a.slice/b.service",
        ),
        ("4:cpu,cpuacct:/docker/5c1d\n1:name=systemd:/docker/5c1d\n0::/\n", "/docker/5c1d"),
        ("1:name=odd:/with:colons\n", "/with:colons"),
        ("", ""),
    ],
    ids=["version 2", "root", "version 1", "hybrid", "container", "colons", "none"],
)
def test_cgroups_of_both_versions_are_read(tmp_path: Path, text: str, path: str):
    """
    Where each controller has its own path, the longest one is taken.
    """
    assert path == cgroup_of(7, process(tmp_path, 7, cgroup=text))


def test_a_process_that_has_ended_has_no_cgroup(tmp_path: Path):
    """
    Its cgroup is empty, which is not an error.
    """
    assert "" == cgroup_of(7, tmp_path)


def test_the_user_is_the_real_one(tmp_path: Path):
    """
    The user who started the process, not the effective one; empty where it has ended.
    """
    status = "Name:\tUid:\nUmask:\t0022\nUid:\t1000\t0\t0\t0\nGid:\t5\t6\t6\t6\n"
    assert "1000" == user_of(7, process(tmp_path, 7, status=status))
    assert "" == user_of(8, tmp_path)


def test_a_clock_that_is_set_does_not_change_when_a_vm_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """
    The time of the start is the same in every reading, so that a change of it is a restart.
    """
    fields = ["S", *["0"] * 49]
    fields[19] = "12345"
    proc = process(tmp_path, 7, stat=f"7 (a) b) {' '.join(fields)}\n")
    first = read_process(7, proc=proc)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600)
    second = read_process(7, proc=proc)
    assert first.start_time == second.start_time
    assert 0 <= second.uptime - first.uptime < 60


def test_reading_a_process_that_has_ended_is_an_error(tmp_path: Path):
    """
    Without a process there is no reading.
    """
    with pytest.raises(NoSuchProcessError, match="7 has ended"):
        read_process(7, proc=tmp_path)
