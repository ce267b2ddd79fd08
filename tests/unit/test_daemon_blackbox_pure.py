# SPDX-License-Identifier: Apache-2.0
"""
Which snapshots of memory the daemon keeps, and what is taken for one.
"""

from __future__ import annotations

import os
from collections import Counter
from types import SimpleNamespace

import pytest

from scope_ebpf.cgroups import MemoryLimit
from scope_ebpf.cli.main import main
from scope_ebpf.daemon import blackbox
from scope_ebpf.daemon.blackbox import MOST_FILES, MOST_OF_OWNER, BlackBox, _File, surplus
from scope_ebpf.daemon.config import ConfigError, load
from scope_ebpf.daemon.looks.owners import Owner
from scope_ebpf.errors import NoAnswerError, ScopeError, TooMuchError


class Vm:
    """
    A VM of user *uid* in a cgroup of 1,000 bytes, of which *used* are.
    """

    def __init__(self, pid: int, uid: int, used: int) -> None:
        self.target = SimpleNamespace(pid=pid, started=5.0)
        self.owner, self.used = Owner(uid, ""), used
        self.failed: list[ScopeError] = []

    def fail(self, error: ScopeError) -> None:
        """
        Take why the daemon drops it.
        """
        self.failed.append(error)


@pytest.fixture
def box(tmp_path, monkeypatch):
    """
    A black box whose clock stands still, over VMs that a test plants.
    """
    vms: list[Vm] = []
    now = SimpleNamespace(value=100.0)
    folder = tmp_path / "kept"
    config = SimpleNamespace(blackbox_share=0.9, blackbox_folder=str(folder))
    made = BlackBox(lambda: vms, lambda: config, Counter(), clock=lambda: now.value)
    by_pid = lambda pid: MemoryLimit(next(v.used for v in vms if v.target.pid == pid), 1000, 0)  # noqa: E731
    monkeypatch.setattr(blackbox, "memory_limit", by_pid)
    monkeypatch.setattr(BlackBox, "_snapshot", lambda *_: b'{"time": 1}')
    monkeypatch.setattr(blackbox, "say", lambda *_, **__: None)
    monkeypatch.setattr(blackbox, "_SHARE", float("inf"))
    return SimpleNamespace(box=made, vms=vms, now=now, folder=folder, config=config)


def test_a_vm_is_kept_when_it_nears_its_limit_and_again_when_it_grows(box):
    """
    Not below the share, once at it, soon again if it grew, later even if it did not.
    """
    vm = Vm(7, 23, 899)
    box.vms.append(vm)
    assert [] == box.box.near()
    vm.used = 900
    assert [vm] == box.box.near()
    box.box.keep(vm)
    (file,) = box.folder.iterdir()
    assert (0o600, 0o700) == (file.stat().st_mode & 0o777, box.folder.stat().st_mode & 0o777)
    assert [] == box.box.near()
    box.now.value += 11
    assert [] == box.box.near()
    vm.used = 923
    assert [vm] == box.box.near()
    box.box.keep(vm)
    assert [file] == list(box.folder.iterdir())
    box.now.value += 61
    assert [vm] == box.box.near()
    box.config.blackbox_share = 0
    assert [] == box.box.near()


def test_owners_take_turns_and_replace_their_own_files(box):
    """
    One user's 40 VMs leave four files, and the turn of another's single VM is the second.
    """
    box.vms += [Vm(pid, 23, 999) for pid in range(100, 140)] + [Vm(7, 77, 999)]
    order = []
    while near := box.box.near():
        order.append(near[0].target.pid)
        box.box.keep(near[0])
        box.now.value += 0.001
    assert 7 == order[1]
    assert 41 == len(order)
    names = [path.name for path in box.folder.iterdir()]
    assert MOST_OF_OWNER + 1 == len(names)
    assert 1 == sum("-7-5.json" in name for name in names)


def test_a_vm_whose_memory_hangs_is_dropped(box, monkeypatch):
    """
    And its owner's other VMs are still read; one that is refused is not dropped.
    """
    hangs, refused = Vm(7, 23, 999), Vm(8, 23, 999)
    box.vms += [hangs, refused]
    errors = {7: NoAnswerError("memory does not come"), 8: TooMuchError("too many")}

    def raise_it(_, subject):
        raise errors[subject.target.pid]

    monkeypatch.setattr(BlackBox, "_snapshot", raise_it)
    for vm in (hangs, refused):
        box.box.keep(vm)
    assert ([errors[7]], []) == (hangs.failed, refused.failed)


