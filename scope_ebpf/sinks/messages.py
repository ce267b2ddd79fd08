# SPDX-License-Identifier: Apache-2.0
"""Packets between nodes, each with both of its ends: as a report, JSON lines or Parquet."""

from __future__ import annotations

import json
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from scope_ebpf import events
from scope_ebpf.capture.merging import named, on_reference
from scope_ebpf.capture.terms import CapturedTerms
from scope_ebpf.errors import MissingPackageError
from scope_ebpf.sinks.columns import remote_texts
from scope_ebpf.sinks.plain import duration, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TextIO

    from scope_ebpf.capture.merging import Link, Node
    from scope_ebpf.results.documents import clusters

#: Rows that are made at once.
_ROWS = 8192
_CLASSES = events.KINDS["dist_out"].classes


def document(nodes: list[Node], links: list[Link]) -> clusters.MergeDocument:
    """What ``--format json`` prints."""
    return {
        "schema": 1,
        "nodes": [_node(node) for node in nodes],
        "links": [_link(link) for link in links],
    }


def _node(node: Node) -> clusters.MergedNode:
    host, clock = node.contents.head.host.get("name"), node.clock
    return {
        "node": node.name,
        "host": None if host is None else str(host),
        "capture": str(node.capture.path),
        "events": node.contents.records,
        "aligned": node.aligned,
        "clock": None
        if clock is None
        else {
            "offset_seconds": clock.offset / 1e9,
            "drift_ppm": clock.drift * 1e6,
            "error_seconds": clock.error / 1e9,
        },
    }


def _link(link: Link) -> clusters.MergedLink:
    counts = np.bincount(link.out["class"], minlength=len(_CLASSES)).tolist()
    return {
        "from": link.source.name,
        "to": link.target.name,
        "sent": link.sent_count,
        "received": link.received_count,
        "paired": len(link.out),
        "bytes": int(link.received["size"].sum()),
        "by_class": {name: count for name, count in zip(_CLASSES, counts, strict=True) if count},
        "delay_seconds": _delay(link),
        "refused": link.refused or None,
    }


def _delay(link: Link) -> clusters.Delay | None:
    """Seconds from link to link; None unless both clocks are aligned."""
    if not len(link.out) or not (link.source.aligned and link.target.aligned):
        return None
    sent, received = _times(link)
    delays = (received - sent) / 1e9
    p50, p99 = np.percentile(delays, [50, 99]).tolist()
    return {"mean": float(delays.mean()), "p50": p50, "p99": p99, "max": float(delays.max())}


def _times(link: Link) -> tuple[Any, Any]:
    ends = ((link.source, link.out), (link.target, link.received))
    sent, received = (on_reference(node, rows["time_ns"].astype(np.int64)) for node, rows in ends)
    return sent, received


def print_report(merged: clusters.MergeDocument, output: TextIO) -> None:
    """The same for people."""
    for node in merged["nodes"]:
        clock = node["clock"]
        said = "its clock is the reference" if node["aligned"] else "its clock is not aligned"
        if clock:
            said = (
                f"clock {clock['offset_seconds']:+.6f} s, {clock['drift_ppm']:+.2f} ppm, "
                f"within {duration(clock['error_seconds'])}"
            )
        output.write(f"{plain(node['node'])}: {node['events']:,} events; {said}\n")
    for link in merged["links"]:
        delay = link["delay_seconds"]
        times = f"; p50 {duration(delay['p50'])}, p99 {duration(delay['p99'])}" if delay else ""
        refused = f"; not paired: {link['refused']}" if link["refused"] else ""
        output.write(
            f"{plain(link['from'])} -> {plain(link['to'])}: {link['sent']:,} packets sent, "
            f"{link['received']:,} received, {link['paired']:,} paired{times}{refused}\n"
        )


def rows(links: list[Link]) -> Iterator[list[clusters.PacketLine]]:
    """A row for each paired packet, in the order of its connection; some at a time."""
    for link in links:
        sent, received = _times(link)
        aligned = link.source.aligned and link.target.aligned
        label, terms = named(link.source.contents), CapturedTerms(link.source.contents)
        to_label = named(link.target.contents)
        for first in range(0, len(link.out), _ROWS):
            part = slice(first, first + _ROWS)
            out = link.out[part]
            froms = terms.texts(out["process"].tolist(), text_pids=True)
            tos = remote_texts(out["receiver"], terms)
            sizes = link.received["size"][part]  # of what went over the wire
            columns = (out["number"], sizes, out["operation"], out["class"], sent[part])
            values = zip(froms, tos, *(c.tolist() for c in (*columns, received[part])), strict=True)
            yield [
                {
                    "from_node": link.source.name,
                    "from_host": _host(link.source),
                    "from_pid": pid,
                    "from_who": label(pid or ""),
                    "to_node": link.target.name,
                    "to_host": _host(link.target),
                    "to": None if to is None else str(to),
                    "to_who": to_label(str(to)),
                    "packet": number,
                    "bytes": size,
                    "operation": operation,
                    "class": _CLASSES[cls],
                    "sent_ns": sent_ns if aligned else None,
                    "received_ns": received_ns if aligned else None,
                }
                for pid, to, number, size, operation, cls, sent_ns, received_ns in values
            ]


def _host(node: Node) -> str | None:
    host = node.contents.head.host.get("name")
    return None if host is None else str(host)


def write_lines(links: list[Link], output: IO[bytes]) -> int:
    """JSON lines; how many. Raises OSError where *output* does."""
    done = 0
    for some in rows(links):
        output.write("".join(json.dumps(row) + "\n" for row in some).encode())
        done += len(some)
    return done


def write_parquet(links: list[Link], output: IO[bytes]) -> int:
    """A table of Parquet, its numbers signed, so that Spark reads it; how many rows."""
    try:
        import pyarrow as pa  # an extra
        from pyarrow import parquet
    except ImportError as error:
        raise MissingPackageError(
            f"Parquet needs the Python package pyarrow ({error}): write a file .jsonl instead"
        ) from None
    numbers = ("packet", "bytes", "operation", "sent_ns", "received_ns")
    texts = ("from_node", "from_host", "from_pid", "from_who", "to_node", "to_host", "to", "to_who")
    names = (*texts, "packet", "bytes", "operation", "class", "sent_ns", "received_ns")
    schema = pa.schema([(n, pa.int64() if n in numbers else pa.string()) for n in names])
    done = 0
    with parquet.ParquetWriter(output, schema, compression="zstd") as writer:
        for some in rows(links):
            writer.write_table(pa.Table.from_pylist(some, schema=schema))
            done += len(some)
    return done


#: How files are written, by their ending.
WRITERS: dict[str, Callable[[list[Link], IO[bytes]], int]] = {
    ".jsonl": write_lines,
    ".parquet": write_parquet,
}
