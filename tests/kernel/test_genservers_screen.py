# SPDX-License-Identifier: Apache-2.0
"""
``genservers`` in a real terminal: the table moves, and keys choose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from beams_run import start_beam
from test_top_screen import FOOTER, Terminal
from tracing import SCOPE_TRACE

if TYPE_CHECKING:
    from pathlib import Path


def modules(terminal: Terminal) -> list[str]:
    """
    The first words of the rows of the table, in their order.
    """
    lines = terminal.text.splitlines()
    start = next((n for n, line in enumerate(lines) if line.startswith("MODULE ")), len(lines))
    return [line.split()[0] for line in lines[start + 1 : -1] if line.startswith("gs_")]


def test_the_table_moves_and_keys_choose(tmp_path: Path):
    """
    The verdict follows what happens; order, filter, details, help, and the way back.
    """
    terminal = Terminal(tmp_path, cells=150, rows=30)
    try:
        with start_beam("stock25", "-s", "gs_main") as beam:
            beam.expect("ready")
            terminal.run(*SCOPE_TRACE, "genservers", "--pid", str(beam.pid), "--duration", "2")
            terminal.until(lambda: FOOTER in terminal.text and "gs_slow" in modules(terminal))
            beam.ask("crowd 23")
            terminal.until(lambda: "most waiting goes through gs_slow: " in terminal.text)
            terminal.until(lambda: "gs_slow" == (modules(terminal) or [""])[0])
            # What hooks see comes with the end of the first period.
            terminal.until(lambda: "CALL/S" in terminal.text)
            terminal.keys("r")
            terminal.until(lambda: "gs_slow" != (modules(terminal) or ["gs_slow"])[0])
            terminal.keys("4")
            terminal.until(lambda: "gs_slow" == (modules(terminal) or [""])[0])
            terminal.keys("Enter")
            terminal.until(lambda: "timer:sleep/1" in terminal.text and not modules(terminal))
            terminal.keys("?")
            terminal.until(lambda: "reverse the order" in terminal.text)
            terminal.keys("q")
            terminal.until(lambda: terminal.restored)
    finally:
        terminal.close()
