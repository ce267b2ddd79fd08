# SPDX-License-Identifier: Apache-2.0
"""
Which filesystems answer by themselves, by what the kernel says of a mount.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path
from unittest.mock import Mock

import pytest

from scope_ebpf.errors import RefusedFileError
from scope_ebpf.sandbox import filesystems

NUMBER = 67
_BEFORE = "66 1 0:40 / /other rw - fuse.user other rw,user_id=1000\n"
_AFTER = "670 1 0:42 / /another rw - tmpfs none rw\n"
EXT4 = "67 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"
OVERLAY = r"67 1 0:41 / /a\040-\040b rw shared:1 master:2 - overlay over rw,lowerdir=/low"
FUSE = "67 1 0:41 / /mnt rw - fuse.files files rw,user_id={},group_id=0"


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """
    A process's folder; the file that is asked about lies on mount 67.
    """
    monkeypatch.setattr(filesystems, "_mount_number", lambda _: NUMBER)
    monkeypatch.setattr(filesystems, "_OURS", (str(tmp_path / "host"),))
    for name in ("process", "host"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mountinfo").touch()
    return tmp_path / "process"


def why(process: Path) -> str:
    """
    Why its file is refused; "" if it is not.
    """
    try:
        filesystems.require_answers(0, "the program", str(process))
    except RefusedFileError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("row", "by", "reason"),
    [
        (EXT4, (True, True), ""),
        (EXT4, (False, True), ""),
        (OVERLAY, (True, True), ""),
        (OVERLAY, (False, False), ""),
        (OVERLAY, (False, True), "user namespace (overlay)"),
        (OVERLAY.replace("overlay", "shiftfs"), (False, True), "user namespace (shiftfs)"),
        (FUSE.format(0), (True, True), ""),
        (FUSE.format(0), (False, False), "a user's process serves (fuse.files)"),
        (FUSE.format(1000), (True, False), "a user's process serves (fuse.files)"),
        (FUSE.format(1000).replace("fuse.files", "fuseblk"), (True, False), "serves (fuseblk)"),
        (EXT4.replace("ext4", "fusefs"), (False, True), ""),
        (EXT4.replace("67", "68"), (True, False), "not seen any more"),
    ],
)
def test_the_server_of_a_file_is_known_by_its_mount(
    process: Path,
    monkeypatch: pytest.MonkeyPatch,
    row: str,
    by: tuple[bool, bool],
    reason: str,
):
    """
    A user's FUSE is refused, and what may lie upon one; what the host mounted is not.

    *by* is whether the host mounted it, and whether users have FUSE servers.
    """
    (process / "mountinfo").write_text(f"{_BEFORE}{row}\n{_AFTER}")
    monkeypatch.setattr(filesystems, "_is_first", lambda path: path.name == "user" or by[0])
    monkeypatch.setattr(filesystems, "_may_be_served", lambda: by[1])
    found = why(process)
    assert reason in found
    assert bool(reason) == bool(found)


@pytest.mark.parametrize(
    ("mounted", "owners", "served"),
    [(True, (), False), (True, (0, 0), False), (True, (0, 1000), True), (False, (), True)],
)
def test_servers_are_known_by_their_users(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mounted: bool,
    owners: tuple[int, ...],
    served: bool,
):
    """
    Where the kernel lists them; without FUSE there is none.
    """
    folder = tmp_path / "fuse" / "connections"
    assert not filesystems._may_be_served(folder)
    folder.mkdir(parents=True)
    users = {}
    for number, user in enumerate(owners):
        process = folder / str(number)
        process.mkdir()
        users[process.name] = user
    status = Path.stat

    def stat(path: Path, **options: bool) -> os.stat_result:
        fields = list(status(path, **options))
        fields[4] = users.get(path.name, fields[4])
        return os.stat_result(fields)

    monkeypatch.setattr(Path, "is_mount", lambda _: mounted)
    monkeypatch.setattr(Path, "stat", stat)
    assert served == filesystems._may_be_served(folder)


def test_our_own_program_answers():
    """
    The mount is found as the kernel lists it.
    """
    path_fd = os.open("/proc/self/exe", os.O_PATH)
    try:
        filesystems.require_answers(path_fd, "us", "/proc/self")
        number = filesystems._mount_number(path_fd)
    finally:
        os.close(path_fd)
    wanted = b"%d" % number
    assert filesystems._mount("/proc/self", filesystems._NUMBER, wanted)
    assert filesystems._mount("/proc/self", filesystems._NUMBER, b"%d" % (1 << 40)) is None
    assert filesystems._mount("/proc/0", filesystems._NUMBER, wanted) is None


@pytest.mark.parametrize("namespace", ["mnt", "user"])
def test_a_mount_is_the_hosts_by_both_namespaces(
    process: Path, monkeypatch: pytest.MonkeyPatch, namespace: str
):
    """
    A process that sees a server of root must have its mounts and its rights from the host.
    """
    (process / "mountinfo").write_text(FUSE.format(0) + "\n")
    monkeypatch.setattr(filesystems, "_is_first", lambda path: path.name != namespace)
    assert "a user's process serves" in why(process)


def test_a_mount_is_found_of_one_process(process: Path, monkeypatch: pytest.MonkeyPatch):
    """
    Where another process gets the number meanwhile, its namespaces are not taken for the first's.
    """
    (process / "mountinfo").write_text(FUSE.format(0) + "\n")
    link, row = process.with_name("number"), filesystems._row
    link.symlink_to(process)

    def read(*arguments: object) -> bytes | None:
        found = row(*arguments)
        link.unlink()
        link.symlink_to(process.with_name("host"))
        return found

    monkeypatch.setattr(filesystems, "_row", read)
    monkeypatch.setattr(
        filesystems, "_is_first", lambda path: "/host/ns/" in os.path.realpath(path)
    )
    assert "a user's process serves" in why(link)


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The mounts of root are the host's, those of the process are not; users have FUSE servers.
    """
    monkeypatch.setattr(
        filesystems, "_is_first", lambda path: "/host/ns/" in os.path.realpath(path)
    )
    monkeypatch.setattr(filesystems, "_may_be_served", lambda: True)


