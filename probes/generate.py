# SPDX-License-Identifier: Apache-2.0
"""
Turns ``events.toml`` into the C header, the Python module and the page of the same facts.

    python probes/generate.py            writes all three
    python probes/generate.py --check    exits 1 if one is not what would be written
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
HEADER = HERE / "include" / "events.generated.h"
MODULE = HERE.parent / "scope_ebpf" / "events.py"
PAGE = HERE.parent / "docs" / "events.md"

SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "s64": 8, "char": 1}
NUMPY = {"u8": "u1", "u16": "<u2", "u32": "<u4", "u64": "<u8", "s64": "<i8"}

#: A record in the ring is 64 bytes: 8 of the kernel's own header, 56 of ours.
RECORD_BYTES = 56
#: Classes of one kind; ``kind * CLASSES + class`` is the place in the maps.
CLASSES = 8

#: Structs of maps, in the order they are written.
PLAIN = (
    *(
        "target",
        "tally",
        "durations",
        "allowance",
        "measure",
        "edge",
        "thread",
        "thread_totals",
        "native_key",
        "native",
        "usdt_argument",
    ),
    *("call_settings", "call_place", "call_totals", "call_pending", "call_hit"),
    *("sample_settings", "sampled_thread", "sample", "waiting", "wait_site", "wait_total"),
)

Table = dict[str, Any]


def load() -> Table:
    """Everything that ``events.toml`` says."""
    return tomllib.loads((HERE / "events.toml").read_text())


def split_type(text: str) -> tuple[str, int | None]:
    """``"u64[40]"`` is ``("u64", 40)``; a plain type has no length."""
    match = re.fullmatch(r"(\w+)(?:\[(\d+)\])?", text)
    if match is None or match[1] not in SIZES:
        raise SystemExit(f"events.toml: {text!r} is no type")
    return match[1], int(match[2]) if match[2] else None


def size_of(fields: list[Table]) -> int:
    """Bytes of the fields; refuses a hole, because padding must be named."""
    offset = 0
    for field in fields:
        base, length = split_type(field["type"])
        if offset % SIZES[base]:
            raise SystemExit(f"events.toml: a hole before {field['name']!r}")
        offset += SIZES[base] * (length or 1)
    return offset


def record_fields(data: Table, record: Table) -> list[Table]:
    """The header, the record's own fields, and what fills it up to its 56 bytes."""
    fields = [*data["header"]["fields"], *record.get("fields", [])]
    left = RECORD_BYTES - size_of(fields)
    if left < 0 or left % 8:
        raise SystemExit(f"events.toml: {record['doc']!r} does not fit")
    if left:
        fields.append({"name": "reserved", "type": f"u64[{left // 8}]", "doc": "zero"})
    return fields


def structs(data: Table) -> list[tuple[str, str, list[Table]]]:
    """Every struct as ``(name, doc, fields)``, in the order it is written."""
    plain = ["header", "settings", *PLAIN]
    result = [(name, data[name]["doc"], data[name]["fields"]) for name in plain]
    for name, record in data["record"].items():
        result.append((f"{name}_record", record["doc"], record_fields(data, record)))
    for name, _, fields in result:
        size = size_of(fields)
        if name not in ("header", "durations", "tally") and size % 8:
            raise SystemExit(f"events.toml: {name} ends in a hole of {8 - size % 8} bytes")
    return result


def c_struct(name: str, doc: str, fields: list[Table]) -> str:
    """One C struct, a comment beside each field."""
    lines = [f"/* {doc} */", f"struct {name} {{"]
    for field in fields:
        base, length = split_type(field["type"])
        ctype = "char" if base == "char" else f"__{base}"
        suffix = f"[{length}]" if length else ""
        unit = f", {field['unit']}" if "unit" in field else ""
        lines.append(f"\t{ctype} {field['name']}{suffix}; /* {field['doc']}{unit} */")
    return "\n".join([*lines, "};", ""])


