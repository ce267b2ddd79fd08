# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import beams_run
import pytest
from tracing import require_root, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

UNIT = Path(__file__).parents[2] / "packaging/scope-ebpfd.service"
BOUNDING = re.search(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.MULTILINE)[1].split()
#: Neither of root nor of whoever runs the tests.
NOBODY = 65534
DAEMON = (sys.executable, "-m", "scope_ebpf.cli.daemon")


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    beams_run.require(shutil.which("systemd-analyze"), "systemd-analyze is not installed")
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True)


def test_the_unit_says_what_systemd_understands(tmp_path: Path):
    """
    systemd finds nothing to complain of in the unit, once its program is there.
    """
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/bin/scope-ebpfd", "/bin/true"))
    done = analyze("verify", "--man=no", str(unit))
    assert (0, "") == (done.returncode, done.stdout + done.stderr)


def test_the_unit_is_exposed_little():
    """
    By systemd's own measure, 0 to 10, the service is exposed by less than 4.
    """
    done = analyze("security", "--offline=true", "--threshold=40", str(UNIT))
    assert 0 == done.returncode, done.stdout


@pytest.fixture(scope="module")
def stranger() -> Iterator[int]:
    """
    A VM of another user, by its pid.
    """
    require_root()
    beams_run.build("stock25")
    words = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    erl = ("env", "HOME=/tmp", "erl", "-noinput", "-eval", 'io:put_chars("ready\\n").')
    pipe = subprocess.PIPE
    with subprocess.Popen([*words, *erl], stdin=pipe, stdout=pipe) as process:
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.kill()


@contextmanager
def daemon(folder: Path, stranger: int, capabilities: list[str]) -> Iterator[Path]:
    """
    A daemon that has these capabilities, and the file that it logs to.
    """
    bounding = ",".join(["-all", *(f"+{c.removeprefix('CAP_').lower()}" for c in capabilities)])
    words = ("setpriv", f"--bounding-set={bounding}", "--no-new-privs", *DAEMON)
    port = beams_run.free_port()
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen([*words, "--listen", f"127.0.0.1:{port}"], stderr=file)
    try:
        wait_until(lambda: process.poll() is not None or is_ready(port), "the first look for VMs")
        yield log
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait()


def is_ready(port: int) -> bool:
    """
    Whether a daemon has looked for VMs once.
    """
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz") as answer:
            return answer.status == 200
    except OSError:
        return False


def test_what_the_unit_grants_is_enough(tmp_path: Path, stranger: int):
    """
    With the capabilities of the unit and no others a VM of another user is observed.
    """
    with daemon(tmp_path, stranger, BOUNDING) as log:
        said = log.read_text()
    assert re.search(rf"message=observing pid={stranger} ", said), said
    assert "common priority" not in said


@pytest.mark.parametrize("taken", BOUNDING)
def test_what_the_unit_grants_is_needed(tmp_path: Path, stranger: int, taken: str):
    """
    Each capability is missed when it is taken away: nothing is granted for nothing.
    """
    rest = [name for name in BOUNDING if name != taken]
    with daemon(tmp_path, stranger, rest) as log:
        said = log.read_text()
    observed = re.search(rf"message=observing pid={stranger} ", said)
    assert not observed or "common priority" in said, said