@pytest.mark.usefixtures("hosts")
def test_a_mount_that_the_host_has_too_is_the_hosts(process: Path):
    """
    A process with a user namespace of its own on an overlay of root's is looked at.
    """
    (process / "mountinfo").write_text(OVERLAY + "\n")
    assert "user namespace (overlay)" in why(process)
    (process.with_name("host") / "mountinfo").write_text(OVERLAY + "\n")
    assert "" == why(process)


@pytest.mark.parametrize(
    ("device", "row", "reason"),
    [
        ((8, 1), "", ""),
        ((0, 41), "", "not seen any more"),
        ((0, 41), FUSE.format(1000), "a user's process serves"),
        ((0, 41), FUSE.format(0), ""),
        ((0, 41), OVERLAY, ""),
        ((0, 41), OVERLAY.replace("0:41", "0:4"), "not seen any more"),
        ((8, 1), FUSE.format(1000).replace("0:41", "8:1"), "a user's process serves"),
    ],
)
def test_a_root_without_a_mount_is_known_by_its_device(
    process: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: tuple[int, int],
    row: str,
    reason: str,
):
    """
    A chroot into a user's filesystem is none into the host's, by whichever user it was made.
    """
    monkeypatch.setattr(filesystems, "_is_first", lambda _: True)
    monkeypatch.setattr(filesystems, "inode_of", lambda _: (os.makedev(*device), 1))
    (process / "root").mkdir()
    (process.with_name("host") / "mountinfo").write_text(
        f"{row.replace('67', '99', 1)}\n" * bool(row)
    )
    found = why(process)
    assert reason in found
    assert bool(reason) == bool(found)


def test_a_mount_is_found_behind_many_others(process: Path, monkeypatch: pytest.MonkeyPatch):
    """
    Many mounts do not hide one: more than 16 MiB are read for one row.
    """
    monkeypatch.setattr(filesystems, "_is_first", lambda _: True)
    other = EXT4.replace("67", "68") + ",x" * 500 + "\n"
    (process / "mountinfo").write_text(other * (18_000_000 // len(other)) + EXT4 + "\n")
    assert "" == why(process)


def test_a_long_row_has_no_other_in_it(process: Path, monkeypatch: pytest.MonkeyPatch):
    """
    A part of a row is no row, and a row whose kind may be behind its end is not used.
    """
    monkeypatch.setattr(filesystems, "_is_first", lambda _: True)
    head = "66 1 0:40 / /other rw - overlay over rw,lowerdir="
    fill = "x" * (filesystems._MOST_ROW - len(head))
    (process / "mountinfo").write_text(f"{head}{fill}{EXT4}\n{FUSE.format(1000)}\n")
    assert "a user's process serves" in why(process)
    (process / "mountinfo").write_text(f"{EXT4}{fill}{fill}\n")
    assert "not seen any more" in why(process)


def test_our_own_rights_are_known_where_no_descriptor_is_left():
    """
    A process without rights is not taken for root of a user namespace, which checks nothing.
    """
    asked = filesystems.in_user_namespace.__wrapped__
    before, limits = asked(), resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        now = asked()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert before == now


def test_unknown_rights_are_an_error(monkeypatch: pytest.MonkeyPatch):
    """
    Only a kernel without user namespaces has none; they are asked for once.
    """
    asked = filesystems.in_user_namespace
    before = asked()
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", Mock(side_effect=PermissionError))
        assert before == asked()
        with pytest.raises(PermissionError):
            asked.__wrapped__()
        patch.setattr(os, "stat", Mock(side_effect=FileNotFoundError))
        assert not asked.__wrapped__()
