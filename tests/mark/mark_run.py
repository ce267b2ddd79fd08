# SPDX-License-Identifier: Apache-2.0
"""
The command scope-mark, the library and test modules, built once for all tests.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

from beams_run import build, require

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
LIBRARY = ROOT / "scope_mark"
#: In the order in which they must be compiled: a behaviour before those that have it.
MODULES = ("ring", "ring_a", "ring_b", "held", "server", "states", "constructs")


def folder(prefix: str) -> Path:
    """
    A folder that every user may read, removed at the end.
    """
    made = Path(tempfile.mkdtemp(prefix=prefix))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    made.chmod(0o755)
    return made


@functools.cache
def command() -> Path:
    """
    The escript.
    """
    require(shutil.which("escript"), "erlang-base is not installed")
    out = folder("scope-mark-") / "scope-mark"
    subprocess.run(["escript", LIBRARY / "tools/escript.escript", out], check=True)
    return out


def mark(
    *words: str | Path, check: bool = True, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """
    The escript, run on this host's Erlang.
    """
    done = subprocess.run(
        [command(), *words], capture_output=True, text=True, check=False, timeout=timeout
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def run(
    kind: str, program: list[str], modules: Path, check: bool = True, timeout: float = 280
) -> subprocess.CompletedProcess[str]:
    """
    A program of a release's VM, which sees the folder *modules* as ``{}`` in its words.
    """
    this = build(kind)
    words = [word.replace("{}", this.seen(modules)) for word in program]
    done = subprocess.run(
        this.command(words, modules),
        env=this.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done


@functools.cache
def compiled(kind: str) -> Path:
    """
    A folder with ``plain`` (the test modules) and ``lib`` (the library), compiled by that release.
    """
    top = folder("scope-marked-")
    for name in ("plain", "lib", "source"):
        (top / name).mkdir()
    sources = [HERE / f"{name}.erl" for name in (*MODULES, "corpus", "fuzz")]
    for path in (*sources, *(LIBRARY / "src").iterdir()):
        shutil.copy(path, top / "source")
    for names, out in (
        ([f"{{}}/source/{name}.erl" for name in MODULES], "plain"),
        ([f"{{}}/source/{p.name}" for p in sorted((LIBRARY / "src").glob("*.erl"))], "lib"),
        ([f"{{}}/source/{name}.erl" for name in ("corpus", "fuzz")], "lib"),
    ):
        words = [
            *build(kind).erlc,
            "-Werror",
            "+debug_info",
            "-pa",
            "{}/plain",
            "-o",
            f"{{}}/{out}",
        ]
        run(kind, [*words, *names], top)
    return top


def erl(kind: str, modules: Path, *words: str, check: bool = True, timeout: float = 280) -> str:
    """
    What a VM with the library and *words* printed.
    """
    program = [*build(kind).erl, "-noshell", "-pa", "{}/lib", *words]
    return run(kind, program, modules, check=check, timeout=timeout).stdout


def terms(text: str) -> dict[str, int]:
    """
    The counts of a line ``{totals,#{a => 1,...}}.``
    """
    line = next(x for x in text.splitlines() if x.startswith("{totals,"))
    pairs = line.removeprefix("{totals,#{").removesuffix("}}.").split(",")
    return {k.strip("'"): int(v) for k, v in (pair.split(" => ") for pair in pairs)}
