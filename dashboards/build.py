# SPDX-License-Identifier: Apache-2.0
"""
Writes the dashboards from ``boards``, one JSON file each.

    python dashboards/build.py            writes them
    python dashboards/build.py --check    exits 1 if one is not current
"""

from __future__ import annotations

import sys
from pathlib import Path

from boards import BOARDS
from boards.frame import text

FOLDER = Path(__file__).parent


def stale() -> list[Path]:
    """The files that are not what ``boards`` makes, and those that it does not make at all."""
    made = {FOLDER / f"{board.key}.json": text(board) for board in BOARDS}
    wrong = [
        path for path, wanted in made.items() if not path.exists() or path.read_text() != wanted
    ]
    return wrong + sorted(set(FOLDER.glob("*.json")) - made.keys())


def main() -> int:
    """Write them or, with --check, say which are not current."""
    if "--check" in sys.argv:
        for path in (wrong := stale()):
            sys.stderr.write(f"{path} is not what dashboards/boards makes: run `make dashboards`\n")
        return int(bool(wrong))
    for board in BOARDS:
        (FOLDER / f"{board.key}.json").write_text(text(board))
    return 0


if __name__ == "__main__":
    sys.exit(main())
