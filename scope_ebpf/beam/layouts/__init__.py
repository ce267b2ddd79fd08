# SPDX-License-Identifier: Apache-2.0
"""
Where the fields of the VM's structs lie: data, one file per OTP release.

A layout is an assumption about a foreign binary. It is checked against the
running VM before anything that was read with it is believed.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping


#: The releases that are described here.
KNOWN = (24, 25, 26, 27, 28, 29)
#: A field that this build does not have.
_ABSENT = -1

#: Symbols whose size is the size of a struct. erts_invalid_process is a whole Process
#: (OTP-25.2.3 erts/emulator/beam/erl_process.c), the others are the VM's own tables.
SIZE_CHECKS = (
    ("erts_invalid_process", "Process"),
    ("erts_proc", "ErtsPTab"),
    ("erts_atom_table", "IndexTable"),
)


@dataclass(frozen=True)
class Layout:
    """Offsets and sizes in bytes, of one release and one kind of build."""

    tag: str
    release: int
    build: str
    structs: Mapping[str, Mapping[str, int]]
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
        """Tell ``sizeof(struct)``."""
        return self.offset(struct, "sizeof")

    def __str__(self) -> str:
        return f"layout {self.tag} ({self.build})"


@cache
def load(release: int, *, usdt: bool, interpreter: bool) -> Layout:
    """Read the layout of one release and build from its file."""
    file = Path(__file__).with_name(f"otp-{release}.toml")
    data = tomllib.loads(file.read_text("utf-8"))
    structs = {name: dict(fields) for name, fields in data.items() if isinstance(fields, dict)}
    builds = {"usdt": usdt, "emu": interpreter}
    for build, applies in builds.items():
        for name, fields in structs.pop(build, {}).items():
            if applies:
                structs[name].update(fields)
    kinds = ("interpreter" if interpreter else "JIT", "USDT" if usdt else "no USDT")
    return Layout(data["tag"], release, ", ".join(kinds), structs)


def nearest(release: str) -> tuple[int, bool]:
    """Find the described release closest to *release*, and whether it is that very one."""
    try:
        wanted = int(release)
    except ValueError:
        wanted = KNOWN[-1]
    best = min(KNOWN, key=lambda known: (abs(known - wanted), -known))
    return best, str(best) == release
