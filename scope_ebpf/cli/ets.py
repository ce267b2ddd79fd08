# SPDX-License-Identifier: Apache-2.0
"""``scope-trace ets``: the ETS tables of a VM, with owner, size and growth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.beam.processes.shapes import escaped
from scope_ebpf.cli.documents import print_either
from scope_ebpf.cli.held import add_looks, heading, pause, remainder
from scope_ebpf.cli.options import add_format
from scope_ebpf.cli.target import add_target, target_of
from scope_ebpf.runs.held_tables import KEYS, tables_of
from scope_ebpf.sinks.plain import plain, short, spelled

if TYPE_CHECKING:
    import argparse

    from scope_ebpf.results.documents.held import EtsDocument, EtsTable

_ROW = "{:<30.30} {:<26.26} {:<13} {:<9} {:>8} {:>8} {:>8}"
_HEADINGS = ("TABLE", "OWNER", "TYPE", "ACCESS", "OBJECTS", "MEMORY", "GROWTH/S")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ets``."""
    add_target(parser)
    add_looks(parser, KEYS, "by memory, objects, or growth of memory", unseen="growth")
    add_format(parser, "text", "json", "jsonl", text="json and jsonl: one document")


def run(arguments: argparse.Namespace) -> int:
    """Look twice, then print; raises ScopeError."""
    seconds = pause(arguments, "ets", unseen="growth", instead="memory")
    found = tables_of(target_of(arguments), seconds, arguments.sort, arguments.limit)
    print_either(found, arguments.format, _lines)
    return 0


def _lines(document: EtsDocument) -> list[str]:
    held = f"{document['read']} tables, {short(document['memory_bytes'])} bytes"
    lines = [heading(document, held), _ROW.format(*_HEADINGS), *map(_line, document["tables"])]
    lines += remainder(document, "tables", len(document["tables"]))
    return [plain(line) for line in [*lines, *document["notes"]]]


def _line(table: EtsTable) -> str:
    owner = " ".join(filter(None, (table["owner"], table["owner_name"])))
    grown = table["bytes_per_second"]
    growth = "-" if grown is None else f"{'-' * (grown < 0)}{short(abs(grown))}"
    return _ROW.format(
        escaped(spelled(table["name"])),
        escaped(spelled(owner)),
        table["type"],
        table["protection"],
        short(table["objects"]),
        short(table["memory_bytes"]),
        growth,
    )
