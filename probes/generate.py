# SPDX-License-Identifier: Apache-2.0
"""
Writes the C header, the Python module and the page of documentation from ``events.toml``.

    python probes/generate.py            writes all three
    python probes/generate.py --check    exits 1 if one of them is stale
"""

from __future__ import annotations

import math
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
#: Of these, what follows the header.
BODY_WORDS = 4
#: The kernel's own header in front of it (BPF_RINGBUF_HDR_SZ).
RING_HEADER = [{"name": "ring_length", "type": "u32"}, {"name": "ring_page", "type": "u32"}]

Table = dict[str, Any]


def load() -> Table:
    """The contents of ``events.toml``, with numbers for the names in lengths of arrays."""
    data = tomllib.loads((HERE / "events.toml").read_text())
    numbers = {name: constant["value"] for name, constant in data["constants"].items()}
    numbers |= {e["names"]: len(e["values"]) for e in data["enum"].values() if "names" in e}
    for struct in data["struct"].values():
        for field in struct["fields"]:
            field["type"] = with_length(field["type"], numbers)
    return data


def with_length(text: str, numbers: dict[str, int]) -> str:
    """``"u64[A * B]"`` with the product of the constants A and B; other types as they are."""
    match = re.fullmatch(r"(\w+)\[([A-Z_]+(?: \* [A-Z_]+)*)\]", text)
    if match is None:
        return text
    names = match[2].split(" * ")
    if unknown := [name for name in names if name not in numbers]:
        raise SystemExit(f"events.toml: {text!r} needs {unknown[0]}, which is no constant")
    return f"{match[1]}[{math.prod(numbers[name] for name in names)}]"


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
    fields = [*data["struct"]["header"]["fields"], *record.get("fields", [])]
    left = RECORD_BYTES - size_of(fields)
    if left < 0 or left % 8:
        raise SystemExit(f"events.toml: {record['doc']!r} does not fit")
    if left:
        fields.append({"name": "reserved", "type": f"u64[{left // 8}]", "doc": "zero"})
    return fields


def structs(data: Table) -> list[tuple[str, str, list[Table]]]:
    """Every struct as ``(name, doc, fields)``, in the order it is written."""
    result = [(name, s["doc"], s["fields"]) for name, s in data["struct"].items()]
    for name, record in data["record"].items():
        result.append((f"{name}_record", record["doc"], record_fields(data, record)))
    for name, _, fields in result:
        size = size_of(fields)
        if size % 8:
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


def c_enum(name: str, enum: Table) -> list[str]:
    """One C enum; with ``names`` its last member is the number of the others."""
    members = {f"{enum['prefix']}_{member}": value for member, value in enum["values"].items()}
    if "names" in enum:
        members[enum["names"]] = len(members)
    return [
        f"/* {enum['doc']} */",
        f"enum {name} {{",
        *(f"\t{member} = {value}," for member, value in members.items()),
        "};",
        "",
    ]


def class_enum(name: str, record: Table) -> list[str]:
    """The C enum of a record's classes."""
    members = (f"\t{name.upper()}_{c.upper()} = {i}," for i, c in enumerate(record["classes"]))
    return [f"enum {name}_class {{", *members, "};", ""]


def program_enum(data: Table) -> list[str]:
    """The C enum that numbers the programs."""
    return [
        "/* One number for each program: its key in the map hits. */",
        "enum program {",
        *(f"\tPROGRAM_{p.upper()} = {i}," for i, p in enumerate(programs(data))),
        f"\tPROGRAMS = {len(programs(data))},",
        "};",
        "",
    ]


