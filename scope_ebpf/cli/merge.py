# SPDX-License-Identifier: Apache-2.0
"""``scope-trace merge FILE FILE``: captures of several nodes on one clock, packets paired."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from scope_ebpf.capture.merging import MOST_CAPTURES, align_all, links, read_node
from scope_ebpf.capture.reader import Capture, sound
from scope_ebpf.cli.damage import say_damage
from scope_ebpf.cli.documents import print_document
from scope_ebpf.cli.options import add_force, add_format
from scope_ebpf.errors import UsageError
from scope_ebpf.runs.terminal import announce, open_document, output_error

if TYPE_CHECKING:
    import argparse

    from scope_ebpf.capture.merging import Link, Node


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "captures",
        metavar="FILE",
        nargs="+",
        help=f"2 to {MOST_CAPTURES} captures of `scope-trace record`, one of each node",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="write each paired packet: .jsonl or .parquet",
    )
    add_force(parser)
    add_format(parser, "text", "json", "jsonl", text="json and jsonl: one document")


def run(arguments: argparse.Namespace) -> int:
    """The command; returns its exit code."""
    paths, output = arguments.captures, arguments.output
    if not 1 < len(paths) <= MOST_CAPTURES:
        raise UsageError(f"merge takes 2 to {MOST_CAPTURES} captures, one of each node")
    from scope_ebpf.sinks import messages

    if output is not None and Path(output).suffix not in messages.WRITERS:
        raise UsageError(
            f"{output}: its ending names no format; take {' or '.join(messages.WRITERS)}"
        )
    nodes: list[Node] = []
    for path in paths:
        capture = Capture(path)
        with sound(capture):
            nodes.append(read_node(capture))
        say_damage(nodes[-1].contents)
    with sound(nodes[0].capture):
        found = links(nodes)
        align_all(nodes, found)
        merged = messages.document(nodes, found)
        if output is not None:
            _write(found, output, force=arguments.force)
    if arguments.format != "text":
        print_document(merged, arguments.format)
    else:
        messages.print_report(merged, sys.stdout)
    return 0


def _write(found: list[Link], path: str, *, force: bool) -> None:
    from scope_ebpf.sinks.messages import WRITERS

    with open_document(path, force=force) as output:
        try:
            done = WRITERS[Path(path).suffix](found, output)
        except OSError as error:
            raise output_error(error, path) from error
    announce(f"wrote {path}: {done:,} packets")
