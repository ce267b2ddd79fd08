# SPDX-License-Identifier: Apache-2.0
"""Files with the symbols of a stripped executable, where debuggers look for them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from scope_ebpf.errors import NoSuchProcessError, RefusedFileError
from scope_ebpf.sandbox import files
from scope_ebpf.sandbox.client import UnreadableFileError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scope_ebpf.beam.elf.checked import Facts
    from scope_ebpf.sandbox.client import Parser

_ROOT = "usr/lib/debug"
#: A path that leads through a process.
_PROCESS = re.compile(r"/proc/\d+(?=/)")


def add_first(parser: Parser, path: Path, facts: Facts) -> None:
    """
    Offer *parser*, of the executable at *path*, the first file with this build's symbols.

    Raises NoSuchProcessError if the executable was opened through a process that has ended.
    """
    root, folder = _root_and_folder(path)
    process = str(root.parent) if root.name else "/proc/self"
    try:
        root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        raise NoSuchProcessError(f"{path} has gone, and the way to its symbols with it") from None
    try:
        for name, crc, build_id in _paths(folder, facts):
            try:
                fd = files.open_regular(root_fd, name, most=files.MAX_DEBUG_FILE, process=process)
            except (OSError, RefusedFileError):
                continue
            try:
                if parser.add_debug(fd, crc, build_id):
                    return
            except UnreadableFileError:
                continue
    finally:
        os.close(root_fd)


def _paths(folder: Path, facts: Facts) -> Iterator[tuple[str, int | None, str | None]]:
    """Where debuggers look; with the CRC to check, or the build id."""
    build_id, (name, crc) = facts.build_id, facts.link
    if build_id:
        yield f"{_ROOT}/.build-id/{build_id[:2]}/{build_id[2:]}.debug", None, build_id
    if name and "/" not in name and name not in (".", ".."):
        for parent in (folder, folder / ".debug", Path(_ROOT) / folder):
            yield str(parent / name), crc, None


def _root_and_folder(path: Path) -> tuple[Path, Path]:
    """Find the root that the file's own paths start from, and its folder below that root."""
    process = _PROCESS.match(str(path))
    if process:
        try:
            real = str(path.readlink()).removesuffix(" (deleted)")
        except OSError:  # the process has ended
            real = "/"
        return Path(process[0], "root"), Path(real.lstrip("/")).parent
    return Path("/"), path.parent.resolve().relative_to("/")