def header_text(data: Table) -> str:
    """The whole C header."""
    out = [
        "/* SPDX-License-Identifier: GPL-2.0-only */",
        "/* Made by probes/generate.py from probes/events.toml; not written by hand. */",
        "#ifndef SCOPE_EVENTS_GENERATED_H",
        "#define SCOPE_EVENTS_GENERATED_H",
        "",
        f"#define CLASSES {CLASSES}",
        f"#define KINDS {len(data['record'])}",
        f"#define RECORD_BYTES {RECORD_BYTES}",
        "",
        "enum kind {",
        *(f"\tKIND_{n.upper()} = {r['id']}," for n, r in data["record"].items()),
        "};",
        "",
    ]
    for name, record in data["record"].items():
        if "classes" in record:
            members = (
                f"\t{name.upper()}_{c.upper()} = {i}," for i, c in enumerate(record["classes"])
            )
            out += [f"enum {name}_class {{", *members, "};", ""]
    out += [
        "enum flags {",
        *(f"\tFLAG_{n} = {1 << i}, /* {d} */" for i, (n, d) in enumerate(data["flags"].items())),
        "};",
        "",
        "enum argument_form {",
        *(f"\tARGUMENT_{n} = {v}," for n, v in data["argument_forms"].items()),
        "};",
        "",
        "/* Why a thread is off its CPU. */",
        "enum off_reason {",
        *(f"\tOFF_{n} = {v}," for n, v in data["off_reasons"].items()),
        f"\tOFF_REASONS = {len(data['off_reasons'])},",
        "};",
        "",
        "/* Why a process is off its scheduler. */",
        "enum wait_reason {",
        *(f"\tWAIT_{n} = {v}," for n, v in data["wait_reasons"].items()),
        "};",
        "",
        "/* One number for each program, for the map of hits. */",
        "enum program {",
        *(f"\tPROGRAM_{p.upper()} = {i}," for i, p in enumerate(programs(data))),
        f"\tPROGRAMS = {len(programs(data))},",
        "};",
        "",
        *kinds_of_programs(data),
    ]
    out += [c_struct(*struct) for struct in structs(data)]
    out += [
        "/* Every record, so that each object's BTF has them; libbpf skips the section. */",
        "union any_record {",
        *(f"\tstruct {name}_record {name};" for name in data["record"]),
        "};",
        'const union any_record *any_record __attribute__((section(".records"), used));',
        "",
        "#endif",
        "",
    ]
    return "\n".join(out)


def programs(data: Table) -> list[str]:
    """Every BPF program that a hook names, once, in order."""
    return list(dict.fromkeys(h["program"] for w in data["way"] for h in w["hooks"]))


def kinds_of_programs(data: Table) -> list[str]:
    """The C function that tells the kind of a program; a constant once it is inlined."""
    kinds = {h["program"]: w["event"] for w in data["way"] for h in w["hooks"]}
    cases = [f"\tcase PROGRAM_{p.upper()}:\n\t\treturn KIND_{k.upper()};" for p, k in kinds.items()]
    return [
        "static __always_inline enum kind kind_of(enum program program)",
        "{",
        "\tswitch (program) {",
        *cases,
        "\tdefault:",
        "\t\treturn KINDS; /* no kind */",
        "\t}",
        "}",
        "",
    ]


def dtype_text(fields: list[Table], *, ring: bool) -> str:
    """The numpy dtype of one struct; in the ring the kernel's header comes first."""
    rows = ['    ("ring_length", "<u4"),', '    ("ring_page", "<u4"),'] if ring else []
    for field in fields:
        base, length = split_type(field["type"])
        if base == "char":
            rows.append(f'    ("{field["name"]}", "S{length}"),')
        elif length:
            rows.append(f'    ("{field["name"]}", "{NUMPY[base]}", ({length},)),')
        else:
            rows.append(f'    ("{field["name"]}", "{NUMPY[base]}"),')
    return "np.dtype([\n" + "\n".join(rows) + "\n])"


