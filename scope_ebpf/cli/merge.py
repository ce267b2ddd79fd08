# SPDX-License-Identifier: Apache-2.0
"""``scope-trace merge FILE FILE``: captures of several nodes on one clock, packets paired."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from scope_ebpf.capture import cluster
from scope_ebpf.capture.merging import MOST_CAPTURES, merge, read_nodes
from scope_ebpf.capture.reader import sound
from scope_ebpf.cli.damage import say_damage
from scope_ebpf.cli.documents import print_document
from scope_ebpf.cli.options import add_force, add_format
from scope_ebpf.errors import UsageError
from scope_ebpf.runs.terminal import announce, open_document, output_error

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from scope_ebpf.capture.merging import Node
    from scope_ebpf.capture.reader import Capture
    from scope_ebpf.sinks.messages import Reading

#: The ending of a file with all captures.
_CLUSTER = ".scope"


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
        help="write all captures as one, .scope, or each paired packet, .jsonl or .parquet",
    )
    add_force(parser)
    add_format(parser, "text", "json", "jsonl", text="json and jsonl: one document")


def run(arguments: argparse.Namespace) -> int:
    """The command; returns its exit code."""
    output = arguments.output
    captures = [one for path in arguments.captures for one in cluster.captures(path)]
    if not 1 < len(captures) <= MOST_CAPTURES:
        raise UsageError(f"merge takes 2 to {MOST_CAPTURES} captures, one of each node")
    from scope_ebpf.sinks.messages import WRITERS

    if output is not None and Path(output).suffix not in (*WRITERS, _CLUSTER):
        raise UsageError(
            f"{output}: its ending names no format; take {_CLUSTER}, {' or '.join(WRITERS)}"
        )
    print_merged(captures, output, arguments.format, force=arguments.force)
    return 0


def print_merged(
    captures: Sequence[Capture], output: str | None, form: str, *, force: bool = False
) -> None:
    """Merge captures, write them or their packets to *output*, and print what was found."""
    from scope_ebpf.sinks.messages import Reading, print_report

    nodes = read_nodes(captures)
    for node in nodes:
        say_damage(node.contents)
    with sound(*captures):
        reading = Reading(nodes, merge(nodes))
        if output is None or Path(output).suffix == _CLUSTER:
            reading.read()
        else:
            _write_packets(reading, output, force=force)
        merged = reading.document()
    if output is not None and Path(output).suffix == _CLUSTER:
        _write_cluster(nodes, output, force=force)
    if form != "text":
        print_document(merged, form)
    else:
        print_report(merged, sys.stdout)


def _write_packets(reading: Reading, path: str, *, force: bool) -> None:
    from scope_ebpf.sinks.messages import WRITERS

    with open_document(path, force=force) as output:
        try:
            writer = WRITERS[Path(path).suffix](output)
            reading.read(writer.rows)
            writer.close()
        except OSError as error:
            raise output_error(error, path) from error
    announce(f"wrote {path}: {writer.done:,} packets")


def _write_cluster(nodes: Sequence[Node], path: str, *, force: bool) -> None:
    with open_document(path, force=force) as output:
        try:
            cluster.write(
                [(node.name, node.capture, node.contents.file_bytes) for node in nodes], output
            )
        except OSError as error:
            raise output_error(error, path) from error
    announce(f"wrote {path}: {len(nodes):,} captures")
