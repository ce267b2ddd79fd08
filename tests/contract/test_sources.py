# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from beams_run import require

from scope_ebpf import errors, events

ROOT = Path(__file__).parents[2]
LICENSED = (".py", ".c", ".h", ".erl", ".ex", ".sh")
#: Where packages come from is a matter of each machine's own settings. Put together, so that this
#: file does not name them.
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("deb", "debian", "org"),
        ("snapshot", "debian", "org"),
        ("archive", "ubuntu", "com"),
        ("pypi", "org"),
        ("files", "pythonhosted", "org"),
        ("registry", "npmjs", "org"),
        ("repo", "hex", "pm"),
        ("github", "com"),
    )
]
GITHUB = REGISTRIES.pop()


def tracked() -> list[Path]:
    """
    The files that the repository knows, and that are there.
    """
    require(shutil.which("git") and (ROOT / ".git").exists(), "this is no git checkout")
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def text(path: Path) -> str:
    return path.read_text(errors="replace")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def license_of(path: Path) -> str | None:
    head = "\n".join(text(path).splitlines()[:3])
    found = re.search(r"SPDX-License-Identifier: ([\w.-]+)", head)
    return found and found[1]


def test_every_source_names_its_licence():
    """
    BPF programs are under the GPL 2, because the kernel asks for it; all else is under Apache 2.
    """
    wrong = {}
    for path in tracked():
        if path.suffix not in LICENSED:
            continue
        header = path.is_relative_to(ROOT / "probes") and path.suffix == ".h"
        of_the_kernel_side = header or path.name.endswith(".bpf.c")
        expected = "GPL-2.0-only" if of_the_kernel_side else "Apache-2.0"
        if license_of(path) != expected:
            wrong[name(path)] = license_of(path)
    assert {} == wrong


def test_no_file_names_a_package_registry():
    """
    Packages come from wherever the machine's own tools are set up to take them.
    """
    named = [(name(path), host) for path in tracked() for host in REGISTRIES if host in text(path)]
    assert [] == named


def test_only_documents_link_to_the_forge():
    """
    Nothing that runs or is built refers to a repository on the net.
    """
    documents = (".md", ".rst", ".1", ".8", ".html")
    named = [
        name(path)
        for path in tracked()
        if path.suffix not in documents and not path.is_relative_to(ROOT / "docs")
        if GITHUB in text(path)
    ]
    assert [] == named


def test_each_error_has_its_own_exit_code():
    """
    A script can see from the exit code what went wrong: no two errors share one, but that a
    target became another process is one way for it to end, and no answer one way to take too much.
    """
    codes = {
        error.__name__: error.exit_code
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.ScopeError)
    }
    assert codes.pop("TargetChangedError") == codes["TargetEndedError"]
    assert codes.pop("NoAnswerError") == codes["TooMuchError"]
    assert len(codes) == len(set(codes.values()))
    assert codes.pop("ScopeError") == errors.UNEXPECTED == os.EX_SOFTWARE
    assert set(codes.values()) <= set(range(2, 64))
    assert codes["UsageError"] == 2


def printed(path: Path) -> list[str]:
    """
    What a file prints by itself, other than texts of its own and JSON, which escapes.
    """
    return [
        f"{name(path)}:{node.lineno}"
        for node in ast.walk(ast.parse(text(path)))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
        if not all(isinstance(argument, ast.Constant) for argument in node.args)
        if not any("json" in ast.dump(argument) for argument in node.args)
    ]


def test_texts_reach_a_terminal_through_one_place():
    """
    Commands and sinks print through ``say``, which lets no control character pass; what else
    they print is JSON, or a hash that they have made.
    """
    packages = [ROOT / "scope_ebpf" / package for package in ("cli", "runs", "sinks")]
    found = [place for package in packages for path in package.rglob("*.py")
             for place in printed(path)]  # fmt: skip
    files = sorted(place.rpartition(":")[0] for place in found)
    allowed = {
        "scope_ebpf/sinks/plain.py": 1,
        "scope_ebpf/cli/daemon.py": 1,
        "scope_ebpf/cli/top.py": 1,
    }
    assert allowed == {file: files.count(file) for file in files}


def undescribed(source: str) -> list[str]:
    """
    The tests of a file without a docstring that is one sentence.
    """
    return [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        if not (ast.get_docstring(node) or "").endswith(".")
    ]


