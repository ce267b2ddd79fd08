# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Loads the named objects, as a session does, and prints what was wrong.
TAKE = """
import sys
from scope_ebpf.errors import HostError
from scope_ebpf.kernel.bpf.objects import object_bytes
try:
    for family in sys.argv[1:]:
        object_bytes(family)
except HostError as error:
    sys.exit(f"{error.exit_code}: {error}")
"""


class Tree:
    """
    A copy of the sources with two probes, which is built on its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.objects = folder / "scope_ebpf/kernel/objects"
        shutil.copytree(
            ROOT / "scope_ebpf",
            folder / "scope_ebpf",
            ignore=shutil.ignore_patterns("objects", "__pycache__"),
        )
        shutil.copytree(ROOT / "probes", folder / "probes")
        (folder / "docs").mkdir()
        (folder / "packaging").mkdir()
        shutil.copy(ROOT / "packaging/build_objects.py", folder / "packaging")
        for probe in (folder / "probes").glob("*.bpf.c"):
            if probe.name not in ("gc.bpf.c", "code.bpf.c"):
                probe.unlink()

    def build(self) -> None:
        """
        What `make generate objects` does.
        """
        for script in ("probes/generate.py", "packaging/build_objects.py"):
            subprocess.run([sys.executable, script], cwd=self.folder, check=True)

    def edit(self, path: str, old: str, new: str) -> None:
        """
        Replace a text in a source file.
        """
        source = self.folder / path
        text = source.read_text()
        assert old in text
        source.write_text(text.replace(old, new, 1))

    def take(self, *families: str) -> str:
        """
        The error when objects are loaded; empty if there is none.
        """
        command = [sys.executable, "-c", TAKE, *families]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        assert "Traceback" not in done.stderr, done.stderr
        return done.stderr.strip()


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    made = Tree(tmp_path / "tree")
    made.build()
    return made


def test_the_objects_of_one_build_go_together(tree: Tree):
    """
    Objects that were built beside the program are taken, all of them.
    """
    assert "" == tree.take("gc", "code")


def test_an_object_of_another_vocabulary_is_refused(tree: Tree):
    """
    A program that still has the old events.toml refuses objects of the new one, with the remedy.
    """
    events = tree.folder / "scope_ebpf/events.py"
    old = events.read_bytes()
    tree.edit(
        "probes/events.toml", "[flags]", '[flags]\nNEW = "a flag that comes before the others"'
    )
    tree.build()
    assert "" == tree.take("gc", "code")
    events.write_bytes(old)
    said = tree.take("gc")
    assert said.startswith("12: the BPF object gc.bpf.o is of another build than the program: ")
    assert "Start it again" in said


def test_a_program_that_runs_refuses_what_was_rebuilt_under_it(tree: Tree):
    """
    An object is compared with the events.py that the process was started with, not the present one.
    """
    tree.edit(
        "probes/events.toml", "[flags]", '[flags]\nNEW = "a flag that comes before the others"'
    )
    upgrade = "import subprocess, scope_ebpf.events; "
    for script in ("probes/generate.py", "packaging/build_objects.py"):
        upgrade += f"subprocess.run([{sys.executable!r}, {script!r}], check=True); "
    command = [sys.executable, "-c", upgrade + TAKE, "gc"]
    done = subprocess.run(command, cwd=tree.folder, capture_output=True, text=True)
    assert "another build than the program" in done.stderr
    assert "" == tree.take("gc"), "a program that starts now takes them"


def test_objects_of_two_builds_do_not_go_together(tree: Tree):
    """
    Objects share maps, so one that was built with other shared headers is rejected.
    """
    old = (tree.objects / "gc.bpf.o").read_bytes()
    tree.edit("probes/include/quota.bpf.h", "#define SPENT_AT_ONCE 64", "#define SPENT_AT_ONCE 32")
    tree.build()
    assert "" == tree.take("gc", "code")
    (tree.objects / "gc.bpf.o").write_bytes(old)
    assert "" == tree.take("gc"), "alone it counts right"
    said = tree.take("code", "gc")
    assert said.startswith("12: the BPF object gc.bpf.o is of another build than the objects ")


def test_an_object_of_another_build_is_built_again(tree: Tree):
    """
    However new its file is; one of this build is left as it is.
    """
    other, ours = (tree.objects / f"{name}.bpf.o" for name in ("gc", "code"))
    old = other.read_bytes()
    tree.edit("probes/include/quota.bpf.h", "#define SPENT_AT_ONCE 64", "#define SPENT_AT_ONCE 32")
    tree.build()
    other.write_bytes(old)  # as an older checkout leaves it, and newer than every source
    before = ours.stat().st_mtime_ns
    tree.build()
    assert "" == tree.take("code", "gc")
    assert before == ours.stat().st_mtime_ns


def test_an_object_without_a_build_is_refused(tree: Tree):
    """
    An object without a build stamp, old or foreign, is not loaded.
    """
    path = tree.objects / "gc.bpf.o"
    path.write_bytes(path.read_bytes().replace(b"scope-ebpf build", b"whatever it was "))
    assert "another build" in tree.take("gc")


def test_the_probe_of_the_bench_is_compiled_against_these_headers(tmp_path: Path):
    """
    ``bench/burst.bpf.c`` uses what the probes use, and nothing else would find an old name in it.
    """
    script = (
        "import sys, pathlib; sys.path.insert(0, 'packaging'); import build_objects; "
        "build_objects.compile_probe(*map(pathlib.Path, sys.argv[1:]))"
    )
    target = tmp_path / "burst.bpf.o"
    subprocess.run(
        [sys.executable, "-c", script, "bench/burst.bpf.c", target], cwd=ROOT, check=True
    )
    assert target.stat().st_size
