# SPDX-License-Identifier: Apache-2.0
"""``scope-trace merge FILE FILE``: captures of several nodes on one clock, packets paired."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scope_ebpf.capture import cluster
from scope_ebpf.capture.merging import MOST_CAPTURES
from scope_ebpf.cli.merged import CLUSTER, print_merged
from scope_ebpf.cli.options import add_force, add_format
from scope_ebpf.errors import UsageError

if TYPE_CHECKING:
    import argparse


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

    if output is not None and Path(output).suffix not in (*WRITERS, CLUSTER):
        raise UsageError(
            f"{output}: its ending names no format; take {CLUSTER}, {' or '.join(WRITERS)}"
        )
    print_merged(captures, output, arguments.format, force=arguments.force)
    return 0
