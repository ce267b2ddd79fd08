# SPDX-License-Identifier: Apache-2.0
"""
The command line of a VM, and what it says of the program that the VM runs.

It is the VM's own memory and may say anything: a hint for people, and proof of nothing.
"""

from __future__ import annotations

import os
import re
from itertools import pairwise
from typing import TYPE_CHECKING

from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from scope_ebpf.beam.memory.process_memory import Memory

#: Bytes of a command line that are read: a process may declare all its memory to be one.
_MAX_COMMAND = 1 << 17
#: Index of the command line's address among the fields of ``/proc/PID/stat`` behind the name.
_ARGUMENTS = 45
#: It stands before a cookie, or before a node and its cookie (erl(1), OTP 24.1).
_SECRET = "-setcookie"  # noqa: S105 - it is no password but comes before one
#: What ``-s`` and ``-run`` start besides applications: shells and the runtime itself.
_RUNTIME = {"elixir", "init", "erlang", "application", "rebar_agent", "user_drv", "observer"}
#: The boot file of a release: releases/VERSION/start.boot (systools(4), mix release).
_RELEASE = re.compile(r"/(?P<name>[^/]+)/releases/(?P<version>[^/]+)/[^/]+")


def command_words(folder: Path, memory: Memory) -> list[str]:
    """
    Words of the command line of the process in *folder* of ``/proc``; empty if it cannot be read.

    Not by ``/proc/PID/cmdline``: a read of that waits for as long as the memory that it lies
    in takes to come, and cannot leave that to others.
    """
    try:
        fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
        start, end = int(fields[_ARGUMENTS]), int(fields[_ARGUMENTS + 1])
        read = memory.read(start, min(end - start, _MAX_COMMAND))
    except (OSError, ValueError, IndexError, ReadRefusedError):
        return []
    return read.decode("utf-8", "replace").split("\0")


def application_of(words: Sequence[str]) -> str | None:
    """
    What a VM of that command line was started for: a release, a started module, or a script.

    A release is ``shop 0.1.0``, by the folder of its boot file; None if the words say nothing.
    """
    for option, value in pairwise(words):
        release = _RELEASE.search(value) if option in ("-boot", "-config") else None
        if release:
            return f"{release['name']} {release['version']}"
    for option, value in pairwise(words):
        if option in ("-s", "-run") and value not in _RUNTIME:
            return value
    if "-extra" in words:
        script = words[list(words).index("-extra") + 1 :]
        return " ".join([os.path.basename(word) for word in script[:2]]) or None  # noqa: PTH119
    return None


def own_words(words: Sequence[str]) -> list[str]:
    """
    Words of a command line behind those that the ``erl`` script adds, cookies left out.

    ``erl`` begins it with ``-- -root ... -home DIRECTORY --`` (OTP-25.2.3
    erts/etc/common/erlexec.c).
    """
    start = next((n + 2 for n, word in enumerate(words) if word == "-home"), 1)
    found = [word for word in words[start:] if word not in ("--", "")]
    hidden: set[int] = set()
    for n, word in enumerate(found):
        if word == _SECRET:
            hidden.add(n + 1)
            if n + 2 < len(found) and found[n + 2][0] not in "-+":
                hidden.add(n + 2)
    return ["***" if n in hidden else word for n, word in enumerate(found)]
