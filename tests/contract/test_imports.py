# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import scope_ebpf

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(scope_ebpf.__file__).parent

#: What each part may import when it runs: a part is a package or a module right below scope_ebpf.
#: Of the package itself, that is where its files lie, everybody may import.
MAY = {
    "__init__": set(),
    # Plain data and arithmetic.
    "arrays": set(),
    "errors": set(),
    "schema": set(),
    "events": {"schema"},
    "numpy_start": set(),
    "output": {"pipes"},
    "pipes": set(),
    "plain": set(),
    "relations": set(),
    "retries": set(),
    "sockets": {"errors", "retries"},
    "suggestions": set(),
    "units": set(),
    "attach": {"events"},
    "results": {"events"},
    "telemetry": {"errors", "events"},
    # Files of strangers: parsed by a confined process, which has no use for the rest.
    "sandbox": {"errors"},
    "cgroups": {"errors", "sandbox"},
    # What knows the BEAM, and nothing of BPF.
    "beam": {
        *("arrays", "errors", "events", "output", "relations", "retries", "sandbox", "suggestions"),
        "telemetry",
    },
    # What is wrong with a VM.
    "checks": {"arrays", "beam", "cgroups", "errors", "relations", "results", "sandbox"},
    "planning": {"attach", "beam", "errors", "events"},
    "user_probes": {"beam", "errors", "events", "planning"},
    "metrics": {"beam", "events", "plain", "relations", "results"},
    # What knows BPF, and nothing of the BEAM.
    "kernel": {"attach", "errors", "events"},
    # Where both sides meet: a session on a target.
    "sessions": {"attach", "beam", "errors", "kernel", "planning"},
    # What is kept and shown.
    "capture": {"attach", "beam", "errors", "events", "relations", "results"},
    "sinks": {"arrays", "capture", "errors", "events", "plain", "results", "user_probes"},
    # What knows both sides.
    "budget": {"beam", "errors", "events", "metrics", "results", "sessions"},
    "daemon": {
        *("attach", "beam", "budget", "cgroups", "errors", "events", "kernel", "metrics", "plain"),
        *("output", "planning", "relations", "runs", "sandbox", "sessions", "telemetry", "units"),
    },
    "runs": {
        *("arrays", "attach", "beam", "budget", "capture", "cgroups", "checks", "errors", "events"),
        *("kernel", "output", "pipes", "planning", "relations", "results", "sandbox", "sessions"),
        *("sinks", "sockets", "telemetry", "user_probes"),
    },
    # Tables on a terminal, whatever is in them.
    "screen": {"pipes"},
    # Commands as tools of a program: they run as processes of their own.
    "mcp": {"attach", "errors", "plain", "telemetry"},
    # Options, one call, one print.
    "cli": {
        *("arrays", "attach", "beam", "capture", "cgroups", "daemon", "errors", "events", "kernel"),
        *("mcp", "numpy_start", "output", "pipes", "planning", "results", "runs", "sandbox"),
        *("screen", "sessions", "sinks", "suggestions", "units", "user_probes"),
    },
}

