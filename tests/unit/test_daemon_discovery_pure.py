# SPDX-License-Identifier: Apache-2.0
"""
Which processes discovery looks into, and when: over a folder that stands for /proc.
"""

import ctypes
import os
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_beam_elf import PROGBITS, STRTAB, SYMTAB, elf, table

from scope_ebpf.beam.memory.process_memory import Memory
from scope_ebpf.beam.vm import discover
from scope_ebpf.beam.vm.discover import Refusal
from scope_ebpf.daemon.config import Config
from scope_ebpf.daemon.looks import inspector
from scope_ebpf.daemon.looks.discovery import Files, Scanner
from scope_ebpf.daemon.looks.inspector import Looker
from scope_ebpf.daemon.looks.owners import ROOT, Shares
from scope_ebpf.daemon.looks.programs import FIRST, Program
from scope_ebpf.errors import NoSuchProcessError, NotABeamError, NotPermittedError

QUICK = Config(min_age=0.0)


def process(proc, pid, *threads):
    """
    A process with *threads* of these names.
    """
    folder = proc / str(pid)
    for number, name in enumerate(threads or ("beam.smp", "1_scheduler")):
        (folder / "task" / str(pid + number)).mkdir(parents=True)
        (folder / "task" / str(pid + number) / "comm").write_text(name + "\n")
    (folder / "exe").symlink_to("/usr/bin/something")


@pytest.fixture(autouse=True)
def _programs(monkeypatch):
    """
    Each process of the folder runs a program of its own.
    """
    monkeypatch.setattr(
        inspector, "program_at", lambda folder, _: Program(1, int(folder.name), ROOT)
    )


class Discovery(Scanner):
    """
    A scanner with a looker that looks into what is due, one process after the other.
    """

    def __init__(self, proc):
        super().__init__(proc)
        self.looker = Looker(Shares(), proc)

    def take(self, config):
        while due := self.due(1):
            (pid,) = due
            look = self.looker.look(pid, ROOT, config)
            self.looked(pid, look.again, look.exe)
            if look.found:
                return look.found if isinstance(look.found, Refusal) else look.found.target
        return None


@pytest.fixture
def looked(monkeypatch):
    """
    The pids that were looked into; each is a VM that is old enough, unless a test says otherwise.
    """
    pids = []

    def inspect(pid, proc, opened):
        pids.append(pid)
        return SimpleNamespace(pid=pid, exe="/usr/bin/something", node="a@b", started=0.0)

    monkeypatch.setattr(inspector, "inspect", inspect)
    monkeypatch.setattr(inspector, "prepare", lambda *_: None)
    return pids


def test_only_processes_with_schedulers_are_looked_into(tmp_path, looked):
    """
    They are found by the old and new names of their threads, and each is looked into once.
    """
    process(tmp_path, 10, "bash")
    process(tmp_path, 20, "beam.smp", "1_scheduler")
    process(tmp_path, 30, "renamed", "erts_sched_1")
    scanner = Discovery(tmp_path)
    for _ in range(5):
        scanner.scan()
        while scanner.take(QUICK):
            pass
    assert sorted(looked) == [20, 30]


def test_a_process_is_not_due_again_while_it_is_looked_into(tmp_path, looked):
    """
    Many processes are due in portions, and none twice before it was looked into.
    """
    for pid in (20, 30, 40):
        process(tmp_path, pid)
    scanner = Scanner(tmp_path)
    scanner.scan()
    taken = [scanner.due(1) for _ in range(3)]
    assert sorted(taken) == [[20], [30], [40]]
    scanner.scan()
    scanner.started(20, 0.0)
    assert [] == scanner.due(10)
    scanner.looked(20, None, None)
    scanner.started(20, 0.0)
    assert [20] == scanner.due(10)


def test_a_reported_start_is_due_when_the_vm_is_old_enough(tmp_path, looked):
    """
    A pid that the kernel reported is not looked into before its time.
    """
    scanner = Discovery(tmp_path)
    later = time.monotonic() + 1000
    scanner.started(20, later)
    assert scanner.take(QUICK) is None
    assert scanner.next_due() == later
    scanner.started(20, time.monotonic())
    assert scanner.take(QUICK).pid == 20


def test_a_pid_that_is_used_again_is_looked_into_again(tmp_path, looked):
    """
    When a VM has ended, the next process with its number is another one.
    """
    process(tmp_path, 20)
    scanner = Discovery(tmp_path)
    for _ in range(2):
        scanner.scan()
        assert scanner.take(QUICK).pid == 20
        scanner.ended(20)
    assert looked == [20, 20]


def test_a_refused_process_is_tried_again_later(tmp_path, monkeypatch):
    """
    A refusal has its reason, and its pid is due again, but not at once.
    """

    def refuse(pid, proc, opened):
        raise NotPermittedError("no")

    monkeypatch.setattr(inspector, "inspect", refuse)
    scanner = Discovery(tmp_path)
    scanner.started(20, 0.0)
    found = scanner.take(QUICK)
    assert isinstance(found, Refusal)
    assert str(found.reason) == "no"
    assert scanner.next_due() > time.monotonic() + FIRST / 2
    assert scanner.take(QUICK) is None


