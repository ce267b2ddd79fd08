# SPDX-License-Identifier: Apache-2.0
"""
Writes ``docs/metrics.md`` from the catalogue.

    python docs/metrics.py            writes it
    python docs/metrics.py --check    exits 1 if it is not current
"""

from __future__ import annotations

import sys
from pathlib import Path

from scope_ebpf.metrics.catalogue import catalogue

PAGE = Path(__file__).parent / "metrics.md"
_HEAD = """\
# Series of scope-ebpfd

Made by `docs/metrics.py` from `scope_ebpf/metrics/catalogue.toml`; not written by hand.

Sources: *memory*, the VM's own counters, read from outside, exact; *hook*, events at probe points,
exact while `scope_ebpf_sampling_ratio` is 1 and else scaled from windows with the error that
`scope_ebpf_sampling_error_ratio` states; *kernel*, the scheduler's tracepoints and `/proc`;
*snapshot*, the process table, as old as `scope_ebpf_snapshot_timestamp_seconds` says.

| series | type | labels | source | what it is |
| --- | --- | --- | --- | --- |
"""


def text() -> str:
    """The whole page."""
    rows = [
        f"| `{s.name}` | {s.type} | {', '.join(s.labels)} | {s.source} | {s.help}"
        + (f" Also `{s.compat}`." if s.compat else "")
        + " |"
        for s in catalogue().values()
    ]
    return _HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(PAGE.read_text() != text())
    PAGE.write_text(text())