def test_an_owner_that_owes_nothing_is_read_while_another_pauses(box, monkeypatch):
    """
    A failed look that took a second lets its owner pause for 40 s (twice 20), and nobody else.
    """
    cpu = SimpleNamespace(value=0.0)
    monkeypatch.setattr(blackbox, "_SHARE", 0.05)
    monkeypatch.setattr(blackbox, "cpu_seconds", lambda: cpu.value)
    costly, other, victim = Vm(7, 23, 999), Vm(8, 23, 999), Vm(9, 77, 0)
    box.vms += [costly, other, victim]

    def fails(_, subject):
        cpu.value += 1
        if subject.owner == costly.owner:
            raise TooMuchError("a second")
        return b"{}"

    monkeypatch.setattr(BlackBox, "_snapshot", fails)
    box.box.keep(costly)
    assert [] == box.box.near()
    victim.used = 999
    assert [victim] == box.box.near()
    box.now.value += 39
    assert [victim] == box.box.near()
    box.now.value += 2
    assert [victim, other] == box.box.near()
    # The second failure: two owners share the twentieth, so 40 s, doubled twice.
    box.box.keep(victim)
    box.box.keep(other)
    box.vms.remove(other)
    box.now.value += 159
    assert [victim] == box.box.near()
    box.now.value += 2
    assert [victim, costly] == sorted(box.box.near(), key=lambda vm: -vm.target.pid)


def test_owners_that_end_their_vms_still_owe(box, monkeypatch):
    """
    A VM that starts again in its place is not read before the pause of its owner is over.
    """
    monkeypatch.setattr(blackbox, "_SHARE", 0.05)
    monkeypatch.setattr(blackbox, "cpu_seconds", iter((0.0, 1.0)).__next__)
    box.vms.append(Vm(7, 23, 999))
    box.box.keep(box.vms[0])
    box.vms.clear()
    assert [] == box.box.near()
    box.vms.append(Vm(8, 23, 999))
    box.now.value += 19
    assert [] == box.box.near()
    box.now.value += 2
    assert box.vms == box.box.near()


def test_only_the_folders_of_systemd_are_separated_by_colons(box, monkeypatch, tmp_path):
    """
    A configured folder may have colons in its name.
    """
    box.config.blackbox_folder = str(tmp_path / "a:b")
    assert tmp_path / "a:b" == box.box.folder()
    box.config.blackbox_folder = ""
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path / 'c'}:{tmp_path / 'd'}")
    assert tmp_path / "c" == box.box.folder()


def test_all_owners_together_have_a_fixed_number_of_files():
    """
    Who has most files makes room; a file that is written again takes none.
    """
    files = [_File(f"{number}", f"owner{number // 2}", number) for number in range(MOST_FILES)]
    files[1] = _File("1", "owner7", 1)
    assert ["1"] == surplus(files, "new", "other")
    assert [] == surplus(files, "3", "owner1")
    own = [_File(f"{number}", "one", number) for number in range(MOST_OF_OWNER)]
    assert ["0"] == surplus(own, "new", "one")


def test_a_folder_of_others_is_not_used(box):
    """
    Neither one that others may read nor a link to one.
    """
    vm = Vm(7, 23, 999)
    box.vms.append(vm)
    box.folder.mkdir(mode=0o755)
    box.folder.chmod(0o755)
    assert [] == box.box.near()
    box.folder.rmdir()
    elsewhere = box.folder.with_name("elsewhere")
    elsewhere.mkdir(mode=0o700)
    box.folder.symlink_to(elsewhere)
    assert [] == box.box.near()
    box.box.keep(vm)
    assert [] == list(elsewhere.iterdir())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"time": 1}', "[" * 100_000, "\xff"])
def test_a_file_that_is_no_snapshot_is_refused(text, tmp_path, capsys):
    """
    Whatever it is, in one line.
    """
    path = tmp_path / "other"
    path.write_text(text, "latin-1")
    assert 2 == main(["memory", "--from", str(path)])
    assert "is no snapshot" in capsys.readouterr().err
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert 2 == main(["memory", "--from", str(fifo)])


@pytest.mark.parametrize("value", ['"120%"', "true", '"much"', "-1"])
def test_the_share_is_a_share(value, tmp_path):
    """
    From none to all.
    """
    path = tmp_path / "config.toml"
    path.write_text(f"blackbox_share = {value}\n")
    with pytest.raises(ConfigError, match="blackbox_share"):
        load(path)
    path.write_text('blackbox_share = "80%"\nblackbox_folder = "/var/lib/x"\n')
    assert (0.8, "/var/lib/x") == (load(path).blackbox_share, load(path).blackbox_folder)