def test_a_vm_that_has_ended_before_its_look_is_ignored(tmp_path, monkeypatch):
    """
    A VM that ended before the minimum age is forgotten without a line in the log.
    """

    def gone(pid, proc, opened):
        raise NoSuchProcessError("gone")

    monkeypatch.setattr(inspector, "inspect", gone)
    scanner = Discovery(tmp_path)
    scanner.started(20, 0.0)
    assert scanner.take(QUICK) is None
    assert scanner.next_due() is None


def test_a_name_of_ten_kilobytes_on_the_command_line_is_cut(tmp_path):
    """
    A name from the command line is shortened to the maximum of a name.
    """
    line = ctypes.create_string_buffer(b"beam.smp\0-name\0" + b"x" * 10_000 + b"@host")
    begin = ctypes.addressof(line)
    between = "0 " * 44
    (tmp_path / "stat").write_text(f"1 (beam (smp)) S {between}{begin} {begin + len(line)} 0\n")
    assert discover._node_argument(tmp_path, Memory(os.getpid())) == "x" * 255


def test_a_program_outlives_the_process_that_led_to_it():
    """
    The file stays open, so it can be read after that process has ended.
    """
    files = Files()
    first, second = (subprocess.Popen(["/bin/sleep", "60"]) for _ in range(2))
    try:
        program = files.open(Path(f"/proc/{first.pid}/exe"))
        first.kill()
        first.wait()
        assert program.symbol("nothing") is None
        assert files.open(Path(f"/proc/{second.pid}/exe")) is program
    finally:
        second.kill()
        second.wait()


def test_an_error_of_the_system_affects_one_process(tmp_path, looked, monkeypatch):
    """
    A file that cannot be read is a refusal with the reason, and the daemon goes on.
    """

    def inspect(pid, proc, opened):
        raise OSError(5, "Input/output error")

    process(tmp_path, 20)
    monkeypatch.setattr(inspector, "inspect", inspect)
    scanner = Discovery(tmp_path)
    scanner.scan()
    refusal = scanner.take(QUICK)
    assert isinstance(refusal, Refusal)
    assert "Input/output error" in str(refusal.reason)


def test_an_unexpected_error_affects_one_process(tmp_path, looked, monkeypatch):
    """
    An error in a look is a refusal of that process; the next one is looked into.
    """
    good = inspector.inspect

    def inspect(pid, proc, opened):
        if pid == 20:
            raise ZeroDivisionError("never thought of")
        return good(pid, proc, opened)

    monkeypatch.setattr(inspector, "inspect", inspect)
    scanner = Discovery(tmp_path)
    for pid in (20, 30):
        scanner.started(pid, 0.0)
    refusal, target = scanner.take(QUICK), scanner.take(QUICK)
    assert isinstance(refusal, Refusal)
    assert "never thought of" in str(refusal.reason)
    assert target.pid == 30
    assert scanner.next_due() > time.monotonic() + FIRST / 2


def test_a_file_that_lies_about_its_symbols_is_not_a_vm(tmp_path):
    """
    A process that calls a thread 1_scheduler and has symbols outside of its file is ignored.
    """
    pid = os.getpid()  # which is held while it is looked at
    process(tmp_path, pid)
    rows, names = table(
        {
            "etp_otp_release": (0x1000, 3, 1),
            "etp_erts_version": (0x1003, 5, 1),
            "etp_beamasm": (0x9999, 4, 1),
        }
    )
    texts = (PROGBITS, 0x1000, b"25\x0013.1\0")
    sections = {".data": texts, ".symtab": (SYMTAB, 0, rows), ".strtab": (STRTAB, 0, names)}
    (tmp_path / "broken").write_bytes(elf(sections))
    folder = tmp_path / str(pid)
    (folder / "exe").unlink()
    (folder / "exe").symlink_to(tmp_path / "broken")
    (folder / "stat").write_text(f"{pid} (beam.smp) S " + "0 " * 40)
    ids = "\t1000" * 4
    (folder / "status").write_text(f"Tgid:\t{pid}\nUid:{ids}\nGid:{ids}\n")
    scanner = Discovery(tmp_path)
    scanner.scan()
    assert scanner.next_due() == 0.0
    assert scanner.take(QUICK) is None
    assert scanner.next_due() is None
    with pytest.raises(NotABeamError, match="0x9999"):
        discover.inspect(pid, tmp_path)


def test_a_path_that_is_not_utf8_is_shown_as_text(tmp_path, monkeypatch):
    """
    All output about such a program is UTF-8, and a second look finds no change.
    """
    process(tmp_path, 20)
    (tmp_path / "20/exe").unlink()
    (tmp_path / "20/exe").symlink_to("/opt/\udcff/beam.smp")
    path = discover.program_of(tmp_path / "20")
    assert path == "/opt/\ufffd/beam.smp"
    pids = []

    def inspect(pid, proc, opened):
        pids.append(pid)
        return SimpleNamespace(pid=pid, exe=path, node="a@b", started=0.0)

    monkeypatch.setattr(inspector, "inspect", inspect)
    scanner = Discovery(tmp_path)
    for _ in range(3):
        scanner.scan()
        scanner.take(QUICK)
    assert pids == [20]
