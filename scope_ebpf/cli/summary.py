# SPDX-License-Identifier: Apache-2.0
"""``scope-trace summary FILE``: the summary of a capture, as its trace printed it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from scope_ebpf.capture import cluster
from scope_ebpf.capture.reader import sound
from scope_ebpf.cli.damage import say_damage
from scope_ebpf.cli.documents import print_document
from scope_ebpf.cli.options import add_format

if TYPE_CHECKING:
    import argparse

    from scope_ebpf.capture.reader import Capture, Contents
    from scope_ebpf.results.documents import traces


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("capture", metavar="FILE", help="what `scope-trace record` wrote")
    add_format(parser, "text", "json", "jsonl", text="json and jsonl: one document")


def run(arguments: argparse.Namespace) -> int:
    """The command; returns its exit code."""
    captures = cluster.captures(arguments.capture)
    if len(captures) > 1:
        from scope_ebpf.cli.merged import print_merged

        print_merged(captures, None, arguments.format)
        return 0
    (capture,) = captures
    contents = capture.contents()
    with sound(capture):
        summary = contents.summary()._replace(calls=_calls(capture, contents))
        if arguments.format != "text":
            print_document(summary.as_json(), arguments.format)
        else:
            from scope_ebpf.sinks.report import print_report

            print_report(summary, sys.stdout)
    say_damage(contents)
    return 0


def _calls(capture: Capture, contents: Contents) -> list[traces.CallsOfServer] | None:
    """The calls of a capture by server; None without both ends of its messages."""
    if not {"send", "receive"} <= {kind.name for kind in contents.head.plan.kinds}:
        return None
    from scope_ebpf.capture.calls import Calls, CallTotals

    known = contents.processes
    totals = CallTotals(lambda pid: known[pid].who if pid in known else None)
    calls = Calls()
    for batch in capture.batches():
        for call in calls.records(batch):
            totals.add(call)
    for call in calls.open():
        totals.add(call)
    return totals.as_json()
