# SPDX-License-Identifier: Apache-2.0
"""``scope-trace list``: the BEAMs on this host."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Literal

from scope_ebpf.beam.processes.shapes import escaped
from scope_ebpf.beam.vm.discover import Beam, Refusal, beams
from scope_ebpf.cli.trouble import health
from scope_ebpf.errors import ScopeError
from scope_ebpf.sinks.plain import plain, say

if TYPE_CHECKING:
    import argparse

    from scope_ebpf.results.documents.vms import FoundVm, ListDocument, ListedVm, RefusedVm


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the list."""
    parser.add_argument("--format", choices=["text", "json"], default="text")


def run(arguments: argparse.Namespace) -> int:
    """The command; returns its exit code."""
    found = beams()
    uptime = time.clock_gettime(time.CLOCK_BOOTTIME)
    targets = [t for t in found if isinstance(t, Beam)]
    seen = health([*targets])
    if arguments.format == "json":
        rows: list[ListedVm] = [
            {**_row(target, uptime), **one.as_json()}
            for target, one in zip(targets, seen, strict=True)
        ]
        refused: list[RefusedVm] = [
            {"pid": r.pid, "reason": str(r.reason)} for r in found if isinstance(r, Refusal)
        ]
        document: ListDocument = {"schema": 1, "beams": rows, "refused": refused}
        json.dump(document, sys.stdout, indent=2)
        print()
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


def _row(target: Beam, uptime: float) -> FoundVm:
    return {
        **target.as_json(),
        "hooks": "usdt" if target.usdt else _symbols(target),
        "uptime_seconds": round(uptime - target.started, 1),
    }


def _symbols(target: Beam) -> Literal["symbols", "none"]:
    """Whether the emulator's functions can be found by name; OTP 29 hides them."""
    try:
        return "symbols" if target.binary.symbol("erts_schedule") else "none"
    except ScopeError:
        return "none"


def _print_table(rows: list[FoundVm]) -> None:
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