def way_text(way: Table) -> str:
    """One way to see an event, as a Python expression."""
    hooks = "".join(
        f"\n        Hook({h['program']!r}, {h['name']!r}, returns={h.get('returns', False)}, "
        f"mangled={h.get('mangled', False)}, "
        f"optional={h.get('optional', False)}, call={h.get('call')!r}, "
        f"local={h.get('local', False)}, "
        f"at_call={tuple(h.get('at_call', {}).items())!r}, "
        f"arguments={tuple(h.get('arguments', []))!r}),"
        for h in way["hooks"]
    )
    return (
        f"    Way({way['event']!r}, {way['via']!r}, {way['family']!r}, "
        f"flavor={way.get('flavor')!r}, on_request={way.get('on_request')!r}, "
        f"needs={tuple(way.get('needs', []))!r}, hooks=({hooks}\n    )),"
    )


def kind_text(name: str, record: Table) -> str:
    """One kind of record, as a Python expression."""
    absent = {
        f["name"]: int(str(f["absent"]), 0) for f in record.get("fields", []) if "absent" in f
    }
    units = {f["name"]: f["unit"] for f in record.get("fields", []) if "unit" in f}
    return (
        f"    {name!r}: Kind({record['id']}, {name!r}, {record['doc']!r}, "
        f"classes={tuple(record.get('classes', ['all']))!r}, counted={record.get('counted')!r}, "
        f"histogram={record.get('histogram')!r}, units={units!r}, absent={absent!r}),"
    )


MODULE_HEAD = '''# SPDX-License-Identifier: Apache-2.0
"""
The records, their vocabulary, and where we may attach.

Made by probes/generate.py from probes/events.toml; not written by hand.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_SOURCE = Path(__file__).read_bytes()
#: Of this file, as it was when this process began. Each BPF object carries that of the file it was
#: built beside, so that one of another build is refused.
FINGERPRINT = f"{zlib.crc32(_SOURCE):08x}{zlib.adler32(_SOURCE):08x}"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of event: its number, its classes, and how they make up its count."""

    id: int
    name: str
    doc: str
    classes: tuple[str, ...]
    #: The class whose count is the count of the event; None adds them all up.
    counted: str | None
    #: The class whose durations have a histogram, or "all"; None has none.
    histogram: str | None
    #: The unit of each own field that has one: ns, words, eterm, address, reductions.
    units: dict[str, str]
    #: The value of each own field that means "unknown".
    absent: dict[str, int]


@dataclass(frozen=True, slots=True)
class Hook:
    """One place of a way, and the BPF program for it."""

    program: str
    name: str
    returns: bool
    mangled: bool
    optional: bool
    #: The function whose call within this one is the place, rather than the entry.
    call: str | None
    #: That function may have no name; then it is the one without a name that is called.
    local: bool
    #: Settings that are told a register there, and which.
    at_call: tuple[tuple[str, str], ...]
    #: Settings that tell the program the registers of its arguments.
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Way:
    """One way to see an event: by function symbols, by USDT probes or by tracepoints."""

    event: str
    via: str
    family: str
    flavor: str | None
    on_request: str | None
    #: Settings without which the way cannot work.
    needs: tuple[str, ...]
    hooks: tuple[Hook, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a way is not taken though it may seem to be there."""

    event: str
    via: str
    flavor: str | None
    reason: str

'''


