# SPDX-License-Identifier: Apache-2.0
"""
What root writes into folders of others harms no file of root's and gives nobody what is not theirs.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

import beams_run
import capture_fixtures
from fakes import NOBODY, as_nobody
from tracing import require_root, scope_trace

from scope_ebpf import output

if TYPE_CHECKING:
    from collections.abc import Iterator

PROBE = "int on_gc_entry(struct pt_regs *ctx) { return 0; }"
#: Every command that writes a file, without its VM.
COMMANDS = {
    "document": ("trace", "--format", "json", "--output"),
    "stream": ("trace", "--format", "jsonl", "--output"),
    "record": ("record", "-o"),
    "ring": ("record", "--ring", "1M", "-o"),
    "profile": ("profile", "-o"),
    "calls": ("calls", "lists:map/2", "--output"),
    "run": ("run", "{probe}", "--output"),
}
EXPORTS = ("perfetto", "jsonl", "otlp", "parquet")


@pytest.fixture(scope="module")
def beam() -> Iterator[beams_run.Beam]:
    require_root()
    with beams_run.planted("stock25") as started:
        yield started


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """
    A folder that belongs to nobody, in one that only root may write to.
    """
    require_root()
    folder = tmp_path / "shared"
    folder.mkdir()
    for part in (tmp_path, *tmp_path.parents):
        if part == Path("/tmp"):
            break
        part.chmod(0o755)
    os.chown(folder, NOBODY.pw_uid, NOBODY.pw_gid)
    (tmp_path / "victim").write_bytes(b"precious")
    return folder


def nobodys(path: Path) -> Path:
    """
    *path*, which belongs to nobody now.
    """
    os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid, follow_symlinks=False)
    return path


def words_of(command: str, beam: beams_run.Beam, folder: Path, path: Path) -> list[str]:
    """
    The command line that writes *path*.
    """
    if command in EXPORTS:
        capture_fixtures.write(folder / "run.scope")
        return ["export", str(folder / "run.scope"), "--to", command, "-o", str(path)]
    probe = folder / "probe.c"
    probe.write_text(PROBE)
    words = [word.format(probe=probe) for word in COMMANDS[command]]
    return [*words, str(path), "--pid", str(beam.pid), "--duration", "0.1"]


@pytest.mark.parametrize("command", [*COMMANDS, *EXPORTS])
def test_no_command_writes_through_a_link(
    beam: beams_run.Beam, shared: Path, tmp_path: Path, command: str
):
    """
    A link, and another user's file, where a command writes: it says so, and nothing changes;
    what it writes beside them is its owner's alone.
    """
    ending = ".html" if command == "profile" else ".out"
    link, path = shared / f"link{ending}", shared / f"free{ending}"
    link.symlink_to(tmp_path / "victim")
    (shared / f"free{ending}.part").symlink_to(tmp_path / "victim")
    refused = scope_trace(*words_of(command, beam, tmp_path, link))
    said = f"scope-trace: cannot write the output {link}: it is a link, and none is followed; "
    assert (10, said) == (refused.code, refused.errors[: len(said)]), refused.errors
    done = scope_trace(*words_of(command, beam, tmp_path, path))
    assert 0 == done.code, done.errors
    facts = path.lstat()
    assert (0o100600, 0) == (facts.st_mode, facts.st_uid)
    assert b"precious" == (tmp_path / "victim").read_bytes()
    assert {link.name, path.name, f"{path.name}.part"} == {entry.name for entry in shared.iterdir()}


@pytest.mark.parametrize("form", ["perfetto", "jsonl"])
def test_a_file_of_another_is_not_replaced(shared: Path, tmp_path: Path, form: str):
    """
    A file that was made beforehand does not take the data, unless the caller asks for that.
    """
    capture_fixtures.write(tmp_path / "run.scope")
    path = shared / "out"
    path.write_bytes(b"theirs")
    nobodys(path)
    words = ["export", str(tmp_path / "run.scope"), "--to", form, "-o", str(path)]
    refused = scope_trace(*words)
    assert 10 == refused.code
    assert f"{path}: it belongs to nobody, and only --force replaces that" in refused.errors
    assert b"theirs" == path.read_bytes()
    assert 0 == scope_trace(*words, "--force").code
    facts = path.stat()
    assert (0o100600, 0) == (facts.st_mode, facts.st_uid)
    assert b"theirs" != path.read_bytes()


def test_a_pipe_without_a_reader_keeps_no_command_waiting(
    beam: beams_run.Beam, shared: Path, tmp_path: Path
):
    """
    A FIFO without a reader is refused in a line, by a stream and by a capture.
    """
    for command in ("stream", "record"):
        path = shared / command
        os.mkfifo(path)
        refused = scope_trace(*words_of(command, beam, tmp_path, path))
        said = f"scope-trace: cannot write the output {path}: nobody reads from it"
        assert (10, said) == (refused.code, refused.errors[: len(said)])


@contextlib.contextmanager
def called_by_nobody() -> Iterator[None]:
    """
    As if nobody had called sudo.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUDO_UID", str(NOBODY.pw_uid))
        patch.setenv("SUDO_GID", str(NOBODY.pw_gid))
        yield


