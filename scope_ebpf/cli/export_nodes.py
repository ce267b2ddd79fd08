# SPDX-License-Identifier: Apache-2.0
"""``scope-trace export`` of a file with the captures of several nodes."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from scope_ebpf import output as files
from scope_ebpf.capture.merging import merge, read_nodes
from scope_ebpf.capture.reader import sound
from scope_ebpf.cli.damage import say_damage
from scope_ebpf.cli.export import binary, post
from scope_ebpf.errors import UsageError
from scope_ebpf.runs.terminal import output_error, progress_bar
from scope_ebpf.sinks.messages import Reading
from scope_ebpf.sinks.plain import plain, say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from scope_ebpf.capture.legs import RemoteCall
    from scope_ebpf.capture.reader import Capture

    _Moved = Callable[[float], object]

#: Calls between nodes that are drawn with their legs.
_MOST_CALLS = 1 << 17


def export(captures: Sequence[Capture], path: str, arguments: argparse.Namespace) -> None:
    """Write what *arguments* ask for, all nodes on one clock, and say it."""
    if arguments.format not in _EXPORTS:
        known = ", ".join(_EXPORTS)
        raise UsageError(f"captures of several nodes are exported to {known}: export each alone")
    nodes = read_nodes(captures)
    for node in nodes:
        say_damage(node.contents)
    records = sum(node.contents.records for node in nodes)
    with (
        sound(*captures),
        progress_bar(records, visible=path != "-", what="exporting") as moved,
    ):
        reading = Reading(nodes, merge(nodes))
        said = _EXPORTS[arguments.format](reading, path, arguments, moved)
    if path != "-" or arguments.endpoint:
        what = f"sent to {arguments.endpoint}" if arguments.endpoint else f"wrote {path}"
        say(f"scope-trace: {plain(f'{what}: {len(nodes)} nodes, {said}')}")


def _parquet(reading: Reading, path: str, _: argparse.Namespace, moved: _Moved) -> str:
    from scope_ebpf.sinks.fleet import Tables

    if path == "-":
        raise UsageError("the tables of several nodes are a folder: give its name with -o")
    with _folder(path) as folder:
        tables = Tables(reading, Path(folder), _part)
        tables.write(moved)
    return ", ".join(f"{count:,} {name}" for name, count in tables.done.items())


@contextmanager
def _folder(path: str) -> Iterator[str]:
    try:
        with files.folder(path) as part:
            yield part
    except OSError as error:
        raise output_error(error, path) from error


@contextmanager
def _part(path: Path) -> Iterator[IO[bytes]]:
    """One file of a folder that nobody else can change."""
    with files.Document(str(path)) as document:
        yield document.file
        document.commit()


def _perfetto(reading: Reading, path: str, arguments: argparse.Namespace, moved: _Moved) -> str:
    from scope_ebpf.sinks.perfetto.file import PerfettoFile
    from scope_ebpf.sinks.perfetto.nodes import NodeFile
    from scope_ebpf.sinks.perfetto.timeline import Place, Timeline

    calls: dict[str, dict[int, RemoteCall]] = {node.name: {} for node in reading.nodes}
    kept = 0

    def keep(call: RemoteCall) -> None:
        nonlocal kept
        if kept < _MOST_CALLS:
            kept += 1
            calls[call.client.name][call.reference] = call

    reading.read(calls=keep)
    done = 0
    with binary(path, force=arguments.force) as output:
        file = PerfettoFile(output, reading.nodes[0].contents.head.clocks)
        for number, node in enumerate(reading.nodes, 1):
            place = Place(node, reading.links, calls[node.name])
            timeline = Timeline(
                node.capture, node.contents, NodeFile(file, number), arguments.processes, place
            )
            before = done
            timeline.write(lambda part, before=before: moved(before + part))  # type: ignore[misc]
            done += node.contents.records
    paired = sum(link.paired for link in reading.links)
    return f"{done:,} events, {paired:,} packets from node to node, {kept:,} calls"


def _otlp(reading: Reading, path: str, arguments: argparse.Namespace, moved: _Moved) -> str:
    from scope_ebpf.sinks.otlp import Spans, line

    made = done = 0
    lines = ((node, Spans(node.capture, node.contents)) for node in reading.nodes)
    if arguments.endpoint:
        for node, spans in lines:
            for request in spans.requests(lambda part, before=done: moved(before + part)):  # type: ignore[misc]
                post(arguments.endpoint, line(request).encode())
            made, done = made + spans.made, done + node.contents.records
        return f"{made:,} spans"
    with binary(path, force=arguments.force) as output:
        for node, spans in lines:
            for request in spans.requests(lambda part, before=done: moved(before + part)):  # type: ignore[misc]
                output.write(line(request).encode())
            made, done = made + spans.made, done + node.contents.records
    return f"{made:,} spans"


_EXPORTS = {"perfetto": _perfetto, "parquet": _parquet, "otlp": _otlp}
