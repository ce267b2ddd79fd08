# SPDX-License-Identifier: Apache-2.0
"""
Which filesystems answer by themselves, by what the kernel says of a mount.
"""

from __future__ import annotations

import os
from pathlib import Path

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
    return tmp_path


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
def test_who_may_serve_a_file_is_told_by_its_mount(
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
        place = folder / str(number)
        place.mkdir()
        users[place.name] = user
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
    The mount is found as the kernel tells it.
    """
    place = os.open("/proc/self/exe", os.O_PATH)
    try:
        filesystems.require_answers(place, "us", "/proc/self")
        number = filesystems._mount_number(place)
    finally:
        os.close(place)
    assert filesystems._mount("/proc/self", number)
    assert filesystems._mount("/proc/self", 1 << 40) is None
    assert filesystems._mount("/proc/0", number) is None
