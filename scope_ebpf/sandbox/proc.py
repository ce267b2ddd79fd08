# SPDX-License-Identifier: Apache-2.0
"""Reading files of ``/proc``, whose length may be another user's choice."""

from __future__ import annotations

import os

from scope_ebpf.errors import RefusedFileError

#: What the kernel writes of a process's mappings or mounts: 200,000 lines.
MAX_BYTES = 16 << 20


def read_bounded(path: str | os.PathLike[str], *, most: int = MAX_BYTES) -> bytes:
    """Read a file of ``/proc``; RefusedFileError if it has more than *most* bytes."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - any path
        parts, left = [], most + 1
        while left > 0 and (part := file.read(left)):
            parts.append(part)
            left -= len(part)
    if left <= 0:
        raise RefusedFileError(f"{os.fspath(path)} has more than {most:,} bytes")
    return b"".join(parts)
