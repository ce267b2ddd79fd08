# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from scope_ebpf import output


def written(path: Path | str, data: bytes, *, whole: bool) -> None:
    """
    Write *data* to *path*, as a document or as a stream.
    """
    if whole:
        with output.Document(str(path)) as document:
            document.file.write(data)
            document.commit()
        return
    with os.fdopen(output.stream(str(path)), "wb") as file:
        file.write(data)


@pytest.fixture(params=[True, False], ids=["document", "stream"])
def whole(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.mark.parametrize("mask", [0, 0o777])
def test_a_file_is_for_its_owner_alone(tmp_path: Path, mask: int, whole: bool):
    """
    What is written can be read by its owner and by no other user, whatever the umask.
    """
    before = os.umask(mask)
    try:
        written(tmp_path / "run.scope", b"names", whole=whole)
    finally:
        os.umask(before)
    assert 0o600 == stat.S_IMODE((tmp_path / "run.scope").stat().st_mode)
    assert ["run.scope"] == [entry.name for entry in tmp_path.iterdir()]


def test_a_file_is_replaced_by_another(tmp_path: Path, whole: bool):
    """
    A file that was there is replaced by a new one: what else has a link to it keeps its contents.
    """
    path, other = tmp_path / "run.scope", tmp_path / "other"
    other.write_bytes(b"precious")
    other.chmod(0o644)
    path.hardlink_to(other)
    written(path, b"new", whole=whole)
    assert (b"new", b"precious") == (path.read_bytes(), other.read_bytes())
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


def test_a_document_is_whole_or_not_there(tmp_path: Path):
    """
    Until a document is whole the old one stays, and one that is given up leaves nothing.
    """
    path = tmp_path / "run.html"
    path.write_bytes(b"old")
    with output.Document(str(path)) as document:
        document.file.write(b"new")
        document.file.flush()
        assert b"old" == path.read_bytes()
    assert b"old" == path.read_bytes()
    with pytest.raises(ZeroDivisionError), output.Document(str(tmp_path / "x")):
        raise ZeroDivisionError
    assert ["run.html"] == [entry.name for entry in tmp_path.iterdir()]


def test_a_stream_can_be_followed(tmp_path: Path):
    """
    A stream has its name before its first byte, and its bytes as they come.
    """
    path = tmp_path / "run.jsonl"
    path.write_bytes(b"old")
    with os.fdopen(output.stream(str(path)), "wb", buffering=0) as file:
        seen = [path.read_bytes()]
        file.write(b"one\n")
        seen.append(path.read_bytes())
    assert [b"", b"one\n"] == seen


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_refused(tmp_path: Path, whole: bool, there: bool):
    """
    Nothing is written through a link, whether it leads to a file or would make one.
    """
    victim, path = tmp_path / "victim", tmp_path / "run.scope"
    if there:
        victim.write_bytes(b"precious")
    path.symlink_to(victim)
    with pytest.raises(OSError, match="it is a link") as error:
        written(path, b"new", whole=whole)
    assert errno.EPERM == error.value.errno
    assert there is victim.exists()
    assert path.is_symlink()
    assert not there or victim.read_bytes() == b"precious"


def test_a_name_that_can_be_guessed_is_not_used(tmp_path: Path, whole: bool):
    """
    A link of the name that a half-written file once had is left alone.
    """
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "run.scope.part").symlink_to(victim)
    written(tmp_path / "run.scope", b"new", whole=whole)
    assert b"precious" == victim.read_bytes()


def test_folders_and_sockets_are_refused(tmp_path: Path, whole: bool):
    """
    What is no file, pipe or character device is refused, each for its reason.
    """
    with pytest.raises(IsADirectoryError):
        written(tmp_path, b"new", whole=whole)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        with pytest.raises(OSError, match="neither a file nor a pipe"):
            written(tmp_path / "socket", b"new", whole=whole)
    with pytest.raises(FileNotFoundError):
        written(tmp_path / "no" / "x", b"new", whole=whole)
    assert ["socket"] == [entry.name for entry in tmp_path.iterdir()]


