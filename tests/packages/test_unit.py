# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import beams_run
import pytest
from tracing import require_root, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

UNIT = Path(__file__).parents[2] / "packaging/scope-ebpfd.service"
SOCKET = UNIT.with_suffix(".socket")
SET = dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE))
BOUNDING = SET["CapabilityBoundingSet"].split()
#: Neither of root nor of the user who runs the tests.
NOBODY = 65534
DAEMON = (sys.executable, "-m", "scope_ebpf.cli.daemon")


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    beams_run.require(shutil.which("systemd-analyze"), "systemd-analyze is not installed")
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True)


def test_the_unit_says_what_systemd_understands(tmp_path: Path):
    """
    systemd finds nothing to complain of in the service, once its program is there, and its socket.
    """
    units = [tmp_path / UNIT.name, tmp_path / SOCKET.name]
    units[0].write_text(UNIT.read_text().replace("/usr/bin/scope-ebpfd", "/bin/true"))
    units[1].write_text(SOCKET.read_text())
    done = analyze("verify", "--man=no", *map(str, units))
    assert (0, "") == (done.returncode, done.stdout + done.stderr)


def test_the_unit_is_exposed_little():
    """
    By systemd's own measure, 0 to 10, the service is exposed by less than 3.5.
    """
    done = analyze("security", "--offline=true", "--threshold=35", str(UNIT))
    assert 0 == done.returncode, done.stdout


def test_the_folder_of_the_socket_is_the_services():
    """
    The service may make a socket where the unit of the socket has it, and leaves it when it ends.
    """
    (where,) = re.findall(r"^ListenStream=(.*)$", SOCKET.read_text(), re.MULTILINE)
    assert f"/run/{SET['RuntimeDirectory']}" == str(Path(where).parent)
    assert "yes" == SET["RuntimeDirectoryPreserve"]
    assert "SocketMode=0660\n" in SOCKET.read_text()


def test_the_unit_never_gives_up():
    """
    systemd starts a unit five times in ten seconds at most: a pause lets it try without end.
    """
    assert "on-failure" == SET["Restart"]
    assert 5 * int(SET["RestartSec"]) > 10


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
    log, config = folder / "log", folder / "config.toml"
    # It is ready when it has taken in, or refused, all VMs that are old enough: all there are.
    config.write_text(f'min_age = 0\nlisten = "127.0.0.1:{port}"\n')
    with log.open("wb") as file:
        process = subprocess.Popen([*words, "--config", str(config)], stderr=file)
    try:
        wait_until(lambda: process.poll() is not None or is_ready(port), "the first look for VMs")
        yield log
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait()


#: Kinds of maps with a part for each CPU (include/uapi/linux/bpf.h, enum bpf_map_type).
PER_CPU = (5, 6, 10)
#: What the unit's limits are made for.
CPUS = 64


def taken(pid: int) -> tuple[int, int]:
    """
    Bytes of a process's BPF maps, were it on a host of CPUS, and its open files.
    """
    more = CPUS - os.sysconf("SC_NPROCESSORS_CONF")
    files = []
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):  # it was open for a moment
            files.append(path.read_text())
    maps = {}
    for text in files:
        reported = dict(re.findall(r"^(\w+):\s*(\d+)$", text, re.MULTILINE))
        if "map_id" in reported:
            part = (int(reported["value_size"]) + 7 & ~7) * int(reported["max_entries"])
            parts = more * part if int(reported["map_type"]) in PER_CPU else 0
            maps[reported["map_id"]] = int(reported["memlock"]) + parts
    return sum(maps.values()), len(files)


def test_memory_lasts_longer_than_files(tmp_path: Path):
    """
    As many VMs as there are files for, 64 at least, fit into the memory: one too many is refused
    for want of files, and the daemon is not killed.
    """
    require_root()
    config, log = tmp_path / "config.toml", tmp_path / "log"
    config.write_text('min_age = 0\nscan_interval = "1s"\ninclude_nodes = ["^counted[0-9]@"]\n')
    words = (*DAEMON, "--config", str(config), "--listen", f"127.0.0.1:{beams_run.free_port()}")
    figures = []
    with log.open("wb") as file, ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen(words, stderr=file))
        stack.callback(process.terminate)
        for number in range(3):
            stack.enter_context(named(f"counted{number}"))
            line = f"message=observing pid=.* node=counted{number}@"
            wait_until(lambda line=line: re.search(line, log.read_text()), "a VM that is observed")
            figures.append(taken(process.pid))
    # The first VM has what all share.
    (maps, files), (more_maps, more_files) = figures[0], figures[2]
    vms = int(SET["LimitNOFILE"]) // ((more_files - files) // 2)
    assert vms >= 64
    # Programs, breakpoints and Python's objects take a third of it besides (measured).
    memory = maps + vms * 1.4 * (more_maps - maps) / 2 + 100e6
    assert memory < int(SET["MemoryMax"].removesuffix("G")) << 30


@contextmanager
def named(name: str) -> Iterator[beams_run.Beam]:
    """
    A VM that does nothing, by its node's name.
    """
    flags = ("-name", f"{name}@127.0.0.1", "-kernel", "inet_dist_use_interface", "{127,0,0,1}")
    epmd = ("-start_epmd", "false", "-erl_epmd_port", str(beams_run.free_port()))
    with beams_run.start_beam("stock25", *flags, *epmd, "+S", "1:1") as beam:
        yield beam


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
