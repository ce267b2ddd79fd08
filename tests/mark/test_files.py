# SPDX-License-Identifier: Apache-2.0
"""
The command on files: what it changes, what it leaves, what it refuses, and that a file is whole at
every moment.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import shutil
import struct
import subprocess

import pytest
from mark_run import LIBRARY, command, compiled, mark, run


@pytest.fixture
def tree(tmp_path):
    """
    A release's folder with the test modules in it.
    """
    shutil.copytree(compiled("stock25") / "plain", tmp_path / "lib/shop/ebin")
    tmp_path.chmod(0o755)
    return tmp_path


def contents(tree):
    """
    Every file of a tree with its bytes, mode and time.
    """
    return {
        str(path): (path.read_bytes(), path.stat().st_mode, path.stat().st_mtime_ns // 10**9)
        for path in sorted(tree.rglob("*"))
        if path.is_file()
    }


def modules(done, status):
    """
    The names of the files that have this status in a JSON document.
    """
    files = json.loads(done.stdout)["files"]
    return {
        f["path"].rpartition("/")[2].removesuffix(".beam") for f in files if f["status"] == status
    }


def test_unmark_gives_every_byte_mode_and_time_back(tree):
    """
    Mark with each profile, mark again, unmark: the tree is what it was.
    """
    beam = tree / "lib/shop/ebin/held.beam"
    beam.chmod(0o640)
    os.utime(beam, (10**9, 10**9))
    before = contents(tree)
    mark(tree, "--profile", "all")
    marked = contents(tree)
    assert all(marked[name][0] != before[name][0] for name in before)
    assert [x[1:] for x in marked.values()] == [x[1:] for x in before.values()]
    again = mark(tree, "--profile", "all")
    assert again.stdout.startswith("marked 0 modules, 7 unchanged")
    assert contents(tree) == marked
    mark(tree, "--profile", "callbacks")
    assert contents(tree) != marked
    mark(tree, "--unmark")
    assert contents(tree) == before


def test_the_profile_of_a_marked_file_can_be_changed(tree):
    """
    Marked twice, a file is as if it had been marked once with the second profile.
    """
    mark(tree, "--profile", "callbacks")
    once = contents(tree)
    mark(tree, "--profile", "all")
    mark(tree, "--profile", "callbacks")
    assert contents(tree) == once
    mark(tree, "--profile", "none")
    assert contents(tree) != once


def test_a_dry_run_changes_nothing(tree):
    """
    A dry run says what would be marked.
    """
    before = contents(tree)
    reported = mark(tree, "--profile", "callbacks", "--dry-run", "--format", "json")
    assert modules(reported, "marked") == {"ring_a", "ring_b", "server", "states"}
    assert contents(tree) == before


@pytest.mark.parametrize(
    ("words", "functions"),
    [
        (["--only", "server:handle_*"], {"server": 4}),
        (["--only", "ring_?"], {}),
        (["--only", "ring*:step/3"], {"ring_a": 1, "ring_b": 1}),
        (["--only", "s*", "--except", "states", "--except", "*:terminate/2"], {"server": 5}),
        (["--except", "*:handle_call/3", "--only", "server"], {"server": 5}),
    ],
)
def test_patterns_choose_functions(tree, words, functions):
    """
    Only what matches one pattern, and none of the exceptions, has an entry marker.
    """
    done = mark(tree, "--profile", "callbacks", "--format", "json", *words)
    files = json.loads(done.stdout)["files"]
    assert {f["module"]: f["functions"] for f in files if f["functions"]} == functions


def test_behaviours_are_read_where_they_lie(tree):
    """
    A behaviour beside the modules is known; one that is elsewhere is named, and found with
    --behaviours.
    """
    (tree / "elsewhere").mkdir()
    shutil.move(tree / "lib/shop/ebin/ring.beam", tree / "elsewhere")
    done = mark(tree / "lib", "--profile", "callbacks", "--format", "json")
    assert json.loads(done.stdout)["unknown_behaviours"] == ["ring"]
    assert modules(done, "marked") == {"server", "states"}
    done = mark(
        tree / "lib",
        "--profile",
        "callbacks",
        "--behaviours",
        tree / "elsewhere",
        "--format",
        "json",
    )
    assert json.loads(done.stdout)["unknown_behaviours"] == []
    assert modules(done, "marked") == {"ring_a", "ring_b"}


def test_a_compressed_file_comes_back_as_it_was(tree):
    """
    A gzip file is marked uncompressed, loads, and is the same gzip file again.
    """
    beam = tree / "lib/shop/ebin/server.beam"
    beam.write_bytes(gzip.compress(beam.read_bytes(), 3, mtime=17))
    before = contents(tree)
    mark(tree, "--profile", "all")
    assert beam.read_bytes().startswith(b"FOR1")
    mark(tree, "--unmark")
    assert contents(tree) == before


def chunk(beam, name):
    """
    Where the contents of a chunk begin, and their size.
    """
    at = beam.index(name)
    return at + 8, struct.unpack(">I", beam[at + 4 : at + 8])[0]


def newer(beam):
    """
    Code with the highest instruction of a release that is not there yet.
    """
    at, _ = chunk(beam, b"Code")
    return beam[: at + 8] + struct.pack(">I", 250) + beam[at + 12 :]


BAD = {
    "nothing": (lambda _: b"", "no .beam file"),
    "text": (lambda _: b"#!/bin/sh\n" * 100, "no .beam file"),
    "truncated": (lambda beam: beam[: len(beam) // 2], "ends too early"),
    "longer": (lambda beam: beam + b"\0\0\0\0", "bytes behind its end"),
    "encrypted": (lambda beam: beam[:20] + os.urandom(len(beam) - 20), "damaged|too early|chunk"),
    "future": (newer, "newer than OTP 29: a newer scope-mark is needed"),
    "bomb": (lambda _: gzip.compress(bytes(200 << 20)), "larger than 128 MiB"),
    "gzip": (lambda beam: gzip.compress(beam)[:-300], "damaged|too early"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_and_stays(tree, name):
    """
    The file is named with the cause on one line, it is as it was, and the others are marked.
    """
    change, cause = BAD[name]
    beam = tree / "lib/shop/ebin/server.beam"
    beam.write_bytes(change(beam.read_bytes()))
    before = beam.read_bytes()
    done = mark(tree, "--profile", "all", check=False)
    assert done.returncode == 1
    assert re.fullmatch(rf"scope-mark: \S*/server\.beam: .*({cause}).*\n", done.stderr)
    assert done.stdout.startswith("marked 6 modules, 1 failed")
    assert beam.read_bytes() == before


def test_a_file_that_was_changed_after_marking_is_refused(tree):
    """
    Stripped or edited, a marked file has no way back, and both commands say so instead of guessing.
    """
    beam = tree / "lib/shop/ebin/server.beam"
    mark(beam, "--profile", "all")
    marked = beam.read_bytes()
    beam.write_bytes(marked.replace(b"handle_cast", b"handle_coat"))
    assert "was changed after it was marked" in mark(beam, "--unmark", check=False).stderr
    beam.write_bytes(marked)
    program = f'beam_lib:strip_files(["{beam}"],["Attr"]),halt().'
    run("stock25", ["erl", "-noshell", "-eval", program], tree)
    stripped = beam.read_bytes()
    for words in (["--unmark"], ["--profile", "callbacks"]):
        assert "strip before marking" in mark(beam, *words, check=False).stderr
    assert beam.read_bytes() == stripped
    assert "profile all, 10 functions" in mark(beam, "--info").stdout


def test_preloaded_modules_are_left_alone(tree):
    """
    The emulator has its own copy of erlang.beam: it is skipped by name, and that is no failure.
    """
    text = "-module(erlang).\n-export([f/0]).\n-compile(no_auto_import).\nf() -> ok.\n"
    (tree / "erlang.erl").write_text(text)
    run("stock25", ["erlc", "-o", "{}", "{}/erlang.erl"], tree)
    done = mark(tree, "--profile", "all", "--format", "json")
    assert modules(done, "skipped") == {"erlang"}


def test_links_are_not_followed(tree, tmp_path_factory):
    """
    A link below the folder leads nowhere, whatever it points to; a link that is named as a
    file is refused.
    """
    other = tmp_path_factory.mktemp("other")
    shutil.move(tree / "lib/shop/ebin/held.beam", other)
    before = contents(other)
    (tree / "lib/shop/ebin/held.beam").symlink_to(other / "held.beam")
    (tree / "lib/other").symlink_to(other)
    done = mark(tree, "--profile", "all")
    assert done.stdout.startswith("marked 6 modules;")
    assert "symbolic link" in mark(tree / "lib/shop/ebin/held.beam", "--unmark", check=False).stderr
    assert contents(other) == before


def test_a_full_disk_leaves_whole_files(tree):
    """
    Where nothing more can be written, every file is as it was and nothing is left behind.
    """
    disk = tree / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=755", "tmp", disk]
    mounted = subprocess.run(words, check=False)
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk takes root")
    try:
        shutil.copy(tree / "lib/shop/ebin/server.beam", disk)
        (disk / "rest").write_bytes(bytes(shutil.disk_usage(disk).free))
        before = contents(disk)
        done = mark(disk, "--profile", "all", check=False)
        assert (done.returncode, contents(disk)) == (1, before)
        assert "no space left on device" in done.stderr
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_read_only_release_stays_as_it_is(tree):
    """
    Files that may not be replaced are named one by one, with the system's reason.
    """
    mounted = subprocess.run(["mount", "--bind", tree / "lib", tree / "lib"], check=False)
    if mounted.returncode != 0:
        pytest.skip("mounting takes root")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", tree / "lib"], check=True)
        before = contents(tree)
        done = mark(tree, "--profile", "all", check=False)
        assert done.returncode == 1
        assert done.stderr.count("read-only file system") == 7
        assert contents(tree) == before
    finally:
        subprocess.run(["umount", tree / "lib"], check=True)


def test_a_file_that_may_not_grow_is_not_cut(tree):
    """
    A limit of file size ends the writing in the middle; the file itself is whole.
    """
    before = contents(tree)
    done = subprocess.run(
        [command(), tree, "--profile", "all"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024)),
    )
    assert done.returncode != 0
    now = contents(tree)
    assert {name: now[name] for name in before} == before


OTHER = 65534


def as_other(tree):
    """
    What a user who is not root gets when marking a folder.
    """
    words = ["setpriv", f"--reuid={OTHER}", f"--regid={OTHER}", "--clear-groups", command()]
    return subprocess.run(
        [*words, tree, "--profile", "all"], capture_output=True, text=True, check=False
    )


def given_away(top):
    """
    A folder and all below it belong to another user.
    """
    for path in (top, *top.rglob("*")):
        os.chown(path, OTHER, OTHER, follow_symlinks=False)


def linked(top, owner):
    """
    A link to a folder, in a folder that every user may write to.
    """
    (top / "shared").mkdir()
    (top / "shared").chmod(0o1777)
    link = top / "shared" / "link"
    link.symlink_to(top / "lib")
    os.chown(link, owner, owner, follow_symlinks=False)
    return link


UNTRUSTED = {
    "owner": (lambda top: given_away(top / "lib"), r"lib.* belongs to user 65534"),
    "parent": (lambda top: os.chown(top, OTHER, OTHER), r" belongs to user 65534"),
    "file": (
        lambda top: os.chown(top / "lib/shop/ebin/server.beam", OTHER, OTHER),
        r"server\.beam\S* belongs to user 65534",
    ),
    "group": (lambda top: (top / "lib/shop").chmod(0o775), r"shop\S* and lead"),
    "others": (lambda top: (top / "lib/shop/ebin").chmod(0o757), r"ebin\S* and lead"),
    "sticky": (lambda top: (top / "lib/shop/ebin").chmod(0o1777), r"ebin\S* and lead"),
}


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away takes root")
@pytest.mark.parametrize("name", UNTRUSTED)
def test_root_writes_only_where_no_other_user_may(tree, name):
    """
    Root changes no file in a folder that another user could swap for a link, and learns whose
    work it is.
    """
    change, cause = UNTRUSTED[name]
    change(tree)
    before = contents(tree)
    done = mark(tree / "lib/shop/ebin", "--profile", "all", check=False)
    assert done.returncode == 1
    assert re.search(cause, done.stderr)
    assert "run it as the folder's owner" in done.stderr
    now = contents(tree)
    changed = {path for path in before if now[path] != before[path]}
    assert now.keys() == before.keys()
    assert not {path for path in changed if name != "file" or path.endswith("server.beam")}


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away takes root")
def test_a_folder_s_owner_marks_it(tree):
    """
    What root refuses, the owner of the folder may do below folders that are root's; a folder of
    root's the owner may not.
    """
    given_away(tree / "lib")
    for path in (tree, *tree.parents):
        if path.stat().st_mode & 1 == 0:
            path.chmod(0o711)
    assert as_other(tree / "lib").stdout.startswith("marked 7 modules;")
    os.chown(tree / "lib/shop", 1, 1)
    assert "belongs to user 1" in as_other(tree / "lib").stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away takes root")
@pytest.mark.parametrize("owner", [0, OTHER])
def test_a_link_in_a_shared_folder_is_not_followed(tree, owner):
    """
    No matter who made it: another user may have put a hard link of a link of root's there.
    """
    link = linked(tree, owner)
    before = contents(tree)
    done = mark(link / "shop/ebin", "--profile", "all", check=False)
    assert (done.returncode, contents(tree)) == (1, before)
    assert "link" in done.stderr


def test_a_link_on_the_way_is_followed(tree):
    """
    A release may be reached by a link such as current, which lies in a folder of its owner.
    """
    (tree / "current").symlink_to("lib/../lib")
    assert mark(tree / "current/shop", "--profile", "all").stdout.startswith("marked 7 modules;")


def test_a_marked_file_runs_as_nobody_else(tree):
    """
    Bits for another user's rights do not come along to the new file.
    """
    beam = tree / "lib/shop/ebin/server.beam"
    beam.chmod(0o6755)
    mark(beam, "--profile", "all")
    assert beam.stat().st_mode & 0o7777 == 0o755


def test_a_folder_with_too_much_in_it_is_refused(tree):
    """
    Seventy sparse files of 127 MiB are more than is read in one run.
    """
    for number in range(70):
        with (tree / f"{number}.beam").open("wb") as file:
            file.truncate(127 << 20)
    done = mark(tree, "--profile", "all", check=False)
    assert (done.returncode, "more than 8 GiB" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ([], "no file or folder was named"),
        (["x"], "say what to mark"),
        (["x", "--profile", "most"], "there is no profile most"),
        (["x", "--profile"], "--profile needs a value"),
        (["x", "--profile", "all", "--unmark"], "only one of"),
        (["x", "--profile=all", "--only", "a:b/many"], "is not MODULE"),
        (["x", "--bogus"], "there is no option --bogus"),
    ],
)
def test_usage_errors_say_what_is_wrong(words, cause):
    """
    A wrong command line ends with 2 and the cause.
    """
    done = mark(*words, check=False)
    assert (done.returncode, cause in done.stderr) == (2, True)


def test_versions_agree():
    """
    The command, the application, the Hex package and the Python package have one version.
    """
    version = mark("--version").stdout.split()[1]
    assert f'{{vsn, "{version}"}}' in (LIBRARY / "src/scope_mark.app.src").read_text()
    assert f'version: "{version}"' in (LIBRARY / "mix.exs").read_text()
    assert f'version = "{version}"' in (LIBRARY.parent / "pyproject.toml").read_text()
