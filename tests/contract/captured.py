# SPDX-License-Identifier: Apache-2.0
"""
Captured examples of documents, held against the source of the package.

An example is an indented block with a line ``$ ... scope-trace ...``. Each line of its output must
be one that the package prints today: a message from a text of its source, a heading made of its
headings, a row below a heading, or an event with the fields of that event.
"""

from __future__ import annotations

import ast
import io
import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import scope_ebpf
from scope_ebpf import events
from scope_ebpf.sinks.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SOURCES = Path(scope_ebpf.__file__).parent
#: Probes of users, which have events of their own.
PROBES = Path(__file__).parents[2] / "docs/examples/run"
#: Letters that a text with parts to fill in must have: without them it would fit any line.
FEWEST_LETTERS = 8
#: Lines that one message may be broken into.
MOST_LINES = 4
#: What is filled into a text.
GAP = "\0"

CLOCK = r"\d\d:\d\d:\d\d\.\d{6} "
#: Lines of few letters, which no text of the source distinguishes.
FORMS = [
    re.compile(form)
    for form in (
        r"\.\.\.|─+",
        r"<[\d.]+>",  # whom the lines below are of
        r" +in \S+:\S+/\d+(  \(\S+:\d+\))?",  # the innermost frame of a stack
        # A request, and what was done in it.
        r"[\d.]+\w?s [^<]* <[\d.]+>(  failed)?",
        r"[\d.]+\w?s +[\w.*]+ +[\d.]+\w?s  .*",
        r"memory +[\d.]+ \wB(, resident [\d.]+ \wB)?",
        r"\S+ \S+ \.\. \S+ \S+ +[\d,]+ \|[# ]*\|",  # a slot of a histogram
        r"\S+  pid \d+  OTP \d+ \((jit|emu)\)(, by \w+)?",  # whom a table is of
        CLOCK + r"<[\d.]+> +\S+  \S+( v\d+)?\(.*\) <- \S.*",  # a call
        r"  \S+ -> \S+  [\d.]+(  [\d.]+)?",  # who waits for whom
        r"and \d+ more",
        # Who waited all the time, why, and where.
        r" +[\d,]+  \S.*: (waits|suspended|on a dirty)[^:]*, in \S+:\S+/\d+(, called by \S+.*)?",
        r" +[\d,]+  \(\d+ more\)",
    )
]
#: Figures of few letters in a line of several.
FIGURES = re.compile(
    r"\S+@\S+|by \w+|pid \d+|OTP \d+ \((jit|emu)\)|memory [\d.]+ \wB|dirty (cpu|io) \d+%"
    r"|up( \d+[dhms])+"
)


class Example(NamedTuple):
    """
    A captured command, and the lines that it printed.
    """

    page: str
    command: str
    output: tuple[str, ...]


def examples_of(page: str, text: str) -> Iterator[Example]:
    """
    Each captured command of a document.
    """
    blocks = re.findall(r"(?:^    .*\n(?:^[ \t]*\n(?=    ))*)+", text, re.MULTILINE)
    for block in blocks:
        lines = [line.removeprefix("    ") for line in block.splitlines()]
        starts = [number for number, line in enumerate(lines) if line.startswith("$ ")]
        ends = [*starts[1:], len(lines)]
        for start, end in zip(starts, ends, strict=False):
            if "scope-trace" in lines[start]:
                yield Example(page, lines[start][2:], tuple(lines[start + 1 : end]))