def test_every_test_says_what_it_shows():
    """
    The docstrings of the tests, one after the other, are the specification.
    """
    tests = [path for path in tracked() if path.name.startswith("test_") and path.suffix == ".py"]
    bare = [(name(path), test) for path in tests for test in undescribed(text(path))]
    assert [] == bare


@pytest.mark.parametrize("body", ["pass", '"""no full stop"""', "'''x.'''"])
def test_a_test_without_a_sentence_is_found(body: str):
    """
    The check above sees a test that says nothing.
    """
    found = undescribed(f"def test_x():\n    {body}\n")
    assert ([] if body.endswith(".'''") else ["test_x"]) == found


def test_the_timer_is_as_fast_as_the_programs_take_it_to_be():
    """
    The programs compute the time between two samples from the rate that Python sets.
    """
    header = text(ROOT / "probes/include/thread_times.bpf.h")
    assert "#define SAMPLE_NS (1000000000ULL / SAMPLE_HZ)" in header
    assert "SAMPLE_HZ" not in defined(ROOT / "probes/include/thread_times.bpf.h")
    assert events.SAMPLE_HZ == defined(ROOT / "probes/include/events.generated.h")["SAMPLE_HZ"]


def defined(path: Path) -> dict[str, int]:
    """
    The numbers that a C file defines, by name.
    """
    found = re.findall(r"^#define (\w+)\s+(\d+)\b", text(path), re.MULTILINE)
    return {name: int(value) for name, value in found}


def test_a_constant_of_both_languages_is_written_once():
    """
    C and Python have the same numbers from events.toml, and no probe defines one of them itself.
    """
    toml = tomllib.loads(text(ROOT / "probes/events.toml"))
    wanted = {name: constant["value"] for name, constant in toml["constants"].items()}
    generated = defined(ROOT / "probes/include/events.generated.h")
    assert wanted == {name: generated[name] for name in wanted}
    assert wanted == {name: getattr(events, name) for name in wanted}
    probes = [*ROOT.glob("probes/*.bpf.c"), *ROOT.glob("probes/include/*.bpf.h")]
    assert [] == [(p.name, n) for p in probes for n in defined(p) if n in wanted]


#: What reads files of ours as text, or splits what is no text of /proc.
_TEXTS = {
    "cli/run.py", "daemon/config.py", "errors.py",
    "kernel/attach/attacher.py", "kernel/attach/perf_events.py", "kernel/bpf/compiler.py",
    "kernel/observers/thread_watch.py", "metrics/catalogue.py", "metrics/compat.py",
    "pipes.py", "user_probes/source.py",
}  # fmt: skip


def as_text(source: str) -> list[int]:
    """
    Lines that open a file as text, or split a text at more than newlines.
    """
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        what = getattr(call.func, "attr", None)
        modes = [*call.args[1:2], *(word.value for word in call.keywords if word.arg == "mode")]
        binary = any(isinstance(mode, ast.Constant) and "b" in str(mode.value) for mode in modes)
        opens = isinstance(call.func, ast.Name) and call.func.id == "open" and not binary
        if opens or what in ("read_text", "splitlines"):
            found.append(call.lineno)
    return found


def test_texts_of_proc_are_read_as_bytes():
    """
    Opening as text makes a newline of a carriage return, which a tenant may have in a name.
    """
    package = ROOT / "scope_ebpf"
    found = {
        str(path.relative_to(package)) for path in package.rglob("*.py") if as_text(text(path))
    }
    assert _TEXTS == found


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("Path('/proc/1/status').read_text()", [1]),
        ("with open('/proc/1/stat') as file:\n    file.read().splitlines()", [1, 2]),
        ("open('/proc/1/stat', 'rb')\nopen('x', mode='rb')\nPath('x').read_bytes()", []),
    ],
)
def test_a_file_that_is_read_as_text_is_found(source: str, lines: list[int]):
    """
    By its line, however it is opened.
    """
    assert lines == sorted(as_text(source))


#: Words that our texts do without: each stood for several of the field's terms.
OUT = re.compile(r"\b(?:told|tells|whoever|somebody|luck|doors|rang|hasten|heed)\b", re.IGNORECASE)


def test_texts_are_in_the_words_of_the_field():
    """
    In code, comments, documents and dashboards; licenses are as they are.
    """
    own = [
        path for path in tracked() if path.name not in ("LICENSE", "COPYING", Path(__file__).name)
    ]
    found = [
        f"{name(path)}:{number} {match[0]}"
        for path in own
        for number, line in enumerate(text(path).splitlines(), 1)
        if (match := OUT.search(line))
    ]
    assert [] == found
