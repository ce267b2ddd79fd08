# SPDX-License-Identifier: Apache-2.0
"""``scope-trace list``: the BEAMs on this host."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from scope_ebpf.beam.processes.shapes import escaped
from scope_ebpf.beam.vm.discover import Beam, Refusal, beams
from scope_ebpf.cli.documents import print_document
from scope_ebpf.cli.libraries import libraries_of, library_lines
from scope_ebpf.cli.options import add_format
from scope_ebpf.cli.trouble import Health, health, within
from scope_ebpf.cli.vms import Clocks, Marks, marks_of
from scope_ebpf.errors import NoSuchProcessError, ScopeError
from scope_ebpf.sinks.plain import plain, say, short

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

    from scope_ebpf.results.documents.vms import (
        FoundVm,
        ListDocument,
        ListedVm,
        RefusedVm,
        VmLibraries,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the list."""
    parser.add_argument(
        "--libraries",
        action="store_true",
        help="also which libraries each VM has loaded, in which versions",
    )
    add_format(parser, "text", "json", "jsonl", text="json and jsonl: one document")


def run(arguments: argparse.Namespace) -> int:
    """The command; returns its exit code."""
    found = beams()
    refusals = [one for one in found if isinstance(one, Refusal)]
    targets = [one for one in found if isinstance(one, Beam)]
    clocks = Clocks(targets)
    vms: list[_Vm] = []
    for target, one in zip(targets, health([*targets]), strict=True):
        try:
            row = _row(target, marks_of(target, clocks))
        except NoSuchProcessError:
            continue  # it has ended since it was found
        except ScopeError as error:
            refusals.append(Refusal(target.pid, error))
        else:
            vms.append(
                _with_libraries(target, row, one) if arguments.libraries else _Vm(row, one, {})
            )
    if arguments.format == "text":
        _print(vms, refusals)
        return 0
    listed: list[ListedVm] = [{**vm.row, **vm.health.as_json(), **vm.loaded} for vm in vms]
    refused: list[RefusedVm] = [{"pid": r.pid, "reason": str(r.reason)} for r in refusals]
    document: ListDocument = {"schema": 1, "beams": listed, "refused": refused}
    print_document(document, arguments.format)
    return 0


class _Vm(NamedTuple):
    """What is said of one VM."""

    row: FoundVm
    health: Health
    loaded: VmLibraries

    def lines(self) -> list[str]:
        """What stands below the table."""
        libraries = library_lines(self.loaded.get("libraries"), self.loaded.get("telemetry"))
        return [line for line in (*libraries, self.health.text()) if line]


def _print(vms: Sequence[_Vm], refusals: Sequence[Refusal]) -> None:
    if vms:
        say("\n".join(table([vm.row for vm in vms], _width())), sys.stdout)
    for vm in vms:
        for line in vm.lines():
            say(plain(f"{vm.row['pid']}: {escaped(line)}"), sys.stdout)
    for refusal in refusals:
        say(f"scope-trace: {plain(str(refusal.reason))}")
    if not vms and not refusals:
        print("no BEAM runs on this host (or none that you may see: try with sudo)")


def _with_libraries(target: Beam, row: FoundVm, one: Health) -> _Vm:
    """*one* also says why libraries could not be read."""
    refused = [one.refused] if one.refused else []
    loaded: VmLibraries = {"libraries": None, "telemetry": None}
    with within(target, refused):
        found, telemetry, unread = libraries_of(target)
        loaded = {"libraries": found, "telemetry": telemetry}
        refused += unread
    return _Vm(row, one._replace(refused="; ".join(refused) or None), loaded)


def _row(target: Beam, marks: Marks) -> FoundVm:
    uptime = time.clock_gettime(time.CLOCK_BOOTTIME)
    return {
        **target.as_json(),
        "hooks": "usdt" if target.usdt else _symbols(target),
        "uptime_seconds": round(uptime - target.started, 1),
        **marks.as_json(),
    }