def owner_of_new(path: Path) -> int:
    """
    Write *path* as a document; whose it is then.
    """
    with output.Document(str(path)) as document:
        document.file.write(b"new")
        document.commit()
    return path.lstat().st_uid


def test_a_file_is_given_to_the_user_of_sudo(shared: Path):
    """
    In a folder of their own it is theirs, also where it replaces one of theirs or of root's.
    """
    with called_by_nobody():
        assert NOBODY.pw_uid == owner_of_new(shared / "x")
        assert NOBODY.pw_uid == owner_of_new(shared / "x")
        (shared / "y").write_bytes(b"root's")
        assert NOBODY.pw_uid == owner_of_new(shared / "y")
    assert 0 == owner_of_new(shared / "z")


def test_sudo_gives_no_user_a_file_where_they_could_not_make_one(tmp_path: Path):
    """
    In a folder of root's, and for a file of root's in a sticky one, the new file is root's.
    """
    require_root()
    sticky = tmp_path / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    (sticky / "roots").write_bytes(b"root's")
    with called_by_nobody():
        assert 0 == owner_of_new(tmp_path / "x")
        assert 0 == owner_of_new(sticky / "roots")
        assert NOBODY.pw_uid == owner_of_new(sticky / "new")
    for given in ("0", "-1", "4294967295", "99999999999", "x", ""):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SUDO_UID", given)
            patch.setenv("SUDO_GID", "1")
            assert 0 == owner_of_new(sticky / f"of{given}")


#: Makes the name a link to the victim and removes it, as fast as it can.
SWAPPING = """
import os, sys
print("ready", flush=True)
while True:
    try:
        os.symlink(sys.argv[1], sys.argv[2] + "2")
        os.rename(sys.argv[2] + "2", sys.argv[2])
        os.unlink(sys.argv[2])
    except OSError:
        pass
"""


def test_a_link_that_comes_and_goes_is_never_followed(shared: Path, tmp_path: Path):
    """
    While another makes the output a link and removes it all the time, of 500 documents and streams
    none reaches what the link leads to.
    """
    path, victim = shared / "x", tmp_path / "victim"
    command = as_nobody(sys.executable, "-c", SWAPPING, victim, path)
    refused = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as swapping:
        try:
            assert "ready\n" == swapping.stdout.readline()
            for _ in range(500):
                try:
                    owner_of_new(path)
                    os.close(output.stream(str(path)))
                except OSError:
                    refused += 1
        finally:
            swapping.kill()
    assert 0 < refused
    assert (b"precious", 0) == (victim.read_bytes(), victim.stat().st_uid)
    assert stat.S_IMODE(victim.stat().st_mode) != 0o600
    assert not list(shared.glob(".*.part"))
