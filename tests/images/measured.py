# SPDX-License-Identifier: Apache-2.0
"""
Where the structs of the VM lie in each release, as measured, and not as the project has it.

``releases.json`` was read from the debug information of each release's own headers (x86-64, gcc);
:func:`condense` makes it from the whole of that. The layouts of ``scope_ebpf/beam/layouts`` are not
a source of it, so that an image made from it tests them.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
FILE: Final = HERE / "releases.json"

Structs = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Measured:
    """
    One kind of build of some releases whose structs lie alike.

    *versions* are those of ERTS, each with its releases of OTP. *fixed* are the indexes of types in
    the lists of fix_alloc, *allocators* the numbers of allocators, *monitors* those of kinds of
    monitors. *candidate* is true for release candidates, which have the version of another release.
    """

    otp: int
    build: str
    candidate: bool
    versions: dict[str, list[str]]
    structs: Structs
    fixed: dict[str, int]
    allocators: dict[str, int]
    monitors: dict[str, int]

    def offset(self, struct: str, field: str) -> int:
        """
        Bytes from the beginning of *struct*.
        """
        return self.structs[struct][field]

    def has(self, struct: str, field: str) -> bool:
        """
        Whether this release has the field.
        """
        return field in self.structs.get(struct, {})

    def size(self, struct: str) -> int:
        """
        Bytes of the struct.
        """
        return self.structs[struct]["sizeof"]

    def __str__(self) -> str:
        tags = [tag for found in self.versions.values() for tag in found]
        return f"OTP-{tags[0]}..{tags[-1]} ({self.build})"


@cache
def releases(file: Path = FILE) -> tuple[Measured, ...]:
    """
    All of them, by release, then by build.
    """
    found = []
    for otp, one in json.loads(file.read_text())["releases"].items():
        for part in one["parts"]:
            every = _laid_over(one["structs"], part["structs"])
            found.append(
                Measured(
                    otp=int(otp),
                    build=part["build"],
                    candidate=part["candidate"],
                    versions=part["versions"],
                    structs={name: at for name, at in every.items() if name[0] != "#"},
                    fixed=every["#fix"],
                    allocators=every["#alloc"],
                    monitors=part["monitors"],
                )
            )
    return tuple(found)


def _laid_over(base: dict[str, Any], differences: dict[str, Any]) -> Structs:
    """
    Lay *differences* over the structs of *base*; None is a field that is not there.
    """
    made = {name: dict(fields) for name, fields in base.items()}
    for name, fields in differences.items():
        for field, at in (fields or {}).items():
            made.setdefault(name, {})[field] = at
    return {
        name: {field: at for field, at in fields.items() if at is not None}
        for name, fields in made.items()
    }


def condense(source: Path) -> str:
    """
    Make the text of ``releases.json`` from the whole measurement: what images are made of.
    """
    from vm_structs import FIELDS

    whole = json.loads(source.read_text())
    made = {}
    for otp, entries in whole["majors"].items():
        base = next(entry["structs"] for entry in entries if "structs" in entry)
        parts = [part for entry in entries for part in _parts(whole, otp, entry, FIELDS)]
        made[otp] = {"structs": _kept(base, FIELDS), "parts": parts}
    about = (
        "Offsets in bytes (x86-64) from the debug information of the headers of each release, cut "
        "down to what memory images are made of: tests/images/measured.py. Each part differs from "
        "the structs of its release by its own; null is not there. candidate: release candidates."
    )
    return (
        json.dumps({"about": about, "releases": made}, separators=(",", ":")).replace(
            '{"build"', '\n{"build"'
        )
        + "\n"
    )


def _kept(structs: dict[str, Any], fields: dict[str, list[str]]) -> dict[str, Any]:
    tables = {name: at for name, at in structs.items() if name[0] == "#"}
    kept = {
        name: {field: at for field, at in (structs.get(name) or {}).items() if field in wanted}
        for name, wanted in fields.items()
    }
    return {name: at for name, at in (kept | tables).items() if at}


def _parts(
    whole: dict[str, Any], otp: str, entry: dict[str, Any], fields: dict[str, list[str]]
) -> list[dict[str, Any]]:
    """
    Split an entry where its releases number the kinds of monitors differently.
    """
    split: dict[str, dict[str, Any]] = {}
    erts_of = {tag: erts for erts, tags in whole["erts_to_otp"].items() for tag in tags}
    for tag in entry["tags"]:
        numbers = _monitors(whole["constants"][otp], tag)
        erts = erts_of.get(tag, entry["erts"][0])
        part = split.setdefault(
            json.dumps(numbers, sort_keys=True),
            {
                "build": entry["build"],
                "candidate": bool(entry.get("rc")),
                "versions": {},
                "monitors": numbers,
                "structs": _kept(entry.get("diff", {}), fields),
            },
        )
        part["versions"].setdefault(erts, []).append(tag)
    return list(split.values())


def _monitors(constants: list[dict[str, Any]], tag: str) -> dict[str, int]:
    values = dict(constants[0]["values"])
    for one in constants[1:]:
        if tag in one["tags"]:
            values.update(one["diff"])
    prefix = "ERTS_MON_TYPE_"
    return {
        name.removeprefix(prefix).lower(): number
        for name, number in values.items()
        if name in (f"{prefix}ALIAS", f"{prefix}SUSPEND") and number is not None
    }


if __name__ == "__main__":
    FILE.write_text(condense(Path(sys.argv[1])))