def test_a_pipe_needs_a_reader(tmp_path: Path, whole: bool):
    """
    A FIFO without a reader is refused at once, and one with a reader is written to.
    """
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with pytest.raises(OSError, match="nobody reads from it"):
        written(path, b"new", whole=whole)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        written(path, b"new", whole=whole)
        assert b"new" == os.read(reader, 100)
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_devices_stay_devices(whole: bool):
    """
    /dev/null takes everything, and what /dev/full refuses is an error.
    """
    written("/dev/null", b"new", whole=whole)
    with pytest.raises(OSError, match="No space left"):
        written("/dev/full", b"new", whole=whole)
    modes = [Path(f"/dev/{name}").stat().st_mode for name in ("null", "full")]
    assert [True, True] == [stat.S_ISCHR(mode) for mode in modes]


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_our_own_descriptors_are_links_that_are_followed(tmp_path: Path, name: str, whole: bool):
    """
    /dev/stdout leads where the parent process lets it, behind what was written there before.
    """
    program = (
        "import os, sys\nfrom scope_ebpf import output\nos.write(1, b'first,')\n"
        f"if {whole}:\n  with output.Document({name!r}) as it:\n"
        "    it.file.write(b'then')\n    it.commit()\n"
        f"else:\n  os.write(output.stream({name!r}), b'then')\n"
    )
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", program], stdout=out, check=True)
    assert b"first,then" == (tmp_path / "out").read_bytes()


def test_a_long_name_has_room(tmp_path: Path, whole: bool):
    """
    The longest name that a file may have is one that can be written.
    """
    path = tmp_path / ("é" * 127)
    written(path, b"new", whole=whole)
    assert b"new" == path.read_bytes()


def test_a_folder_that_is_exchanged_is_not_written_through(tmp_path: Path):
    """
    Who renames the unfinished folder and puts a link there changes nothing where the link leads.
    """
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    out = tmp_path / "out"
    made = output.folder(str(out))
    at = made.__enter__()
    (part,) = tmp_path.glob(".out.*.part")
    part.rename(tmp_path / "moved")
    part.symlink_to(theirs)
    (Path(at) / "table").mkdir()
    written(f"{at}/table/rows", b"rows", whole=True)
    assert b"rows" == (tmp_path / "moved/table/rows").read_bytes()
    with pytest.raises(OSError, match="another user renamed the folder"):
        made.__exit__(None, None, None)
    assert part.is_symlink()
    assert not out.exists()
    assert [] == [*theirs.iterdir(), *(tmp_path / "moved").iterdir()]


@pytest.mark.parametrize("kind", ["link", "open to others", "not empty"])
def test_a_folder_that_comes_in_place_of_the_new_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    """
    What has the new folder's name before it is opened is neither written to nor removed.
    """
    other, make = tmp_path / "other", os.mkdir
    make(other, 0o700)
    if kind == "open to others":
        other.chmod(0o770)
    if kind == "not empty":
        (other / "precious").write_bytes(b"23")
    parts = []

    def exchanged(name: str, mode: int, *, dir_fd: int) -> None:
        parts.append(tmp_path / name)
        if kind == "link":
            parts[0].symlink_to(other)
        else:
            other.rename(parts[0])

    monkeypatch.setattr(os, "mkdir", exchanged)
    reason = "Not a directory" if kind == "link" else "not this user's alone"
    with pytest.raises(OSError, match=reason), output.folder(str(tmp_path / "out")):
        pytest.fail("it was used")
    assert parts[0].is_symlink() == (kind == "link")
    assert (kind == "not empty") == any(parts[0].iterdir())
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("mode", [0o777, 0o755])
def test_a_folder_belongs_to_the_caller_of_sudo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
):
    """
    With all folders and files in it, if that user may write to the folder above it.
    """
    monkeypatch.setenv("SUDO_UID", "65534")
    monkeypatch.setenv("SUDO_GID", "65534")
    tmp_path.chmod(mode)
    with output.folder(f"{tmp_path}/out/") as part:
        (Path(part) / "a/b").mkdir(parents=True)
        written(f"{part}/a/b/rows", b"rows", whole=True)
    assert ["out"] == [entry.name for entry in tmp_path.iterdir()]
    made = [tmp_path / "out", *(tmp_path / "out").rglob("*")]
    assert 4 == len(made)
    assert {65534 if mode == 0o777 else 0} == {path.stat().st_uid for path in made}
    assert b"rows" == (tmp_path / "out/a/b/rows").read_bytes()
