# SPDX-License-Identifier: Apache-2.0
"""Captures of several nodes, merged and printed: for the commands merge and summary."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from scope_ebpf.capture import cluster
from scope_ebpf.capture.merging import merge, read_nodes
from scope_ebpf.capture.reader import sound
from scope_ebpf.cli.damage import say_damage
from scope_ebpf.cli.documents import print_document
from scope_ebpf.runs.terminal import announce, open_document, output_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scope_ebpf.capture.merging import Node
    from scope_ebpf.capture.reader import Capture
    from scope_ebpf.sinks.messages import Reading

#: The ending of a file with all captures.
CLUSTER = ".scope"


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
        if output is None or Path(output).suffix == CLUSTER:
            reading.read()
        else:
            _write_packets(reading, output, force=force)
        merged = reading.document()
    if output is not None and Path(output).suffix == CLUSTER:
        _write_cluster(nodes, output, force=force)
    if form != "text":
        print_document(merged, form)
    else:
        print_report(merged, sys.stdout)


def _write_packets(reading: Reading, path: str, *, force: bool) -> None:
    from scope_ebpf.sinks.messages import WRITERS

    with open_document(path, force=force) as output:
        try:
            with closing(WRITERS[Path(path).suffix](output)) as writer:
                reading.read(writer.rows)
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
