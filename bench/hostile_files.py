# SPDX-License-Identifier: Apache-2.0
"""
What parsing a hostile file costs: CPU seconds and memory of the process that parses it.

    .venv/bin/python bench/hostile_files.py

Each file of ``tests/hostile/bombs.py`` is parsed as the daemon parses a program. The start of
the interpreter that parses is part of the figures.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "hostile"), str(ROOT / "tests" / "unit"), str(ROOT / "tests")]

from bombs import BOMBS, look  # noqa: E402

from scope_ebpf.sandbox import client  # noqa: E402


def cost(path: Path) -> None:
    """Look in a process of its own, whose children are counted when they have ended."""
    pid = os.fork()
    if pid == 0:
        said = look(path)
        client.stop()
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(
            f"{path.stem:<16} {path.stat().st_blocks // 2:>7,} KB on the disk: "
            f"{used.ru_utime + used.ru_stime:.2f} s, {used.ru_maxrss >> 10} MB; "
            f"{said.partition(' is refused: ')[2] or said or 'read'}",
            flush=True,
        )
        os._exit(0)
    os.waitpid(pid, 0)


def main() -> int:
    """Make each file, parse it, print what it cost."""
    with tempfile.TemporaryDirectory() as folder:
        for bomb in BOMBS:
            made = Path(folder) / bomb.__name__
            bomb(made)
            cost(made)
            made.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