#: Two sides that know nothing of each other, not even by way of others.
APART = ("beam", "kernel")


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
            if node.module == "scope_ebpf":
                yield from ((node.lineno, f"scope_ebpf.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module
        else:
            waiting += ast.iter_child_nodes(node)


@cache
def imports(path: Path) -> tuple[tuple[int, str], ...]:
    """
    Lines of *path*, and the part of ours that each imports.
    """
    found = ((line, module.split(".")) for line, module in imported(path.read_text()))
    return tuple(
        (line, names[1]) for line, names in found if names[0] == "scope_ebpf" and names[1:]
    )


def parts(package: Path) -> set[str]:
    """
    Packages and modules right below *package*.
    """
    found = {path.relative_to(package).parts[0] for path in package.rglob("*.py")}
    return {name.removesuffix(".py") for name in found}


def violations(package: Path) -> list[str]:
    """
    Imports that no row of MAY allows, and parts that have no row.
    """
    lines = {f"{part}: no row in MAY" for part in parts(package) - MAY.keys()}
    for path in package.rglob("*.py"):
        where = path.relative_to(package)
        part = where.parts[0].removesuffix(".py")
        lines |= {
            f"{where}:{line} imports scope_ebpf.{other}"
            for line, other in imports(path)
            if other in MAY and other not in {part, *MAY.get(part, ())}
        }
    return sorted(lines)


def reached(part: str) -> set[str]:
    """
    All that runs when *part* is imported, by the rows of MAY.
    """
    found, waiting = set(), [part]
    while waiting:
        new = MAY[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def test_each_part_imports_what_its_row_allows():
    """
    Every import in the package is in its part's row, and every part has a row.
    """
    assert [] == violations(PACKAGE)


def test_rows_are_no_wider_than_the_code():
    """
    What a row allows is used, and no row is of a part that has gone.
    """
    used = {part: set() for part in parts(PACKAGE)}
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        used[part] |= {other for _, other in imports(path) if other in MAY and other != part}
    assert used == MAY


@pytest.mark.parametrize("side", APART)
def test_two_sides_know_nothing_of_each_other(side: str):
    """
    Neither side reaches the other, nor a part that is above both, and nothing reaches itself.
    """
    assert not reached(side) & {*APART, "sessions", "budget", "daemon", "runs", "cli"}
    assert not [part for part in MAY if part in reached(part)]


@pytest.mark.parametrize(
    ("place", "statement", "said"),
    [
        ("beam/x.py", "import scope_ebpf.kernel.bpf.ring", "beam/x.py:1 imports scope_ebpf.kernel"),
        ("beam/x.py", "from scope_ebpf import kernel", "beam/x.py:1 imports scope_ebpf.kernel"),
        (
            "results/x.py",
            "def f():\n    from scope_ebpf.kernel.host import facts",
            "results/x.py:2 imports scope_ebpf.kernel",
        ),
        ("new/x.py", "import numpy", "new: no row in MAY"),
        # One for each row that could be widened by a convenient import.
        ("user_probes/x.py", "from scope_ebpf.kernel import host", "kernel"),
        ("metrics/x.py", "from scope_ebpf.daemon import config", "daemon"),
        ("daemon/x.py", "from scope_ebpf.cli import options", "cli"),
        ("runs/x.py", "from scope_ebpf.cli import options", "cli"),
        ("sinks/x.py", "import scope_ebpf.cli.main", "cli"),
        ("kernel/x.py", "from scope_ebpf.beam.elf import usdt", "beam"),
        ("sandbox/x.py", "from scope_ebpf import events", "events"),
        ("budget/x.py", "from scope_ebpf.daemon.watch import Watch", "daemon"),
        ("capture/x.py", "from scope_ebpf.sinks import plain", "sinks"),
        ("attach/x.py", "from scope_ebpf.kernel import host", "kernel"),
        ("cgroups.py", "from scope_ebpf.metrics import reading", "metrics"),
        ("pipes.py", "from scope_ebpf import errors", "errors"),
        ("screen/x.py", "from scope_ebpf.beam.vm import discover", "beam"),
        ("sessions.py", "from scope_ebpf.runs import trace", "runs"),
        ("mcp/x.py", "from scope_ebpf.cli import main", "cli"),
    ],
)
def test_an_import_without_a_row_is_found(tmp_path: Path, place: str, statement: str, said: str):
    """
    Each wrong direction is found by file and line, in whatever form it is written.
    """
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text(statement + "\n")
    assert [said if " " in said else f"{place}:1 imports scope_ebpf.{said}"] == violations(tmp_path)


@pytest.mark.parametrize("part", sorted(MAY))
def test_each_part_is_refused_all_that_its_row_lacks(tmp_path: Path, part: str):
    """
    A planted import of every part that is not in the row is found.
    """
    strange = sorted(MAY.keys() - MAY[part] - {part})
    path = tmp_path / part / "x.py"
    path.parent.mkdir()
    path.write_text("".join(f"import scope_ebpf.{other}\n" for other in strange))
    found = {line.rpartition(".")[2] for line in violations(tmp_path)}
    assert set(strange) == found


@pytest.mark.parametrize(
    ("place", "statement"),
    [
        (
            "cli/x.py",
            "from scope_ebpf.kernel.bpf import ring\nfrom scope_ebpf.beam.elf import usdt",
        ),
        ("kernel/x.py", "from scope_ebpf import events\nimport scope_ebpf.attach.plan"),
        ("kernel/x.py", "if TYPE_CHECKING:\n    from scope_ebpf.beam.elf.usdt import Argument"),
        ("beam/x.py", "import kernel, numpy"),
        ("beam/x.py", "import scope_ebpf"),
    ],
)
def test_an_import_with_a_row_is_not_found(tmp_path: Path, place: str, statement: str):
    """
    What is allowed, and what only the type checker reads, is no violation.
    """
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text(statement + "\n")
    assert [] == violations(tmp_path)


def commands() -> list[Path]:
    """
    The modules of ``scope_ebpf.cli`` that are commands.
    """
    return [path for path in (PACKAGE / "cli").glob("*.py") if "\ndef run(" in path.read_text()]


def test_commands_know_no_other_command():
    """
    What two commands need is in neither of them.
    """
    names = {f"scope_ebpf.cli.{path.stem}" for path in commands()}
    assert len(names) >= 12
    found = [
        f"{path.name}:{line} imports {module}"
        for path in commands()
        for line, module in imported(path.read_text())
        if module in names
    ]
    assert [] == found


def test_arguments_are_parsed_in_commands_alone():
    """
    Below the commands, options are records with fields of their own.
    """
    found = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if path.parent != PACKAGE / "cli" and "argparse" in path.read_text()
    ]
    assert [] == found


#: What takes long to load, and commands that have no use for it.
_LOADED = """
import contextlib, sys
from scope_ebpf.cli import main
with contextlib.suppress(SystemExit):
    main.parsed(sys.argv[1:])
print(*sys.modules, file=sys.stderr)
"""
_HEAVY = {"asyncio", "logging", "multiprocessing", "rich", "shutil", "scope_ebpf.kernel.bpf"}


@pytest.mark.parametrize(
    ("words", "heavy"),
    [
        (["--help"], {"numpy", "dataclasses", "pathlib", *_HEAVY}),
        (["list"], _HEAVY),
        (["ps", "7", "<0.1.0>"], _HEAVY),
        (["top", "7", "--once"], _HEAVY),
    ],
)
def test_a_command_loads_nothing_heavy_that_it_does_not_use(words: list[str], heavy: set[str]):
    """
    The overview loads no numpy, and commands that read memory nothing of BPF or of terminals.
    """
    command = [sys.executable, "-c", _LOADED, *words]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "argparse" in found.stderr.split()
    assert set() == heavy & set(found.stderr.split())