def _text_of(node: ast.AST) -> str:
    """
    A string of the source, with a gap for each part that is filled in.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        text = node.value
    elif isinstance(node, ast.JoinedStr):
        parts = (part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
        text = "".join(map(str, parts))
    else:
        return ""
    return re.sub(r"\[/?\w+\]", "", text)


@cache
def texts() -> frozenset[str]:
    """
    Every line of every string of the package.
    """
    trees = (ast.parse(path.read_text()) for path in SOURCES.rglob("*.py"))
    found = (_text_of(node) for tree in trees for node in ast.walk(tree))
    return frozenset(line for text in found for line in text.split("\n") if line.strip())


@cache
def words() -> frozenset[str]:
    """
    Texts in which nothing is filled in: headings, labels, keys.
    """
    return frozenset(text.strip() for text in texts() if GAP not in text)


@cache
def messages() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """
    Every line that a text of the package can become, with the longest part that is always in it.
    """
    lines = {text.removeprefix("scope-trace: ").strip() for text in texts()}
    said = [line.split(GAP) for line in lines if sum(map(str.isalpha, line)) >= FEWEST_LETTERS]
    return tuple(
        (max(parts, key=len), re.compile(".*".join(map(re.escape, parts)))) for parts in said
    )


def is_message(line: str) -> bool:
    """
    Whether the package has a text for the line, or for what follows its first words.
    """
    marks = ("", "scope-trace: ", "note: ", CLOCK + r"-- \S+( v\d+)?", CLOCK, r"\S+@\S+ ")
    rest = {re.sub(f"^{mark}", "", line).strip() for mark in marks}
    return any(part in text and form.fullmatch(text) for part, form in messages() for text in rest)


def is_heading(line: str) -> bool:
    """
    Whether the line is made of headings of the package, and of nothing else.
    """
    left = line.split()
    if len(left) < 2 or "  " not in line.strip():
        return False
    while left:
        fits = [n for n in range(len(left), 0, -1) if " ".join(left[:n]) in words()]
        if not fits:
            return False
        left = left[fits[0] :]
    return True


def is_labelled(line: str) -> bool:
    """
    Whether the line is a label of the package and a value.
    """
    label = re.match(r"  (\w+(?: \w+)*)  +\S", line)
    return bool(label) and label[1] in words()


class _Terms:
    def texts(self, terms: list[int], *, text_pids: bool) -> list[str | None]:
        return [f"t{term}" for term in terms]


@cache
def fields_of(event: str) -> tuple[str, ...]:
    """
    The keys of a line of JSON of an event.
    """
    row = np.zeros(1, events.RECORDS[event])
    row["kind"], row["ring_length"] = events.KINDS[event].id, 56
    output = io.StringIO()
    sink = Stream(output, _Terms(), "jsonl", lambda pids: dict.fromkeys(pids, "name"))
    sink.write(row.view(events.RECORD))
    return tuple(json.loads(output.getvalue()))


def own_fields(event: str) -> list[str]:
    """
    The fields of an event that an example of ``scope-trace run`` declares.
    """
    declared = "".join(path.read_text() for path in PROBES.glob("*.c"))
    found = re.search(rf"BEAM_EVENT\({event}, (.*)\)", declared)
    return re.findall(r"(\w+);", found[1]) if found else []


def is_event(line: str) -> bool:
    """
    Whether the line is an event as a stream writes it now: who, and the fields of that event.
    """
    if line.startswith("{"):
        shown = json.loads(line)
        return tuple(shown) == fields_of(shown["event"])
    found = re.fullmatch(CLOCK + r"(<[\d.]+>|-) +\S+ +(\w+)(?:/\w+)?( .*)?", line)
    if not found:
        return False
    fields = fields_of(found[2]) if found[2] in events.KINDS else own_fields(found[2])
    known = {re.sub("_(seconds|bytes|ns)$", "", field) for field in fields}
    shown = set(re.findall(r"(\w+)=", found[3] or ""))
    return bool(known) and shown <= known


def whole_lines(output: Sequence[str]) -> list[str]:
    """
    The lines, where those that show a time were broken by hand and indented.
    """
    made: list[str] = []
    for line in output:
        if made and line.startswith(" " * 8) and re.match(CLOCK, made[-1]):
            made[-1] += f" {line.strip()}"
        else:
            made.append(line)
    return made


def is_figures(line: str) -> bool:
    """
    Whether the line is made of figures of the package, with two spaces between them.
    """
    parts = line.split("  ")
    return len(parts) > 1 and all(is_message(part) or FIGURES.fullmatch(part) for part in parts)


def unknown_lines(output: Sequence[str]) -> list[str]:
    """
    Lines that no command prints today.
    """
    unknown, left, rows = [], whole_lines(output), False
    while left:
        line, taken = left[0], 1
        if not line.strip():
            rows = False
        elif is_heading(line):
            rows = True
        elif is_figures(line):
            rows = False
        elif not (rows and not line.split()[0].endswith(":")):
            taken = _lines_of_one(left)
            if not taken:
                unknown.append(line)
            rows = bool(taken) and line.startswith(" ") and is_list(line)
        left = left[max(1, taken) :]
    return unknown


def is_list(line: str) -> bool:
    """
    Whether the line stands above a list, a line for each thing.
    """
    return line.strip() in words() and line.startswith("  ")


def _lines_of_one(lines: Sequence[str]) -> int:
    """
    How many of the first lines are one that the package prints; 0 if they are none.
    """
    known = (is_message, is_labelled, is_event, lambda text: any(f.fullmatch(text) for f in FORMS))
    for taken in range(1, MOST_LINES + 1):
        whole = " ".join([lines[0], *map(str.strip, lines[1:taken])])
        if any(check(whole) or check(whole.strip()) for check in known):
            return taken
    return 0
