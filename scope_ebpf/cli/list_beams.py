# SPDX-License-Identifier: Apache-2.0
"""``scope-trace list``: the BEAMs on this host."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from scope_ebpf.beam.processes.shapes import escaped
from scope_ebpf.beam.vm.discover import Beam, Refusal, beams
from scope_ebpf.cli.documents import print_document
from scope_ebpf.cli.options import add_format
from scope_ebpf.cli.trouble import health
from scope_ebpf.errors import ScopeError
from scope_ebpf.sinks.plain import plain, say

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the list."""
    add_format(parser, "text", "json", "jsonl", text="json and jsonl: one document")


def run(arguments: argparse.Namespace) -> int:
    """The command; returns its exit code."""
    found = beams()
    uptime = time.clock_gettime(time.CLOCK_BOOTTIME)
    targets = [t for t in found if isinstance(t, Beam)]
    seen = health([*targets])
    if arguments.format != "text":
        rows = [
            _row(target, uptime) | one.as_json() for target, one in zip(targets, seen, strict=True)
        ]
        refused = [{"pid": r.pid, "reason": str(r.reason)} for r in found if isinstance(r, Refusal)]
        print_document({"schema": 1, "beams": rows, "refused": refused}, arguments.format)
        return 0
    if targets:
        _print_table([_row(target, uptime) for target in targets])
    for target, one in zip(targets, seen, strict=True):
        if one.text():
            say(plain(f"{target.pid}: {escaped(one.text())}"), sys.stdout)
    for refusal in found:
        if isinstance(refusal, Refusal):
            say(f"scope-trace: {plain(str(refusal.reason))}")
    if not found:
        print("no BEAM runs on this host (or none that you may see: try with sudo)")
    return 0


def _row(target: Beam, uptime: float) -> dict[str, Any]:
    return {
        **target.as_json(),
        "hooks": "usdt" if target.usdt else _symbols(target),
        "uptime_seconds": round(uptime - target.started, 1),
    }


def _symbols(target: Beam) -> str:
    """Whether the emulator's functions can be found by name; OTP 29 hides them."""
    try:
        return "symbols" if target.binary.symbol("erts_schedule") else "none"
    except ScopeError:
        return "none"


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("pid", "node", "OTP", "erts", "flavor", "hooks", "uptime"):
        table.add_column(name, justify="right" if name in ("pid", "uptime") else "left")
    for row in rows:
        table.add_row(
            str(row["pid"]),
            escape(plain(row["node"] or "-")),
            escape(plain(row["otp_release"])),
            escape(plain(row["erts_version"])),
            row["flavor"],
            row["hooks"],
            _uptime(row["uptime_seconds"]),
        )
    console.print(table)


def _uptime(seconds: float) -> str:
    days, rest = divmod(int(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    minutes, secs = divmod(rest, 60)
    if days:
        return f"{days}d {hours}h"
    return f"{hours}h {minutes}m" if hours else f"{minutes}m {secs}s"
