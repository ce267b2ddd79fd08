# SPDX-License-Identifier: Apache-2.0
"""``scope-trace ports``: ports of a VM, with driver or program, owner, queue and bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.beam.processes.shapes import escaped
from scope_ebpf.cli.documents import print_either
from scope_ebpf.cli.held import add_looks, heading, pause, remainder
from scope_ebpf.cli.options import add_format
from scope_ebpf.cli.target import add_target, target_of
from scope_ebpf.runs.held_ports import KEYS, ports_of
from scope_ebpf.sinks.plain import plain, short, spelled

if TYPE_CHECKING:
    import argparse

    from scope_ebpf.results.documents.held import HeldPort, PortsDocument

_ROW = "{:<16} {:<24.24} {:<26.26} {:>8} {:>5} {:>8} {:>8} {:>8} {:>8}"
_HEADINGS = ("PORT", "WHAT", "OWNER", "QUEUE", "BUSY", "IN", "OUT", "IN/S", "OUT/S")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ports``."""
    add_target(parser)
    by = "by queue, traffic between the looks, or bytes of all time"
    add_looks(parser, KEYS, by, unseen="traffic")
    add_format(parser, "text", "json", "jsonl", text="json and jsonl: one document")


def run(arguments: argparse.Namespace) -> int:
    """Look twice, then print; raises ScopeError."""
    seconds = pause(arguments, "ports", unseen="traffic", instead="queue")
    found = ports_of(target_of(arguments), seconds, arguments.sort, arguments.limit)
    print_either(found, arguments.format, _lines)
    return 0


def _lines(document: PortsDocument) -> list[str]:
    held = (
        f"{document['read']:,} ports, {document['busy']} busy, "
        f"{short(document['queued_bytes'])} bytes queued"
    )
    counts = (f"{n:,} {escaped(name)}" for name, n in document["drivers"].items())
    drivers = f"by driver: {', '.join(counts)}"
    ports = map(_line, document["ports"])
    lines = [heading(document, held), drivers, _ROW.format(*_HEADINGS), *ports]
    lines += remainder(document, "ports", len(document["ports"]))
    return [plain(line) for line in [*lines, *document["notes"]]]


def _line(port: HeldPort) -> str:
    called = port["owner_name"] or port["initial_call"]
    owner = " ".join(filter(None, (port["owner"], called)))
    waiting = port["waiting"]
    return _ROW.format(
        port["port"],
        escaped(what(port)),
        escaped(spelled(owner)),
        short(port["queued_bytes"]),
        ("many" if waiting is None else str(waiting)) if port["busy"] else "-",
        short(port["bytes_in"]),
        short(port["bytes_out"]),
        _rate(port["bytes_in_per_second"]),
        _rate(port["bytes_out_per_second"]),
    )


def what(port: HeldPort) -> str:
    """A port's driver, or the program behind it with its process."""
    name, driver = port["name"] or "?", port["driver"] or "?"
    if port["os_pid"] is not None:
        return f"{port['os_pid']}: {name}"
    return driver if name == driver else f"{driver} {name}"


def _rate(value: float | None) -> str:
    return "-" if value is None else short(value)
