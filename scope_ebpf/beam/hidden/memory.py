# SPDX-License-Identifier: Apache-2.0
"""
What was found in a file, kept for the next start of a command or of the daemon.

By the SHA-256 of the whole file: two files of one build id need not be the same. The folder is
root's, or that of the user who runs this; an entry that others may change is not read.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from scope_ebpf import events
from scope_ebpf.beam.hidden.reference import WANTED
from scope_ebpf.beam.hidden.shelf import is_ours
from scope_ebpf.output import Document
from scope_ebpf.sandbox import answers, limits

_FORMAT = 1
#: Bytes of an entry, and entries in the folder: a host has a few builds of OTP.
_MOST, _ENTRIES = 1 << 16, 256
#: The reference of functions that were read from a debug file.
DEBUG_FILE = "debug file"


class Place(NamedTuple):
    """Start and size of a function, its score, and the distance to the next best; 0 to 1."""

    start: int
    size: int
    score: float = 1.0
    margin: float = 1.0


class Functions(NamedTuple):
    """
    The functions that were found in one file.

    *reference* is the digest of what found them, or :data:`DEBUG_FILE`, *source* says what that is.
    *near* is whether it is of the same major release. *proven* are the events whose counts have
    agreed with the VM's counters.
    """

    file: str
    reference: str
    source: str
    near: bool
    places: dict[str, Place]
    proven: tuple[str, ...] = ()


def folder() -> Path:
    """Where entries are kept."""
    chosen = os.environ.get("SCOPE_EBPF_CACHE") or os.environ.get("CACHE_DIRECTORY")
    if chosen:
        return Path(chosen, "functions")
    if os.geteuid() == 0:
        return Path("/var/cache/scope-ebpf/functions")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "scope-ebpf", "functions")


def recall(file: str, where: Path | None = None) -> Functions | None:
    """What was kept of the file of that digest, or None."""
    path = (where or folder()) / f"{file}.json"
    if not (is_ours(path.parent) and is_ours(path)):
        return None
    try:
        with path.open("rb") as stream:
            found = _checked(json.loads(stream.read(_MOST)))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    with suppress(OSError):
        os.utime(path)  # what is used stays
    return found if found.file == file else None


def keep(found: Functions, where: Path | None = None) -> bool:
    """Keep what was *found* for the next start; False where that is not possible."""
    path = (where or folder()) / f"{found.file}.json"
    document = {
        "functions": _FORMAT,
        "file": found.file,
        "reference": found.reference,
        "source": found.source,
        "near": found.near,
        "places": {
            name: [p.start, p.size, round(p.score * 1000), round(p.margin * 1000)]
            for name, p in found.places.items()
        },
        "proven": list(found.proven),
    }
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not is_ours(path.parent):
            return False
        _make_room(path)
        with Document(str(path), force=True) as output:
            output.file.write(json.dumps(document).encode())
            output.commit()
    except OSError:
        return False
    return True


def _make_room(path: Path) -> None:
    """Let the entries go that were used longest ago, until there is room for *path*."""
    entries = [entry for entry in path.parent.iterdir() if entry != path]
    entries.sort(key=lambda entry: entry.lstat().st_mtime_ns)
    for entry in entries[: max(0, len(entries) + 1 - _ENTRIES)]:
        entry.unlink(missing_ok=True)


def add_proven(used: Functions, proven: set[str], where: Path | None = None) -> None:
    """
    Add events whose counts have agreed with the VM's counters to what is kept of a file.

    Only if the functions that were *used* are still those that are kept.
    """
    found = recall(used.file, where)
    if not found or (found.reference, found.places) != (used.reference, used.places):
        return
    if not proven <= set(found.proven):
        with suppress(OSError):
            keep(found._replace(proven=tuple(sorted({*found.proven, *proven}))), where)


def _checked(found: Any) -> Functions:
    if found["functions"] != _FORMAT:
        raise ValueError("another format")
    return Functions(
        answers.text(found["file"], 64),
        answers.text(found["reference"], 64),
        answers.text(found["source"], 256),
        answers.flag(found["near"]),
        {
            name: place
            for name, place in answers.table(found["places"], _place, len(WANTED)).items()
            if name in WANTED
        },
        tuple(e for e in answers.many(found["proven"], answers.text, 64) if e in events.KINDS),
    )


def _place(found: Any) -> Place:
    start, size, score, margin = answers.row(
        found,
        answers.integer,
        lambda n: answers.integer(n, limits.SECTION),
        lambda n: answers.integer(n, 1001),
        lambda n: answers.integer(n, 1001),
    )
    return Place(start, size, score / 1000, margin / 1000)
