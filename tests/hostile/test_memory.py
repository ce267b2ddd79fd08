# SPDX-License-Identifier: Apache-2.0
"""
A process whose memory lies in a file that never comes is let go, and no process waits for it.
"""

from __future__ import annotations

import contextlib
import mmap
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from fakes import PROGRAMS, as_user, compiled
from test_daemon import daemon
from tracing import require_root, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Scene
    from test_daemon import Running

#: A user of its own: for an hour the daemon looks at none of its processes, once it has tried.
TENANT = 4343


@pytest.fixture
def page(hostile_folder: Path) -> Iterator[Path]:
    """
    A file of which every user may map a page, which can never be read.
    """
    require_root()
    folder = hostile_folder / "silent"
    folder.mkdir()
    command = [sys.executable, PROGRAMS / "silent_fs.py", folder]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert "mounted\n" == server.stdout.readline()
        yield folder / "page"
    finally:
        server.kill()  # processes that wait for it get an error then
        server.communicate()
        subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()


@contextlib.contextmanager
def hanging(program: Path, page: Path, what: str) -> Iterator[subprocess.Popen[str]]:
    """
    The program of ``programs/hangs.c``, which looks like a BEAM by now.
    """
    pipe = subprocess.PIPE
    command = as_user(TENANT, program, page, what)
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    try:
        assert "ready\n" == process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def cover(running: Running, process: subprocess.Popen[str]) -> None:
    """
    Let the page replace its node's name, once it is observed.
    """
    running.until(process.pid, bool)
    process.stdin.write("\n")
    process.stdin.flush()


def refused(running: Running, pid: int, seconds: int) -> bool:
    """
    Whether the daemon's page says that memory of *pid* did not come within *seconds*.
    """
    why = f"<td>{pid}</td><td>process {pid} has memory that cannot be read within {seconds} s"
    return why in running.get("/")


def test_a_page_that_never_comes_blocks_no_process(scene: Scene, page: Path):
    """
    One process has it where the loop reads, and one where the first look does: both are refused
    with that reason, and the canary is observed as before.
    """
    program = compiled("hangs", scene.folder)
    with hanging(program, page, "name") as later:
        cover(scene.daemon, later)
        wait_until(lambda: refused(scene.daemon, later.pid, 1), "a refusal by the loop")
        assert not scene.daemon.samples(later.pid)
    # Another file, because the daemon does not look at the first one for an hour.
    program.rename(scene.folder / "hangs-before")
    program = compiled("hangs", scene.folder)
    with hanging(program, page, 4 * mmap.PAGESIZE * "x") as at_once:
        wait_until(lambda: refused(scene.daemon, at_once.pid, 5), "a refusal by the look")
        assert scene.daemon.get("/healthz") == "ok\n"


def test_a_daemon_that_met_such_a_page_ends_in_time(page: Path, tmp_path: Path):
    """
    What waits for the page is left behind, so SIGTERM ends the daemon as ever.
    """
    folder = page.parents[1]
    program = compiled("hangs", folder).rename(folder / "hangs-at-the-end")
    config = f'scan_interval = "200ms"\nmin_age = 0\ninclude_paths = ["^{program}$"]\n'
    with daemon(config, tmp_path) as running, hanging(program, page, "name") as process:
        cover(running, process)
        wait_until(lambda: refused(running, process.pid, 1), "a refusal by the loop")
        code, errors = running.end()
    assert 0 == code, errors
    assert "message=ended" in errors
