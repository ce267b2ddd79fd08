# SPDX-License-Identifier: Apache-2.0
"""
CPU seconds of one look at what a VM holds: 10,000 ETS tables, 50,000 ports and 200,000 processes
more than it is born with. Then of what ``memory`` prints of all of it with one look, without and
with 25 messages in each of 20,000 mailboxes more.

    sudo .venv/bin/python bench/held.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from beams_run import start_beam

from scope_ebpf.beam.held.memory import MemoryReader
from scope_ebpf.beam.held.ports import PortTable
from scope_ebpf.beam.held.stacks import StackReader
from scope_ebpf.beam.held.tables import TableReader
from scope_ebpf.beam.memory.process_memory import cpu_seconds
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.runs.memory import Span, document

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.beam.vm.target import Target

TABLES, PORTS, PROCESSES, LOOKS = 10_000, 50_000, 200_000, 5
MAILBOXES = 20_000
FLAGS = ("+Q", "131072", "+P", "1000000")


def main() -> None:
    """
    Print the slowest of some looks for each release.
    """
    for kind in ("stock25", "trixie27", "sid29"):
        with start_beam(kind, *FLAGS, "-s", "holding") as beam:
            beam.expect("ready")
            beam.ask(f"many {TABLES}")
            beam.ask(f"sockets {PORTS}")
            target = inspect(beam.pid)
            tell(kind, "tables", TableReader(target).read)
            tell(kind, "ports", PortTable(target).read)
            beam.ask(f"processes {PROCESSES}")
            tell(kind, "processes", StackReader(target).read)
            tell(kind, "memory", MemoryReader(target, 20).read)
            tell_document(kind, target, "no mailboxes")
            beam.ask(f"mailboxes {MAILBOXES}")
            tell_document(kind, target, f"{MAILBOXES:,} mailboxes")


def tell(kind: str, what: str, read: Callable[[], Any]) -> None:
    """
    Look some times and print the slowest.
    """
    looks = [read() for _ in range(LOOKS)]
    slowest = max(look.seconds for look in looks)
    if what == "memory":
        print(f"{kind}: all of the memory, {slowest:.2f} s of CPU a look")
        return
    count = looks[0].read if what == "processes" else len(looks[0].rows)
    print(f"{kind}: {count:,} {what}, {slowest:.2f} s of CPU a look")


def tell_document(kind: str, target: Target, what: str) -> None:
    """
    Make the document of ``memory --once --limit 10`` some times and print the slowest.
    """
    spent = []
    for _ in range(LOOKS):
        began = cpu_seconds()
        document(Span(target, MemoryReader(target, 10).read(), None, 0.0, 10))
        spent.append(cpu_seconds() - began)
    print(f"{kind}: the document of memory with {what}, {max(spent):.2f} s of CPU")


if __name__ == "__main__":
    main()
