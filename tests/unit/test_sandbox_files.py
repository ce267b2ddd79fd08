# SPDX-License-Identifier: Apache-2.0
"""
Files whose paths another user chose: what is opened for reading is a regular file, and below.
"""

from __future__ import annotations

import errno
import os
import pty
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from beams_run import require

from scope_ebpf.errors import RefusedFileError
from scope_ebpf.sandbox import files, proc

MOST = 1 << 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """
    The root of a tenant, beside files that are not the tenant's.
    """
    (tmp_path / "outside").write_text("outside")
    inside = tmp_path / "root"
    inside.mkdir()
    (inside / "good").write_text("inside")
    (inside / "outside").write_text("inside")
    return inside


def opened(root: Path, path: str, most: int = MOST) -> str:
    folder = os.open(root, os.O_PATH)
    try:
        fd = files.open_regular(folder, path, most=most)
    finally:
        os.close(folder)
    with os.fdopen(fd) as file:
        return file.read()


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (None, "good"),
        (None, "/good"),
        (None, "../../good"),
        ("good", "link"),
        ("/good", "link"),
        ("../../../good", "link"),
        ("/outside", "link"),
    ],
)
def test_a_link_leads_to_what_it_names_below_the_root(root: Path, target: str | None, path: str):
    """
    Absolute links and dots stay below the root, as they do for the process itself.
    """
    if target:
        (root / "link").symlink_to(target)
    assert "inside" == opened(root, path)


def test_a_link_to_a_file_of_the_host_leads_nowhere(root: Path):
    """
    A path of the host is looked for below the root, and is not there.
    """
    (root / "link").symlink_to(root.parent / "outside")
    with pytest.raises(FileNotFoundError):
        opened(root, "link")


def test_a_magic_link_is_not_followed(root: Path):
    """
    What the kernel's own links lead to is outside of any root.
    """
    for path in ("proc/self/exe", "proc/self/root/etc/passwd", "proc/self/cwd"):
        with pytest.raises(OSError) as refused:
            opened(Path("/"), path)
        assert errno.ELOOP == refused.value.errno
    (root / "link").symlink_to("/proc/self/exe")
    with pytest.raises(FileNotFoundError):
        opened(root, "link")


@pytest.mark.parametrize("kind", ["fifo", "socket", "folder", "null", "zero", "tty", "pty"])
def test_what_is_no_regular_file_is_not_opened(root: Path, kind: str):
    """
    A FIFO does not block, a device is not started, a terminal is not taken.
    """
    path = root / "odd"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    else:
        require(os.geteuid() == 0, "making device nodes takes root")
        device = {"null": (1, 3), "zero": (1, 5), "tty": (5, 0), "pty": (136, 0)}[kind]
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(*device))
    for take in (lambda: opened(root, "odd"), lambda: files.open_magic(path)):
        with pytest.raises(RefusedFileError, match="no regular file"):
            take()


def test_a_file_that_is_too_large_is_not_opened(root: Path):
    """
    The size is that with its holes; one byte more than is read is too much.
    """
    with (root / "hole").open("wb") as file:
        file.truncate(4 << 40)
    with pytest.raises(RefusedFileError, match="4,398,046,511,104 bytes"):
        opened(root, "hole", files.MAX_DEBUG_FILE)
    assert "inside" == opened(root, "good", most=6)
    with pytest.raises(RefusedFileError, match="6 bytes, at most 5"):
        opened(root, "good", most=5)


def test_a_lease_does_not_block(root: Path):
    """
    The holder of a lease on a file keeps others from opening it, for 45 seconds, but not us.
    """
    script = (
        "import fcntl, os, signal, sys, time\n"
        "signal.signal(signal.SIGIO, signal.SIG_IGN)\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK); print('held', flush=True)\n"
        "time.sleep(100)"
    )
    command = [sys.executable, "-c", script, root / "good"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert "held\n" == holder.stdout.readline()
            with pytest.raises(BlockingIOError):
                opened(root, "good")
        finally:
            holder.kill()


_LEADER = """
import os, sys
from scope_ebpf.sandbox import files, proc
from scope_ebpf.errors import RefusedFileError
how, path = sys.argv[1:]
try:
    if how == "plainly":
        os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    elif how == "magic":
        files.open_magic(path)
    else:
        files.open_regular(os.open("/", os.O_PATH), path, most=1 << 20)
except RefusedFileError:
    pass
print(open("/proc/self/stat").read().rpartition(")")[2].split()[4])
"""


@pytest.mark.parametrize(("how", "taken"), [("plainly", True), ("magic", False), ("below", False)])
def test_a_terminal_does_not_become_ours(tmp_path: Path, how: str, taken: bool):
    """
    A service leads a session without a terminal: a plain open of a tenant's makes it the service's.
    """
    ours, theirs = pty.openpty()
    (tmp_path / "link").symlink_to(os.ttyname(theirs))
    done = subprocess.run(
        [sys.executable, "-c", _LEADER, how, tmp_path / "link"],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    os.close(ours)
    os.close(theirs)
    assert taken == (done.stdout != "0\n")


def test_a_reading_of_proc_is_bounded(tmp_path: Path):
    """
    What the kernel writes of a process may be as long as that process wants.
    """
    (tmp_path / "maps").write_bytes(b"x" * 100)
    assert b"x" * 100 == proc.read_bounded(tmp_path / "maps", most=100)
    with pytest.raises(RefusedFileError, match="more than 99 bytes"):
        proc.read_bounded(tmp_path / "maps", most=99)


def test_an_inode_is_that_of_stat(tmp_path: Path):
    """
    Of a file, of what a link leads to and of a running program, as stat(2) returns them.
    """
    (tmp_path / "link").symlink_to(tmp_path)
    for path in (str(tmp_path), f"{tmp_path}/link", f"/proc/{os.getpid()}/exe"):
        status = Path(path).stat()
        assert (status.st_dev, status.st_ino) == proc.inode_of(path)
    with pytest.raises(FileNotFoundError):
        proc.inode_of(f"{tmp_path}/missing")
