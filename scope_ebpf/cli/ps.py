# SPDX-License-Identifier: Apache-2.0
"""``scope-trace ps``: everything that can be read of one Erlang process."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from scope_ebpf.beam.processes.detail import FIELDS, detail, find, near
from scope_ebpf.beam.processes.shapes import escaped
from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.cli.documents import print_document
from scope_ebpf.cli.options import add_format
from scope_ebpf.cli.process_text import lines
from scope_ebpf.cli.target import add_target, find_vm, words_of
from scope_ebpf.cli.trouble import Troubles
from scope_ebpf.errors import UsageError
from scope_ebpf.sinks.plain import plain, say
from scope_ebpf.suggestions import did_you_mean

if TYPE_CHECKING:
    import argparse

    from scope_ebpf.results.documents.processes import PsDocument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ps``."""
    add_target(parser, "PROCESS")
    parser.epilog = "PROCESS is <0.N.S> or a registered name, as Erlang or Elixir write it."
    add_format(parser, "text", "json", "jsonl", text="json and jsonl: one document")


def run(arguments: argparse.Namespace) -> int:
    """Show the process; raises ScopeError."""
    vm, (process,) = words_of(arguments, "PROCESS", least=1, most=1)
    target = find_vm(vm, (process,))
    viewer = Viewer(target, FIELDS)
    rows = find(viewer, process)
    if not len(rows):
        like = did_you_mean(map(escaped, near(viewer, process)))
        raise UsageError(
            f"process {target.pid} has no Erlang process {escaped(process)}{like or ':'} "
            f"`scope-trace top --pid {target.pid}` lists them; wanted is a pid such as <0.97.0> "
            "or a registered name such as my_server or MyApp.Worker"
        )
    described = detail(viewer, rows)
    trouble = None if arguments.format != "text" else Troubles(target, viewer).now()
    target.identity.check()
    if arguments.format != "text":
        document: PsDocument = {"schema": 1, "target": target.as_json(), "process": described}
        print_document(document, arguments.format)
        return 0
    if trouble:
        say(plain(trouble), sys.stdout)
    say("\n".join(lines(described)), sys.stdout)
    return 0