def module_text(data: Table) -> str:
    """The whole Python module."""
    records = [(n, record_fields(data, r)) for n, r in data["record"].items()]
    common = [*data["header"]["fields"]]
    body = [{"name": "body", "type": "u64[4]"}]
    out = [
        MODULE_HEAD,
        f"CLASSES = {CLASSES}",
        "",
        "KINDS = {",
        *(kind_text(n, r) for n, r in data["record"].items()),
        "}",
        "",
        *(f"FLAG_{n} = {1 << i}  # {d}" for i, (n, d) in enumerate(data["flags"].items())),
        "",
        *(f"ARGUMENT_{n} = {v}" for n, v in data["argument_forms"].items()),
        "",
        "#: Why a thread is off its CPU, by its number.",
        f"OFF_REASONS = {tuple(n.lower() for n in data['off_reasons'])!r}",
        "",
        "#: Why a process is off its scheduler, by its number.",
        f"WAIT_REASONS = {tuple(n.lower() for n in data['wait_reasons'])!r}",
        "",
        f"PROGRAMS = {tuple(programs(data))!r}",
        "",
        "#: Any record as it lies in the ring: 64 bytes, its own fields as four words.",
        f"RECORD = {dtype_text(common + body, ring=True)}",
        "",
        "#: The same 64 bytes, by kind.",
        "RECORDS = {",
        *(f"    {name!r}: {dtype_text(fields, ring=True)}," for name, fields in records),
        "}",
        "",
        *(
            f"{name.upper()} = {dtype_text(data[name]['fields'], ring=False)}\n"
            for name in ["settings", *PLAIN]
        ),
        "WAYS = (",
        *(way_text(w) for w in data["way"]),
        ")",
        "",
        "REFUSALS = (",
        *(
            f"    Refusal({r['event']!r}, {r['via']!r}, {r.get('flavor')!r}, {r['reason']!r}),"
            for r in data["refusal"]
        ),
        ")",
        "",
        "#: The only USDT probes that may ever be attached.",
        'USDT_ALLOWED = frozenset(h.name for w in WAYS if w.via == "usdt" for h in w.hooks)',
        "",
    ]
    return "\n".join(out)


PAGE_HEAD = """\
# Events

Made by probes/generate.py from probes/events.toml; not written by hand. What a hit of each hook
costs is printed by `bench/pipeline.py hits`.

Every line of `--format jsonl` has `time` (seconds since 1970), `event`, `tid` (the OS thread) and
`pid` (the Erlang process), and `who`: its registered name, else the module of its behaviour, else
its initial call, as it was when first seen (`null` for a process that had ended by then). An event
with classes has `class`. Its own fields follow; `null` is a value that is not known.
"""


def page_label(field: Table) -> str:
    """A field's name and unit where people see it: ns become seconds, words become bytes."""
    name = str(field["name"])
    unit = field.get("unit")
    if unit == "ns":
        return f"`{name.removesuffix('_ns')}_seconds`"
    return f"`{name}_bytes`" if unit == "words" else f"`{name}`"


def page_section(name: str, record: Table, data: Table) -> list[str]:
    """What a user must know of one event."""
    lines = [f"## {name}", "", record["doc"], ""]
    if "classes" in record:
        lines += [f"Classes: {', '.join(record['classes'])}.", ""]
    for way in data["way"]:
        if way["event"] == name:
            hooks = ", ".join(dict.fromkeys(f"`{h['name']}`" for h in way["hooks"]))
            only = f" ({way['flavor']} only)" if "flavor" in way else ""
            lines += [f"- By {way['via']}{only}: {hooks}"]
    lines += [
        f"- Not by {r['via']}: {r['reason']}"
        for r in data["refusal"]
        if r["event"] == name and "flavor" not in r
    ]
    if record.get("fields"):
        lines += ["", "| field | |", "| --- | --- |"]
        lines += [f"| {page_label(f)} | {f['doc']} |" for f in record["fields"]]
    lines += ["", *(f"- {text}" for text in record.get("caveats", []))]
    return [*lines, ""] if record.get("caveats") else lines


def page_text(data: Table) -> str:
    """The whole page."""
    sections = (line for n, r in data["record"].items() for line in page_section(n, r, data))
    return "\n".join([PAGE_HEAD, *sections]).rstrip() + "\n"


def main() -> int:
    """Write the files, or compare them."""
    data = load()
    wanted = {HEADER: header_text(data), MODULE: module_text(data), PAGE: page_text(data)}
    if "--check" in sys.argv:
        stale = [p for p, text in wanted.items() if not p.exists() or p.read_text() != text]
        for path in stale:
            sys.stderr.write(f"{path} is not what probes/events.toml says: run `make generate`\n")
        return 1 if stale else 0
    for path, text in wanted.items():
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text() != text:  # what is newer is built again
            path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
