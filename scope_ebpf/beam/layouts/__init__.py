# SPDX-License-Identifier: Apache-2.0
"""
Where the fields of the VM's structs lie: data, one file per OTP release (``otp-NN.toml``, which
``packaging/pack_data.py`` makes JSON of).

A file describes one version of ERTS, and as overlays what is different in others of its
release. A layout is an assumption about a foreign binary. It is checked against the
running VM before anything that was read with it is used.

- ``live``: chooses the layout of a running VM
- ``checks``: compares structs with what the VM keeps of them
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping


#: The releases that are described here.
KNOWN = (24, 25, 26, 27, 28, 29)
#: A field that this build does not have.
_ABSENT = -1
#: Tables of a file that are no structs.
_NO_STRUCTS = ("facts", "usdt", "emu")

#: Symbols whose size is the size of a struct. erts_invalid_process is a whole Process
#: (OTP-25.2.3 erts/emulator/beam/erl_process.c), the others are the VM's own tables.
SIZE_CHECKS = (
    ("erts_invalid_process", "Process"),
    ("erts_proc", "ErtsPTab"),
    ("erts_atom_table", "IndexTable"),
)

Version = tuple[int, ...]


class Facts(NamedTuple):
    """
    Differences of releases besides offsets.

    *shuffled_ids*: number and slot of an identifier share one field. *heap_bits*: a bitstring
    on a heap says its size in bits. *map_subtag*: the lowest six bits of a map's header.
    *own_file_names*: the first name of a module's line table is that of its own file, and names
    are lists of characters; they were atoms before. *dist_port_monitors*: monitors of ports of
    other nodes are a kind of their own.
    """

    shuffled_ids: bool
    heap_bits: bool
    map_subtag: int
    own_file_names: bool
    dist_port_monitors: bool


class Layout(NamedTuple):
    """
    Offsets and sizes in bytes, of one kind of build of the versions of ERTS from *first* to *last*.

    *exact* is False where the VM's version is none of these.
    """

    tag: str
    release: int
    build: str
    structs: Mapping[str, Mapping[str, int]]
    facts: Facts
    first: Version
    last: Version
    exact: bool = True

    def offset(self, struct: str, field: str) -> int:
        """Where *field* lies in *struct*; ReadRefusedError where this release has none."""
        offset = self.structs.get(struct, {}).get(field, _ABSENT)
        if offset == _ABSENT:
            raise ReadRefusedError(f"{self} knows no field {field} in {struct}")
        return offset

    def has(self, struct: str, field: str) -> bool:
        """Whether this release has *field* in *struct*."""
        return self.structs.get(struct, {}).get(field, _ABSENT) != _ABSENT

    def size(self, struct: str) -> int:
        """Return ``sizeof(struct)``, bytes."""
        return self.offset(struct, "sizeof")

    def describes(self, erts: Version) -> bool:
        """Whether *erts* is one of its versions."""
        return self.first <= erts <= self.last

    def __str__(self) -> str:
        return f"layout {self.tag} ({self.build})"


def version(text: str) -> Version:
    """Read a version such as ``13.2.2.12``; what is no number ends it."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


@cache
def ranges(release: int, *, usdt: bool, interpreter: bool) -> tuple[Layout, ...]:
    """Read all layouts of one release and build from its file, the one of its tag first."""
    file = Path(__file__).with_name(f"otp-{release}.json")
    data = json.loads(file.read_bytes())
    builds = ["usdt"] * usdt + ["emu"] * interpreter
    name = ", ".join(("interpreter" if interpreter else "JIT", "USDT" if usdt else "no USDT"))
    base: dict[str, Any] = {"facts": data["facts"]}
    _merge(base, data, builds)
    found = []
    for part in ({"erts": data["erts"]}, *data.get("overlays", ())):
        tables = {struct: dict(fields) for struct, fields in base.items()}
        _merge(tables, part, builds)
        tables["facts"].update(part.get("facts", {}))
        facts = Facts(**tables.pop("facts"))
        tag = f"OTP-{part['otp'][0]}" if "otp" in part else data["tag"]
        first, last = map(version, part["erts"])
        found.append(Layout(tag, release, name, tables, facts, first, last))
    return tuple(found)


def _merge(tables: dict[str, Any], part: Mapping[str, Any], builds: list[str]) -> None:
    """Lay the structs of a part of a file over *tables*, and then what its *builds* differ in."""
    for source in (part, *(part.get(build, {}) for build in builds)):
        for struct, fields in source.items():
            if isinstance(fields, dict) and struct not in _NO_STRUCTS:
                tables.setdefault(struct, {}).update(fields)


def load(release: int, *, usdt: bool, interpreter: bool) -> Layout:
    """Give the layout of the tag of a release's file."""
    return ranges(release, usdt=usdt, interpreter=interpreter)[0]


def nearest(release: str) -> int:
    """Find the described release closest to *release*."""
    try:
        wanted = int(release)
    except ValueError:
        wanted = KNOWN[-1]
    return min(KNOWN, key=lambda known: (abs(known - wanted), -known))
