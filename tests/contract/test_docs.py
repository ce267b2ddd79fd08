# SPDX-License-Identifier: Apache-2.0
"""
Documents name what exists, and their captured examples are what commands print today.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from captured import Example, examples_of, unknown_lines, words

from scope_ebpf.cli import main

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "probes/README.md"])
FOLDERS = (
    "bench",
    "dashboards",
    "docs",
    "packaging",
    "probes",
    "scope_ebpf",
    "scope_mark",
    "tests",
)
FOLDERS += ("vagrant",)
FILE = re.compile(r"`((?:[\w-]+/)*\w[\w.-]*\.(?:py|c|js|erl|toml|sh|yml))\b[^`]*`")
#: Names in documents that stand for a name.
NAMES = {"my_probe.c", "NAME.py", "FAMILY.bpf.c", "scope_ebpf/beam/layouts/otp-NN.toml"}
NAMES |= {"scope_ebpf/cli/NAME.py", "probes/FAMILY.bpf.c"}
EXAMPLES = [
    example
    for page in PAGES
    for example in examples_of(str(page.relative_to(ROOT)), page.read_text())
]


def present() -> set[str]:
    """
    Every file below the folders, by its whole path.
    """
    return {
        f"/{path.relative_to(ROOT)}" for folder in FOLDERS for path in (ROOT / folder).rglob("*")
    }


def test_links_lead_to_files():
    """
    A link that is none of the net leads to a file of the repository.
    """
    broken = [
        (page.name, link)
        for page in PAGES
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert [] == broken


def test_files_that_are_named_exist():
    """
    A file in a document exists, by its path or by the end of it.
    """
    files = present()
    missing = [
        (page.name, name)
        for page in PAGES
        for name in FILE.findall(page.read_text())
        if name not in NAMES and not any(file.endswith(f"/{name}") for file in files)
    ]
    assert [] == missing


def test_every_package_is_on_the_map():
    """
    ARCHITECTURE.md has a row for each package and module, and none for one that is not there.
    """
    text = (ROOT / "ARCHITECTURE.md").read_text()
    packages = {path.parent.name for path in ROOT.glob("scope_ebpf/*/__init__.py")}
    assert packages == set(re.findall(r"^\| `scope_ebpf/(\w+)/`", text, re.MULTILINE))
    modules = {path.name for path in ROOT.glob("scope_ebpf/*.py")} - {"__init__.py"}
    cells = re.findall(r"^\| (`scope_ebpf/\w+\.py`[^|]*) \|", text, re.MULTILINE)
    assert modules == set(re.findall(r"(\w+\.py)`", " ".join(cells)))


def test_each_figure_of_the_readme_names_the_script_that_prints_it():
    """
    The table of costs has a script of bench/ in each row.
    """
    text = (ROOT / "README.md").read_text().partition("## What it costs")[2]
    rows = re.findall(r"^\| .* \|$", text.partition("\n\n## ")[0], re.MULTILINE)[2:]
    assert len(rows) == 4
    assert [] == [row for row in rows if not re.search(r"\| `bench/\w+\.py[^`]*` \|$", row)]


def test_examples_are_found():
    """
    Each command whose output is text has an example somewhere.
    """
    shown = {word for example in EXAMPLES for word in example.command.split()}
    assert {"schedulers", "top", "ps", "profile", "calls", "record", "export", "run"} <= shown


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: f"{e.page}: {e.command}")
def test_an_example_is_what_is_printed_today(example: Example):
    """
    Headings, labels, messages and fields of a captured output are those of the package.
    """
    assert example.output
    assert [] == unknown_lines(example.output)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: f"{e.page}: {e.command}")
def test_the_command_of_an_example_is_accepted(example: Example):
    """
    Its options are those that the command has.
    """
    line = re.split(r" \||2>", example.command)[0]
    quoted = re.sub(r"^sudo ", "", line).replace("'", "").split()[1:]
    assert main.parsed(quoted)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: f"{e.page}: {e.command}")
def test_an_example_is_of_the_process_that_was_asked_for(example: Example):
    """
    The pid in the output is that of the command.
    """
    asked = re.search(r"--pid (\d+)", example.command)
    shown = re.findall(r"\bpid (\d+)\b|\bprocess (\d+)\b", "\n".join(example.output))
    assert not asked or {asked[1]} >= {pid for pair in shown for pid in pair if pid}


@pytest.mark.parametrize(
    "line",
    [
        "=INFO REPORT==== 27-Nov-2026::10:00:00 ===",
        "cost: 3,579 traps, 0.006 s of CPU",
        "scope-trace: tracing process 7 for 5 s; Ctrl-D ends it",
        "PID         NAME OR INITIAL CALL REDUCTIONS MEMORY MAIL STATUS",
        "  nickname      till",
        "15:09:54.541730 <0.98.0>       schedule/in      reductions=15",
        '{"time":1.5,"event":"hibernate","tid":1,"pid":"<0.9.0>"}',
    ],
)
def test_a_line_that_nothing_prints_is_found(line: str):
    """
    Lines of an older version, of the node itself, and without who an event is of.
    """
    assert [line] == unknown_lines([line])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_keys_of_documents_are_those_of_the_package(page: Path):
    """
    Each key of a JSON document that a page shows is a text of the package.
    """
    blocks = re.findall(r'^    \{"schema"(?:.*\n)+?(?=\n|\Z)', page.read_text(), re.MULTILINE)
    keys = {key for block in blocks for key in re.findall(r'"(\w+)":', block)}
    assert keys <= words()
