# SPDX-License-Identifier: Apache-2.0
"""
What commands print as JSON, validated against its schema before a test sees it.

    document = documents.load(text)          one document
    lines = documents.load_lines(text)       a document on each line

``VALIDATED`` counts what was validated, by schema; ``conftest`` fails a run of the whole suite in
which a schema had nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import scope_ebpf
from scope_ebpf import events

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FOLDER = Path(scope_ebpf.__file__).parent / "schemas/v1"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
#: Documents that were validated, by the name of the schema.
VALIDATED: Counter[str] = Counter()

#: Characters of a message; it quotes what is wrong, which may be a whole document.
_MOST = 500

#: How a document is recognized; the first that fits counts.
_MARKS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "vm-status": lambda d: "last_check" in d,
    "list": lambda d: "beams" in d,
    "doctor": lambda d: "host" in d,
    "schedulers": lambda d: "threads" in d,
    "summary": lambda d: "lost_total" in d,
    "stacks": lambda d: "groups_total" in d,
    "top": lambda d: "processes_total" in d and "vm" not in d,
    "top-line": lambda d: "processes_total" in d,
    "check": lambda d: "findings" in d,
    "genservers": lambda d: "verdict" in d,
    "links": lambda d: "links" in d and "nodes" not in d,
    "requests": lambda d: "requests" in d and "refused" in d,
    "telemetry": lambda d: "via" in d and "refused" in d,
    "telemetry-line": lambda d: "labels" in d and "duration_seconds" in d,
    "ets": lambda d: "tables_total" in d,
    "ports": lambda d: "ports_total" in d,
    "marks": lambda d: "marked" in d,
    "ps": lambda d: "process" in d,
    "merge-line": lambda d: "from_node" in d,
    "merge": lambda d: "links" in d and "nodes" in d,
    "calls-line": lambda d: d.get("event") in ("call", "return", "code", "summary"),
    "speedscope": lambda d: "$schema" in d,
    "otlp-line": lambda d: "resourceSpans" in d,
    "mcp-profile": lambda d: "stacks" in d,
    "event-line": lambda d: d.get("event") in events.KINDS,
    "run-line": lambda d: True,
}


def name_of(document: dict[str, Any]) -> str:
    """
    The name of a document's schema.
    """
    return next(name for name, fits in _MARKS.items() if fits(document))


@cache
def schema(name: str) -> dict[str, Any]:
    """
    The schema of that name, as the package has it.
    """
    return json.loads((FOLDER / f"{name}.json").read_text())


@cache
def _validator(name: str, kind: str | None) -> Callable[[Any], Any]:
    """
    A fast validator; of lines of one *kind* of event, since there may be a million of them.
    """
    import fastjsonschema  # as late as possible: most tests see no document

    whole = schema(name)
    narrowed = whole if kind is None else whole | {"anyOf": [{"$ref": f"#/$defs/{kind}"}]}
    # It takes the keywords that are used here for what they are in later dialects, too.
    plain = {key: value for key, value in narrowed.items() if key not in ("$id", "$schema")}
    return fastjsonschema.compile(plain)


def fits(document: dict[str, Any], name: str) -> dict[str, Any]:
    """
    The document, which the schema of that name allows; fails with the field that is wrong.
    """
    kind = document.get("event") if name == "event-line" else None
    validator = _validator(name, kind if kind in events.KINDS else None)
    try:
        validator(document)
    except ValueError:  # fastjsonschema's own error is one
        raise AssertionError(f"{name}: {_what_is_wrong(document, name)}") from None
    return document


def validated(document: dict[str, Any], name: str | None = None) -> dict[str, Any]:
    """
    The same of a command's document, which is counted; it is recognized where no name is given.
    """
    name = name or name_of(document)
    fits(document, name)
    VALIDATED[name] += 1
    return document


def _what_is_wrong(document: dict[str, Any], name: str) -> str:
    import jsonschema

    wrong = list(jsonschema.Draft202012Validator(schema(name)).iter_errors(document))
    error = jsonschema.exceptions.best_match(wrong)
    if error is None:
        return "only the fast validator refuses it"
    text = error.message if len(error.message) < _MOST else f"{error.message[:_MOST]}..."
    # For who adds a field on purpose.
    return f"{error.json_path}: {text} (records: scope_ebpf/results/documents, then make generate)"


def load(text: str | bytes) -> dict[str, Any]:
    """
    The one document in *text*.
    """
    return validated(json.loads(text))


def load_lines(text: str | bytes) -> list[dict[str, Any]]:
    """
    The document on each line of *text*.
    """
    return [load(line) for line in text.splitlines()]


def check(text: str) -> None:
    """
    Validate what a command has written: a document, whole lines of JSON, or text of any other kind.
    """
    if not text.startswith("{"):
        return
    try:
        validated(json.loads(text))
    except json.JSONDecodeError:
        lines = text.split("\n")[:-1]  # a command that was killed leaves a part of a line
        if len(lines) > 0 and lines[0].endswith("}"):
            for line in lines:
                load(line)


def check_outputs(command: Sequence[str]) -> None:
    """
    The same of the files that a *command* was asked to write.
    """
    for option, name in pairwise(command):
        path = Path(name)
        if option in ("-o", "--output") and path.is_file():
            with path.open("rb") as file:
                if file.read(1) != b"{":
                    continue
            check(path.read_text())


def missing() -> list[str]:
    """
    Schemas that nothing was validated against.
    """
    return [name for name in NAMES if not VALIDATED[name]]