def _symbols(target: Beam) -> Literal["symbols", "none"]:
    """Whether the emulator's functions can be found by name; OTP 29 hides them."""
    try:
        return "symbols" if target.binary.symbol("erts_schedule") else "none"
    except ScopeError:
        return "none"


def _width() -> int:
    """Characters of a line: those of the terminal, or enough for every column."""
    if not sys.stdout.isatty():
        return _UNBOUND
    import shutil

    return shutil.get_terminal_size().columns


def table(rows: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    """
    Lines of a table of *rows* that has at most *width* columns.

    Columns without any value are left out, and those that do not fit: first what is the same for
    many VMs, last what is not. What is too long is cut.
    """
    kept = [c for c in _COLUMNS if c.rank < _ALWAYS or any(c.of(row) != "-" for row in rows)]
    while True:
        cells = [[column.heading for column in kept]]
        cells += [[_fit(column.of(row), column.most) for column in kept] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        # The command takes what is left: a part of it says something, too.
        over = sum(widths) + 2 * (len(widths) - 1) - width
        if kept[-1].heading == "COMMAND" and 0 < over <= widths[-1] - _LEAST_COMMAND:
            widths[-1] -= over
            over = 0
        if over <= 0 or len(kept) == _ALWAYS:
            break
        kept.remove(max(kept, key=lambda column: column.rank))
    if over > 0:
        widths[-1] = max(1, widths[-1] - over)
    return [
        "  ".join(
            f"{_fit(cell, size):>{size}}" if column.right else f"{_fit(cell, size):<{size}}"
            for cell, size, column in zip(line, widths, kept, strict=True)
        ).rstrip()[: max(1, width)]
        for line in cells
    ]


def _fit(text: str, most: int) -> str:
    """*text*, cut to *most* characters, which is seen."""
    return text if len(text) <= most else text[: max(0, most - 1)] + "\u2026"


class Column(NamedTuple):
    """One column of the table: how its cells are written, and which *rank* goes first."""

    heading: str
    rank: int
    of: Callable[[Mapping[str, Any]], str]
    most: int = 40
    right: bool = False


def _text(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: escaped(plain(str(row[key]))) if row[key] else "-"


def _cpu(row: Mapping[str, Any]) -> str:
    return "-" if row["cpu_share"] is None else f"{100 * row['cpu_share']:.0f}"


def _memory(row: Mapping[str, Any]) -> str:
    return "-" if row["resident_bytes"] is None else short(row["resident_bytes"])


#: By rank what goes first where the terminal is narrow: constants, then what fewer people need.
_COLUMNS = (
    Column("PID", 0, lambda row: str(row["pid"]), right=True),
    Column("NODE", 1, _text("node")),
    Column("APPLICATION", 2, _text("application"), 24),
    Column("CPU%", 3, _cpu, right=True),
    Column("MEM", 4, _memory, right=True),
    Column("USER", 5, _text("user"), 12),
    Column("UP", 6, lambda row: _uptime(row["uptime_seconds"]), right=True),
    Column("CONTAINER", 7, lambda row: (row["container"] or "-")[:12]),
    Column("OTP", 9, lambda row: plain(row["otp_release"]), 4),
    Column("VM", 10, lambda row: row["flavor"]),
    Column("HOOKS", 11, lambda row: row["hooks"]),
    Column("COMMAND", 8, _text("command"), 60),
)
#: Columns that are there at any width, characters of a command that are worth a column, and the
#: width where there is no terminal.
_ALWAYS, _LEAST_COMMAND, _UNBOUND = 2, 12, 10_000


def _uptime(seconds: float) -> str:
    days, rest = divmod(int(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    minutes, secs = divmod(rest, 60)
    if days:
        return f"{days}d {hours}h"
    return f"{hours}h {minutes}m" if hours else f"{minutes}m {secs}s"
