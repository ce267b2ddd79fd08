# SPDX-License-Identifier: Apache-2.0
"""``scope-trace summary FILE``: the summary of a capture, as its trace printed it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from scope_ebpf.capture.reader import Capture, sound
from scope_ebpf.cli.damage import say_damage
from scope_ebpf.cli.documents import print_document
from scope_ebpf.cli.options import add_format

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("capture", metavar="FILE", help="what `scope-trace record` wrote")
    add_format(parser, "text", "json", "jsonl", text="json and jsonl: one document")


def run(arguments: argparse.Namespace) -> int:
    """The command; returns its exit code."""
    capture = Capture(arguments.capture)
    contents = capture.contents()
    with sound(capture):
        summary = contents.summary()
        if arguments.format != "text":
            print_document(summary.as_json(), arguments.format)
        else:
            from scope_ebpf.sinks.report import print_report

            print_report(summary, sys.stdout)
    say_damage(contents)
    return 0
