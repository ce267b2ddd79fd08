# SPDX-License-Identifier: Apache-2.0
"""``scope-trace ps``: everything that can be read of one Erlang process."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from scope_ebpf.beam.processes.detail import FIELDS, detail, find
from scope_ebpf.beam.processes.shapes import escaped
from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.beam.vm import discover
from scope_ebpf.cli.process_text import lines
from scope_ebpf.cli.trouble import Troubles
from scope_ebpf.errors import UsageError
from scope_ebpf.sinks.plain import plain, say

if TYPE_CHECKING:
    import argparse

    from scope_ebpf.results.documents.processes import PsDocument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ps``."""
    parser.add_argument(
        "process", help="<0.N.S> or a registered name, as Erlang or Elixir write it"
    )
    parser.add_argument("--pid", type=int, required=True, help="the VM's process on this host")
    parser.add_argument("--format", choices=("text", "json"), default="text")


def run(arguments: argparse.Namespace) -> int:
    """Show the process; raises ScopeError."""
    target = discover.inspect(arguments.pid)
    viewer = Viewer(target, FIELDS)
    rows = find(viewer, arguments.process)
    if not len(rows):
        raise UsageError(
            f"process {target.pid} has no Erlang process {escaped(arguments.process)}: "
            f"`scope-trace top --pid {target.pid}` lists them; wanted is a pid such as <0.97.0> "
            "or a registered name such as my_server or MyApp.Worker"
        )
    described = detail(viewer, rows)
    trouble = None if arguments.format == "json" else Troubles(target, viewer).now()
    target.identity.check()
    if arguments.format == "json":
        document: PsDocument = {"schema": 1, "target": target.as_json(), "process": described}
        json.dump(document, sys.stdout)
        print()
        return 0
    if trouble:
        say(plain(trouble), sys.stdout)
    say("\n".join(lines(described)), sys.stdout)
    return 0
