# SPDX-License-Identifier: Apache-2.0
"""
Make the JSON schemas of all documents from ``scope_ebpf.results.documents`` and ``events``.

    python packaging/make_schemas.py            writes scope_ebpf/schemas/v1/*.json
    python packaging/make_schemas.py --check    exits 1 if a file is not current

Within a version fields are added, never renamed or removed: a script that would do so is refused.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, cast

from pydantic import TypeAdapter

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scope_ebpf import events  # noqa: E402
from scope_ebpf.results import documents  # noqa: E402
from scope_ebpf.results.documents import (  # noqa: E402
    answers,
    calls,
    checks,
    clusters,
    exports,
    held,
    links,
    marks,
    memory,
    processes,
    requests,
    servers,
    status,
    telemetry,
    traces,
    vms,
)
from scope_ebpf.sinks.columns import CALLED  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION = 1
FOLDER = ROOT / f"scope_ebpf/schemas/v{VERSION}"
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]

#: The records of each document or line, by the name of its schema.
RECORDS: dict[str, tuple[type, ...]] = {
    "list": (vms.ListDocument,),
    "doctor": (vms.DoctorDocument,),
    "schedulers": (vms.SchedulersDocument,),
    "summary": (traces.SummaryDocument,),
    "top": (processes.TopDocument,),
    "top-line": (processes.TopLine,),
    "ps": (processes.PsDocument,),
    "genservers": (servers.GenServersDocument,),
    "telemetry": (telemetry.TelemetryDocument,),
    "requests": (requests.RequestsDocument,),
    "telemetry-line": (telemetry.TelemetryLine,),
    "links": (links.LinksDocument,),
    "check": (checks.CheckDocument,),
    "ets": (held.EtsDocument,),
    "ports": (held.PortsDocument,),
    "stacks": (held.StacksDocument,),
    "marks": (marks.MarksDocument,),
    "memory": (memory.MemoryDocument,),
    "marks-line": (marks.MarksLine,),
    "calls-line": (calls.CallLine, calls.ReturnLine, calls.CodeLine, calls.CallSummaryLine),
    "speedscope": (exports.SpeedscopeDocument,),
    "otlp-line": (exports.SpansRequest,),
    "merge": (clusters.MergeDocument,),
    "merge-line": (clusters.PacketLine,),
    "mcp-answer": (answers.Answer,),
    "mcp-profile": (answers.ProfileDocument,),
    "vm-status": (status.VmStatus,),
}
_TEXT, _WHOLE, _NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
#: Of a field of an event, by its unit; of one without a unit, by its type in the record.
_UNITS = {"ns": _NUMBER, "words": _WHOLE} | dict.fromkeys(
    ("eterm", "atom", "atom_index", "loss", "remote", "mark"), _TEXT
)
#: A field of a user's probe.
_ANY = {"type": ["string", "number", "boolean", "null"]}


def schemas() -> dict[str, Schema]:
    """Each schema by its name."""
    made = {name: _of_records(records) for name, records in RECORDS.items()}
    made |= {"event-line": _event_lines(), "run-line": _run_lines()}
    return {name: _titled(name, schema) for name, schema in sorted(made.items())}


def _titled(name: str, schema: Schema) -> Schema:
    head = {"$schema": _DIALECT, "$id": f"urn:scope-ebpf:schema:{VERSION}:{name}", "title": name}
    return head | schema


def _of_records(records: tuple[type, ...]) -> Schema:
    """The schema of what is one of *records*, each of them a definition."""
    adapter: TypeAdapter[Any] = TypeAdapter(cast("Any", Union[records]))  # noqa: UP007
    made: Schema = adapter.json_schema(ref_template="#/$defs/{model}")
    described = _comments()
    if "$defs" not in made or "properties" in made:  # pydantic puts a lone record at the top
        name = made["title"]
        definitions = made.pop("$defs", {})
        made = {"$ref": f"#/$defs/{name}", "$defs": definitions | {name: made}}
    made["$defs"] = {
        name: _closed(one, described.get(name, {})) for name, one in sorted(made["$defs"].items())
    }
    return made


def _closed(definition: Schema, described: dict[str, str]) -> Schema:
    """A record without other fields than its own, with the descriptions *described*."""
    properties = {
        name: _short(one) | ({"description": described[name]} if name in described else {})
        for name, one in definition["properties"].items()
    }
    kept = {key: definition[key] for key in ("description", "type") if key in definition}
    required = definition.get("required", [])
    return kept | {
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _short(schema: Schema) -> Schema:
    """A field's schema without its generated title, null among the types."""
    made = {key: value for key, value in schema.items() if key != "title"}
    for key in ("items", "additionalProperties"):
        if isinstance(made.get(key), dict):
            made[key] = _short(made[key])
    if made.get("anyOf", [])[1:] == [{"type": "null"}] and set(made["anyOf"][0]) == {"type"}:
        made["type"] = [made.pop("anyOf")[0]["type"], "null"]
    return made


def _comments() -> dict[str, dict[str, str]]:
    """What stands above each field of each record, as ``#:`` comments; those of bases, too."""
    described: dict[str, dict[str, str]] = {}
    bases: dict[str, list[str]] = {}
    for path in sorted(Path(documents.__file__).parent.glob("*.py")):
        lines = path.read_text().splitlines()
        for record in ast.parse("\n".join(lines)).body:
            if isinstance(record, ast.ClassDef):
                bases[record.name] = [
                    base.id for base in record.bases if isinstance(base, ast.Name)
                ]
                described[record.name] = dict(_commented(record, lines))
    return {name: _inherited(name, described, bases) for name in described}


