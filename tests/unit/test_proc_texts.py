# SPDX-License-Identifier: Apache-2.0
"""
Names in texts of /proc that look like rows of their own: they decide nothing.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from scope_ebpf.beam.stacks.native import regions
from scope_ebpf.beam.vm import discover, nifs, state
from scope_ebpf.beam.vm.threads import threads
from scope_ebpf.cgroups import _folders
from scope_ebpf.daemon.looks.owners import owner_of
from scope_ebpf.daemon.readings.process import cgroup_of, user_of
from scope_ebpf.errors import NoSuchProcessError
from scope_ebpf.kernel.attach import leftovers
from scope_ebpf.sandbox.proc import rows

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Where ``str.splitlines`` splits, but for the newline; and what opening as text makes a newline.
BREAKS = "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_NAMED = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(15, os.fsencode(sys.argv[1]))
print(flush=True)
input()
"""


@contextmanager
def named(name: str) -> Iterator[int]:
    """
    A process that has given itself this name; its pid.
    """
    command, pipe = [sys.executable, "-IS", "-c", _NAMED, name], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert "\n" == process.stdout.readline()
        assert name == Path(f"/proc/{process.pid}/comm").read_bytes().decode()[:-1]
        yield process.pid
        process.communicate("\n")


def resident(pid: int) -> int:
    return state._resident(SimpleNamespace(pid=pid, identity=SimpleNamespace(check=lambda: None)))


def test_a_process_does_not_name_itself_another_users():
    """
    Its name stands before its user: the row that the name looks like is none.
    """
    with named("\rUid: 4242") as pid:
        assert os.getuid() == owner_of(pid).uid
        assert str(os.getuid()) == user_of(pid)


def test_a_process_does_not_name_itself_a_thread_or_debugged_or_small():
    """
    Nor does its name decide what else is read of its status.
    """
    with named("\rTgid: 1") as pid:
        assert discover._started(pid, Path(f"/proc/{pid}"))
    with named("\rTracerPid: 1") as pid:
        assert not leftovers._is_debugged(pid)
    with named("\rVmRSS: 1") as pid:
        assert 1 << 20 < resident(pid)


def test_a_thread_does_not_name_itself_another_count(tmp_path: Path):
    """
    How often a thread waited is the kernel's to say.
    """
    folder = tmp_path / "7/task/8"
    folder.mkdir(parents=True)
    (folder / "comm").write_bytes(b"1_scheduler\n")
    (folder / "stat").write_bytes(b"8 (1_scheduler) S " + b" 0" * 40)
    (folder / "status").write_bytes(
        b"Name:\t\rvoluntary_ctxt_switches: 1\nvoluntary_ctxt_switches:\t5\n"
    )
    (found,) = threads(7, tmp_path)
    assert 5 == found.waits


def test_a_process_of_an_unknown_user_is_not_taken_for_roots(tmp_path: Path):
    """
    Root has no limits, so no owner is root by default.
    """
    (tmp_path / "7").mkdir()
    (tmp_path / "7/status").write_bytes(b"Name:\tbeam\n")
    with pytest.raises(NoSuchProcessError):
        owner_of(7, tmp_path)


@pytest.mark.parametrize("end", BREAKS, ids=ascii)
def test_a_cgroups_name_is_one_path(tmp_path: Path, end: str):
    """
    A tenant's own cgroup is not the long path of another, nor one of the CPU controller.
    """
    path = f"/box/{end}2:cpu:/another/tenant/with/a/longer/path"
    (tmp_path / "7").mkdir()
    (tmp_path / "7/cgroup").write_bytes(f"0::{path}\n".encode())
    assert path == cgroup_of(7, tmp_path)
    assert tmp_path.joinpath(*path.split("/")[1:]) == _folders(7, tmp_path, tmp_path, "cpu")[0]


@pytest.mark.parametrize("end", BREAKS, ids=ascii)
def test_a_mapped_files_name_is_one_path(tmp_path: Path, end: str):
    """
    No file is mapped but those that the kernel lists.
    """
    folder = tmp_path / f"x{end}1000-2000 r-xp 0 0:0 0 "
    folder.mkdir()
    (folder / "evil").write_bytes(bytes(4096))
    with (folder / "evil").open("rb") as file:
        held = mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)
    with held:
        paths = {one.path for one in nifs._libraries(os.getpid())}
        assert (str(folder / "evil") in paths, "/evil" in paths) == (True, False)
        assert [] == [one for one in regions(os.getpid()) if one.start == 0x1000]


def test_only_a_newline_ends_a_row():
    """
    The last one may lack it; an empty text has no row.
    """
    assert [f"a{BREAKS}b", "", "c"] == rows(f"a{BREAKS}b\n\nc\n".encode())
    assert (["c"], []) == (rows(b"c"), rows(b""))
