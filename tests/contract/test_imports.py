# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ast
from collections import deque
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import scope_ebpf

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(scope_ebpf.__file__).parent

#: What may not be imported by whom. A part is a package or a module right below scope_ebpf.
PURE = (
    *("allowed", "beam", "events", "plan", "planning", "profile", "summary", "calls"),
    *("metrics", "governor", "labels", "errors", "capture"),
)
FORBIDDEN = {
    **{key: {"kernel", "cli", "sinks"} for key in PURE},
    "sinks": {"kernel", "cli"},
    "kernel": {"beam", "cli", "sinks", "metrics"},
    # It runs confined, so it has no use for the rest.
    "sandbox": {"beam", "kernel", "cli", "sinks", "metrics", "daemon", "events", "capture"},
}


def imported(source: str) -> Iterator[tuple[int, str]]:
    """
    Every module of ours that *source* imports when it runs, with the line.
    """
    waiting = list(ast.parse(source).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that they can be read"
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        else:
            waiting += ast.iter_child_nodes(node)


@cache
def imports(path: Path) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """
    Lines of *path*, and what each imports of ours: its name behind scope_ebpf, in parts.
    """
    found = ((line, module.split(".")) for line, module in imported(path.read_text()))
    return tuple((line, tuple(names[1:])) for line, names in found if names[0] == "scope_ebpf")


def files(package: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """
    The files that run when a module is imported, its packages' among them.
    """
    for length in range(len(names) + 1):
        place = package.joinpath(*names[:length])
        yield from (p for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file())


def wrong(package: Path, start: Path, forbidden: set[str]) -> Iterator[str]:
    """
    What *start* imports of *forbidden* parts, itself or by way of others, each part by the
    shortest way.
    """
    where = start.relative_to(package)
    seen, said = {start}, set()
    waiting = deque([(start, 0, ())])
    while waiting:
        path, first, way = waiting.popleft()
        for number, names in imports(path):
            line = first or number
            if names and names[0] in forbidden:
                if not way or names[0] not in said:
                    by = f" by way of {', '.join(way)}" if way else ""
                    yield f"{where}:{line} imports scope_ebpf.{names[0]}{by}"
                said.add(names[0])
                continue
            for file in set(files(package, names)) - seen:
                seen.add(file)
                waiting.append((file, line, (*way, str(file.relative_to(package)))))


def violations(package: Path) -> list[str]:
    lines = set()
    for path in sorted(package.rglob("*.py")):
        part = path.relative_to(package).parts[0].removesuffix(".py")
        lines |= set(wrong(package, path, FORBIDDEN.get(part, set())))
    return sorted(lines)


def test_imports_go_one_way():
    """
    What knows the BEAM knows nothing of the kernel side, nor that of it; only the commands know
    both.
    """
    assert [] == violations(PACKAGE)


@pytest.mark.parametrize(
    ("place", "statement", "said"),
    [
        ("beam/x.py", "import scope_ebpf.kernel.ring", "beam/x.py:1 imports scope_ebpf.kernel"),
        ("beam/x.py", "from scope_ebpf import kernel", "beam/x.py:1 imports scope_ebpf.kernel"),
        ("plan.py", "from scope_ebpf.kernel import host", "plan.py:1 imports scope_ebpf.kernel"),
        (
            "summary.py",
            "def f():\n    from scope_ebpf.kernel.host import facts",
            "summary.py:2 imports scope_ebpf.kernel",
        ),
        ("sinks/x.py", "import scope_ebpf.cli.main", "sinks/x.py:1 imports scope_ebpf.cli"),
        (
            "kernel/x.py",
            "from scope_ebpf.beam import usdt",
            "kernel/x.py:1 imports scope_ebpf.beam",
        ),
    ],
)
def test_an_import_the_wrong_way_is_found(tmp_path: Path, place: str, statement: str, said: str):
    """
    Each wrong direction is found by file and line, in whatever form it is written.
    """
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text(statement + "\n")
    assert [said] == violations(tmp_path)


def test_an_import_by_way_of_others_is_found(tmp_path: Path):
    """
    Who imports a module imports what that one imports, and so on; each file on the way is named.
    """
    for name, statement in {
        "kernel/x.py": "import numpy\nfrom scope_ebpf import middle",
        "middle.py": "from scope_ebpf.other import y",
        "other/__init__.py": "from scope_ebpf.beam.usdt import parse",
        "other/y.py": "from scope_ebpf import middle",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(statement + "\n")
    said = "kernel/x.py:2 imports scope_ebpf.beam by way of middle.py, other/__init__.py"
    assert [said] == violations(tmp_path)


@pytest.mark.parametrize(
    ("place", "statement"),
    [
        ("cli/x.py", "from scope_ebpf.kernel import ring\nfrom scope_ebpf.beam import usdt"),
        ("kernel/x.py", "from scope_ebpf import events\nimport scope_ebpf.plan"),
        ("kernel/x.py", "if TYPE_CHECKING:\n    from scope_ebpf.beam.usdt import Argument"),
        ("beam/x.py", "import kernel, numpy"),
    ],
)
def test_an_import_the_right_way_is_not_found(tmp_path: Path, place: str, statement: str):
    """
    What is allowed, and what only the type checker reads, is no violation.
    """
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text(statement + "\n")
    assert [] == violations(tmp_path)