def _inherited(
    name: str, described: dict[str, dict[str, str]], bases: dict[str, list[str]]
) -> dict[str, str]:
    found: dict[str, str] = {}
    for base in bases.get(name, []):
        found |= _inherited(base, described, bases)
    return found | described.get(name, {})


def _commented(record: ast.ClassDef, lines: list[str]) -> Iterator[tuple[str, str]]:
    for field in record.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            above: list[str] = []
            for line in reversed(lines[: field.lineno - 1]):
                if not line.strip().startswith("#:"):
                    break
                above.insert(0, line.strip().removeprefix("#:").strip())
            if above:
                yield field.target.id, " ".join(above)


def _event_lines() -> Schema:
    """The line of each kind of event, in streams and exports."""
    kinds = {kind.name: _event(kind) for kind in events.KINDS.values()}
    return {"anyOf": [{"$ref": f"#/$defs/{name}"} for name in kinds], "$defs": kinds}


def _event(kind: events.Kind) -> Schema:
    """An event: time, thread, process, then its own fields in the units of ``sinks.columns``."""
    fields: Schema = {
        "time": _NUMBER | {"description": "Seconds since 1970, with nine digits."},
        "event": {"const": kind.name},
        "tid": _WHOLE | {"description": "The thread."},
        "pid": _or_null(_TEXT) | {"description": "The Erlang process."},
        "who": _or_null(_TEXT)
        | {"description": "Its name, or null; missing where the VM's names cannot be read."},
    }
    if len(kind.classes) > 1:
        fields["class"] = {"enum": list(kind.classes)}
    dtype = events.RECORDS[kind.name]
    for name in (dtype.names or ())[len(events.RECORD.names or ()) - 1 :]:
        if name != "reserved":
            label, schema = _event_field(kind, name, dtype[name].kind)
            fields[label] = schema
            if kind.units.get(name) == "form":
                fields[label] = {"enum": [None, *events.FORMS[1:]]}
                fields["reference"] = _or_null(_WHOLE) | {"description": "Of its call."}
    required = [name for name in fields if name != "who"]
    for address, label, _ in CALLED:
        if address in (dtype.names or ()):
            fields[label] = _or_null(_TEXT) | {"description": "Missing where names are not read."}
    return {
        "description": kind.doc,
        "type": "object",
        "properties": fields,
        "required": required,
        "additionalProperties": False,
    }


def _event_field(kind: events.Kind, name: str, form: str) -> tuple[str, Schema]:
    unit = kind.units.get(name, "")
    schema = _UNITS.get(unit, _TEXT if form == "S" else _WHOLE)
    label = {"ns": f"{name.removesuffix('_ns')}_seconds", "words": f"{name}_bytes"}.get(unit, name)
    return label, _or_null(schema) if name in kind.absent or unit in (
        "eterm",
        "atom",
        "atom_index",
        "loss",
        "mark",
    ) else schema


def _or_null(schema: Schema) -> Schema:
    return {"type": [schema["type"], "null"]}


def _run_lines() -> Schema:
    """The lines of a user's probe, whose fields are the user's."""
    made = _of_records((traces.HistogramLine,))
    made["$defs"]["UserEvent"] = {
        "description": "One event of the probe, with its fields.",
        "type": "object",
        "properties": {
            "time": _NUMBER,
            "event": _TEXT,
            "tid": _WHOLE,
            "pid": _or_null(_TEXT),
            "who": _or_null(_TEXT),
        },
        "required": ["time", "event", "tid", "pid"],
        "additionalProperties": _ANY,
    }
    made["$defs"]["CountLine"] = {
        "description": "One key of a count, with its fields; its count is n.",
        "type": "object",
        "properties": {"count": _TEXT, "n": _WHOLE},
        "required": ["count", "n"],
        "additionalProperties": _ANY,
    }
    names = ("UserEvent", "CountLine", "HistogramLine")
    return {"anyOf": [{"$ref": f"#/$defs/{name}"} for name in names], "$defs": made["$defs"]}


def removed(old: Schema, new: Schema) -> list[str]:
    """What *old* promises and *new* does not: fields that are gone, or may be missing now."""
    found = []
    for name, definition in old["$defs"].items():
        now = new["$defs"].get(name, {"properties": {}, "required": []})
        here = now["properties"]
        found += [f"{name}.{key}" for key in definition["properties"] if key not in here]
        found += [
            f"{name}.{key}, which may be missing"
            for key in definition["required"]
            if key in here and key not in now["required"]
        ]
    return found


def main() -> int:
    """Write or check every schema; the exit code."""
    made = {FOLDER / f"{name}.json": schema for name, schema in schemas().items()}
    texts = {path: json.dumps(schema, indent=2) + "\n" for path, schema in made.items()}
    stale = [p for p, text in texts.items() if not p.exists() or p.read_text() != text]
    stale += [path for path in FOLDER.glob("*.json") if path not in texts]
    if "--check" in sys.argv:
        for path in stale:
            sys.stderr.write(f"{path} is not what the records say: run `make generate`\n")
        return bool(stale)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path in stale:
        gone = _gone(path, made.get(path))
        if gone and "--break" not in sys.argv:
            sys.stderr.write(
                f"{path.name}: programs rely on {', '.join(gone)}; keep the field, or raise "
                "VERSION in packaging/make_schemas.py\n"
            )
            return 1
        if path in texts:
            path.write_text(texts[path])
        else:
            path.unlink()
    return 0


def _gone(path: Path, new: Schema | None) -> list[str]:
    if not path.exists():
        return []
    return removed(json.loads(path.read_text()), new or {"$defs": {}})


if __name__ == "__main__":
    sys.exit(main())
