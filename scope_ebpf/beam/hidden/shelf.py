# SPDX-License-Identifier: Apache-2.0
"""
The references that there are: those of the package, and those that a user of this host has made.

A file's name says which build it is of; the file is read, and checked, when it is the nearest one.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from scope_ebpf.beam.hidden.reference import (
    MAX_PACKED,
    BadReferenceError,
    Build,
    Reference,
    digest,
    parse,
)

#: References of the package, and of this host: ``scope-trace learn`` writes them there.
SHIPPED = Path(__file__).parents[2] / "references"
HOST = Path("/var/lib/scope-ebpf/references")
#: Names folders, with ":" between them, that are used instead.
VARIABLE = "SCOPE_EBPF_REFERENCES"
#: Names in one folder that are looked at.
_MOST = 256
_NAME = re.compile(
    r"otp-(?P<otp>[0-9]{1,3}(?:\.[0-9]{1,5}){0,5})_erts-(?P<erts>[0-9.]{1,24})"
    r"_(?P<flavor>jit|emu)_(?P<machine>[A-Za-z0-9]{1,16})(?:_[A-Za-z0-9.+-]{1,48})?\.json\.gz"
)


class Entry(NamedTuple):
    """A file on the shelf, and the build that its name states."""

    path: Path
    build: Build

    def digest(self) -> str:
        """SHA-256 of the file, without a look at what is in it; as :meth:`load`."""
        return digest(_content(self.path))

    def load(self) -> Reference:
        """Read it; BadReferenceError if it is none, or one of another build than its name says."""
        reference = parse(_content(self.path), str(self.path))
        named, found = self.build, reference.build
        if (found.erts, found.flavor, found.machine) != (named.erts, named.flavor, named.machine):
            raise BadReferenceError(f"{self.path} cannot be used: it is of {found}")
        return reference


def name_of(build: Build) -> str:
    """The name of the file of a reference."""
    compiler = re.sub(r"[^A-Za-z0-9.+-]+", "-", build.compiler).strip("-")[:48]
    tail = f"_{compiler}" if compiler else ""
    return f"otp-{build.otp}_erts-{build.erts}_{build.flavor}_{build.machine}{tail}.json.gz"


def entries() -> list[Entry]:
    """Every reference of the package and of this host, or of the folders in ``VARIABLE``."""
    chosen = os.environ.get(VARIABLE)
    found = []
    for folder in map(Path, chosen.split(":")) if chosen else (SHIPPED, HOST):
        if folder != SHIPPED and not is_ours(folder):
            continue
        try:
            names = sorted(path.name for path in folder.iterdir())[:_MOST]
        except OSError:
            continue
        for name in names:
            match = _NAME.fullmatch(name)
            if match:
                found.append(Entry(folder / name, Build(**match.groupdict(), compiler="")))
    return found


def nearest(release: str, erts: str, flavor: str, machine: str, among: list[Entry]) -> list[Entry]:
    """
    The entries *among* that may serve a VM, the nearest version of ERTS first.

    Of versions that are as near, those of this host come first: the last of *among*.
    """
    wanted = _numbers(erts)
    fits = [e for e in among if (e.build.flavor, e.build.machine) == (flavor, machine)]

    def distance(entry: Entry) -> tuple[bool, list[int]]:
        own = _numbers(entry.build.erts)
        away = [abs(a - b) for a, b in zip(wanted, own, strict=True)]
        return entry.build.major != release.partition(".")[0], away

    fits.reverse()
    return sorted(fits, key=distance)


def _numbers(version: str) -> list[int]:
    parts = [int(part) for part in version.split(".") if part.isdecimal()][:5]
    return parts + [0] * (5 - len(parts))


def is_ours(path: Path) -> bool:
    """Whether *path* is a file or folder that root, or who runs this, alone may change."""
    try:
        found = path.lstat()
    except OSError:
        return False
    kind = stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)
    return kind and found.st_uid in (0, os.geteuid()) and not found.st_mode & 0o022


def _content(path: Path) -> bytes:
    if path.parent != SHIPPED and not is_ours(path):
        raise BadReferenceError(f"{path} cannot be used: others than root may change it")
    try:
        with path.open("rb") as file:
            return file.read(MAX_PACKED + 1)
    except OSError as error:
        raise BadReferenceError(f"{path} cannot be read: {error.strerror}") from None