def header_text(data: Table) -> str:
    """The whole C header."""
    out = [
        "/* SPDX-License-Identifier: GPL-2.0-only */",
        "/* Made by probes/generate.py from probes/events.toml; not written by hand. */",
        "#ifndef SCOPE_EVENTS_GENERATED_H",
        "#define SCOPE_EVENTS_GENERATED_H",
        "",
        f"#define KINDS {len(data['record'])}",
        f"#define RECORD_BYTES {RECORD_BYTES}",
        *(f"#define {n} {c['value']} /* {c['doc']} */" for n, c in data["constants"].items()),
        "",
        "enum kind {",
        *(f"\tKIND_{n.upper()} = {r['id']}," for n, r in data["record"].items()),
        "};",
        "",
        *(line for n, r in data["record"].items() if "classes" in r for line in class_enum(n, r)),
        "enum flags {",
        *(f"\tFLAG_{n} = {1 << i}, /* {d} */" for i, (n, d) in enumerate(data["flags"].items())),
        "};",
        "",
        *(line for name, enum in data["enum"].items() for line in c_enum(name, enum)),
        *program_enum(data),
        *kinds_of_programs(data),
        *(c_struct(*struct) for struct in structs(data)),
        "/* Any record, its own fields as words. */",
        "struct record {",
        "\tstruct header header;",
        f"\t__u64 body[{BODY_WORDS}];",
        "};",
        "",
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
    return list(dict.fromkeys(h["program"] for v in data["variant"] for h in v["hooks"]))


def kinds_of_programs(data: Table) -> list[str]:
    """The C function that returns the kind of a program; a constant once it is inlined."""
    kinds = {h["program"]: v["event"] for v in data["variant"] for h in v["hooks"]}
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


def dtype_rows(fields: list[Table]) -> list[str]:
    """The rows of a numpy dtype."""
    rows = []
    for field in fields:
        base, length = split_type(field["type"])
        if base == "char":
            rows.append(f'    ("{field["name"]}", "S{length}"),')
        elif length:
            rows.append(f'    ("{field["name"]}", "{NUMPY[base]}", ({length},)),')
        else:
            rows.append(f'    ("{field["name"]}", "{NUMPY[base]}"),')
    return rows


def dtype_text(fields: list[Table]) -> str:
    """The numpy dtype of one struct."""
    return "\n".join(["np.dtype([", *dtype_rows(fields), "])"])


def record_text(fields: list[Table]) -> str:
    """The numpy dtype of one kind of record, from the fields behind its header."""
    return "\n".join(["np.dtype([", "    *_HEAD,", *dtype_rows(fields), "])"])


def call_text(name: str, *values: Any, **options: Any) -> str:
    """A call of *name* as a Python expression, without the options that are empty."""
    rows = [repr(value) for value in values]
    rows += [f"{key}={value!r}" for key, value in options.items() if value]
    return f"{name}({', '.join(rows)})"


def hook_text(hook: Table) -> str:
    """One hook, as a Python expression."""
    return call_text(
        "Hook",
        hook["program"],
        hook["name"],
        returns=hook.get("returns"),
        mangled=hook.get("mangled"),
        optional=hook.get("optional"),
        call=hook.get("call"),
        local=hook.get("local"),
        called_by=hook.get("called_by"),
        marks=tuple(hook.get("marks", [])),
        copy_of=hook.get("copy_of"),
        needs=tuple(hook.get("needs", ())),
        at_call=tuple(hook.get("at_call", {}).items()),
        arguments=tuple(hook.get("arguments", [])),
    )


def variant_text(variant: Table) -> str:
    """One attach method of an event, as a Python expression."""
    made = call_text(
        "Variant",
        variant["event"],
        variant["via"],
        variant["family"],
        flavor=variant.get("flavor"),
        on_request=variant.get("on_request"),
        needs=tuple(variant.get("needs", [])),
    )
    hooks = "".join(f"\n        {hook_text(hook)}," for hook in variant["hooks"])
    return f"    {made.removesuffix(')')}, hooks=({hooks}\n    )),"


def kind_text(name: str, record: Table) -> str:
    """One kind of record, as a Python expression."""
    fields = record.get("fields", [])
    made = call_text(
        "Kind",
        record["id"],
        name,
        record["doc"],
        classes=tuple(record.get("classes", [])),
        counted=record.get("counted"),
        histogram=record.get("histogram"),
        units={f["name"]: f["unit"] for f in fields if "unit" in f},
        absent={f["name"]: int(str(f["absent"]), 0) for f in fields if "absent" in f},
    )
    return f"    {name!r}: {made},"


def unavailable_text(row: Table) -> str:
    """One variant that is not used, as a Python expression."""
    names = (row["event"], row["via"], row["reason"])
    return f"    {call_text('Unavailable', *names, flavor=row.get('flavor'))},"


def enum_lines(enum: Table) -> list[str]:
    """One enum in Python: a constant for each member, and the names or numbers of all."""
    lines = [f"#: {enum['doc']}"]
    lines += [f"{enum['prefix']}_{name} = {value}" for name, value in enum["values"].items()]
    if "names" in enum:
        lines.append(f"{enum['names']} = {tuple(n.lower() for n in enum['values'])!r}")
    if "numbers" in enum:
        lines.append(f"{enum['numbers']} = frozenset({tuple(enum['values'].values())!r})")
    return [*lines, ""]


MODULE_HEAD = '''# SPDX-License-Identifier: Apache-2.0
"""
The records that BPF programs and Python share, their constants, and the hooks that may be attached.

Made by probes/generate.py from probes/events.toml; not written by hand.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from scope_ebpf.schema import (
    Hook as Hook,
    Kind as Kind,
    Unavailable as Unavailable,
    Variant as Variant,
)

_SOURCE = Path(__file__).read_bytes()
#: Of this file, when this process started. Each BPF object has the fingerprint of the file that it
#: was built with, so that an object of another build is rejected.
FINGERPRINT = f"{zlib.crc32(_SOURCE):08x}{zlib.adler32(_SOURCE):08x}"
'''


def module_text(data: Table) -> str:
    """The whole Python module."""
    head = data["struct"]["header"]["fields"]
    records = [(n, record_fields(data, r)[len(head) :]) for n, r in data["record"].items()]
    body = [{"name": "body", "type": f"u64[{BODY_WORDS}]"}]
    out = [
        MODULE_HEAD,
        *(f"#: {c['doc']}\n{name} = {c['value']}" for name, c in data["constants"].items()),
        "",
        "KINDS = {",
        *(kind_text(n, r) for n, r in data["record"].items()),
        "}",
        "",
        *(f"FLAG_{n} = {1 << i}  # {d}" for i, (n, d) in enumerate(data["flags"].items())),
        "",
        *(line for enum in data["enum"].values() for line in enum_lines(enum)),
        f"PROGRAMS = {tuple(programs(data))!r}",
        "",
        "#: What every record in the ring starts with: the kernel's header and ours.",
        "_HEAD = (",
        *dtype_rows([*RING_HEADER, *head]),
        ")",
        "",
        "#: Any record in the ring: 64 bytes, its own fields as four words.",
        f"RECORD = {record_text(body)}",
        "",
        "#: The same 64 bytes, by kind.",
        "RECORDS = {",
        *(f"    {name!r}: {record_text(fields)}," for name, fields in records),
        "}",
        "",
        *(
            f"#: {struct['doc']}\n{name.upper()} = {dtype_text(struct['fields'])}\n"
            for name, struct in data["struct"].items()
            if name != "header"
        ),
        "VARIANTS = (",
        *(variant_text(v) for v in data["variant"]),
        ")",
        "",
        "UNAVAILABLE = (",
        *(unavailable_text(row) for row in data["unavailable"]),
        ")",
        "",
        "#: The only USDT probes that may ever be attached.",
        'USDT_ALLOWED = frozenset(h.name for v in VARIANTS if v.via == "usdt" for h in v.hooks)',
        "",
    ]
    return "\n".join(out)


PAGE_HEAD = """\
# Events

Made by probes/generate.py from probes/events.toml; not written by hand. `bench/pipeline.py hits`
prints what a hit of each hook costs.

Every line of `--format jsonl` has `time` (seconds since 1970), `event`, `tid` (the OS thread) and
`pid` (the Erlang process), and `who`: its registered name, else the module of its behaviour, else
its initial call, as it was when first seen (`null` for a process that had ended by then). An event
with classes has `class`. Its own fields follow; `null` is a value that is not known.
"""


def page_label(field: Table) -> str:
    """A field's name and unit as users see them: ns become seconds, words become bytes."""
    name = str(field["name"])
    unit = field.get("unit")
    if unit == "ns":
        return f"`{name.removesuffix('_ns')}_seconds`"
    return f"`{name}_bytes`" if unit == "words" else f"`{name}`"


def page_section(name: str, record: Table, data: Table) -> list[str]:
    """The section of one event."""
    lines = [f"## {name}", "", record["doc"], ""]
    if "classes" in record:
        lines += [f"Classes: {', '.join(record['classes'])}.", ""]
    for variant in data["variant"]:
        if variant["event"] == name:
            hooks = ", ".join(dict.fromkeys(f"`{h['name']}`" for h in variant["hooks"]))
            only = f" ({variant['flavor']} only)" if "flavor" in variant else ""
            lines += [f"- By {variant['via']}{only}: {hooks}"]
    lines += [
        f"- Not by {r['via']}: {r['reason']}"
        for r in data["unavailable"]
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
    """Write the files, or compare them with what would be written."""
    data = load()
    wanted = {HEADER: header_text(data), MODULE: module_text(data), PAGE: page_text(data)}
    if "--check" in sys.argv:
        stale = [p for p, text in wanted.items() if not p.exists() or p.read_text() != text]
        for path in stale:
            sys.stderr.write(f"{path} is not what probes/events.toml says: run `make generate`\n")
        return 1 if stale else 0
    for path, text in wanted.items():
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text() != text:  # a new mtime causes a rebuild
            path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
