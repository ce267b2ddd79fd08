# SPDX-License-Identifier: Apache-2.0
"""Captures of several nodes, merged: as a report, and each packet as JSON lines or Parquet."""

from __future__ import annotations

import json
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from scope_ebpf import events
from scope_ebpf.capture.aligned import on_one_clock
from scope_ebpf.capture.legs import LEGS
from scope_ebpf.capture.merging import named, unrecorded, wall
from scope_ebpf.capture.pairing import Pairing
from scope_ebpf.capture.terms import CapturedTerms
from scope_ebpf.capture.traffic import Traffic
from scope_ebpf.errors import MissingPackageError
from scope_ebpf.sinks.columns import remote_texts
from scope_ebpf.sinks.plain import duration, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TextIO

    from numpy.typing import NDArray

    from scope_ebpf.capture.legs import RemoteCall
    from scope_ebpf.capture.merging import Link, Node
    from scope_ebpf.capture.traffic import Flow, ServerCalls, Times
    from scope_ebpf.results.documents import clusters

#: Rows that are made at once.
_ROWS = 8192
_CLASSES = events.KINDS["dist_out"].classes
#: Flows, servers and nodes without a capture that are shown, and of each in the report.
_FLOWS, _SERVERS, _UNRECORDED, _REPORTED = 20, 50, 50, 5


class Names:
    """Texts for the processes of one node."""

    def __init__(self, node: Node) -> None:
        self._label = named(node.contents)
        self._terms = CapturedTerms(node.contents)

    def senders(self, numbers: list[int]) -> list[str | None]:
        """The pids of senders of packets, by their numbers."""
        return self._terms.texts(numbers, text_pids=True)

    def receivers(self, words: NDArray[np.void]) -> list[str | None]:
        """The receivers of packets that this node sends: pids of the other node, names, or None."""
        return [None if to is None else str(to) for to in remote_texts(words, self._terms)]

    def label(self, pid: str | None) -> str | None:
        """The label of a process of this node by its pid; None where it has none."""
        return self._label(pid or "")

    def process(self, term: int) -> tuple[str | None, str | None]:
        """Pid and label of a term."""
        pid = self._terms.texts([term], text_pids=False)[0] if term else None
        return pid, self.label(pid)


class Reading:
    """The nodes and links of captures on one clock, ready to be read once."""

    def __init__(self, nodes: Sequence[Node], links: Sequence[Link]) -> None:
        self._before = nodes
        self.nodes, self.links = on_one_clock(nodes, links)
        self.names = {node: Names(node) for node in self.nodes}
        self.traffic = Traffic()
        self._given_up = 0

    def read(
        self,
        rows: Callable[[list[clusters.PacketLine]], object] | None = None,
        calls: Callable[[RemoteCall], object] = lambda _call: None,
    ) -> None:
        """Read everything, for :meth:`document`; *rows* and *calls* get it, too."""
        self.traffic.also = calls

        def pairs(link: Link, out: NDArray[np.void], received: NDArray[np.void]) -> None:
            self.traffic.pairs(link, out, received)
            for first in range(0, len(out) if rows else 0, _ROWS):
                part = slice(first, first + _ROWS)
                if rows:
                    rows(self._rows(link, out[part], received[part]))

        pairing = Pairing(self.nodes, self.links)
        pairing.run(pairs=pairs, batches=self.traffic.batch)
        self._given_up = pairing.given_up
        self.traffic.remote.finish()

    def _rows(
        self, link: Link, out: NDArray[np.void], received: NDArray[np.void]
    ) -> list[clusters.PacketLine]:
        """A row for each paired packet, in the order of its connection."""
        aligned = link.source.aligned and link.target.aligned
        source, target = self.names[link.source], self.names[link.target]
        froms = source.senders(out["process"].tolist())
        tos = source.receivers(out["receiver"])
        sizes = received["size"]  # of what went over the wire
        columns = (out["number"], sizes, out["operation"], out["class"], wall(link.source, out))
        ends = wall(link.target, received)
        values = zip(froms, tos, *(c.tolist() for c in (*columns, ends)), strict=True)
        return [
            {
                "from_node": link.source.name,
                "from_host": host(link.source),
                "from_pid": pid,
                "from_who": source.label(pid),
                "to_node": link.target.name,
                "to_host": host(link.target),
                "to": to,
                "to_who": target.label(to),
                "packet": number,
                "bytes": size,
                "operation": operation,
                "class": _CLASSES[cls % len(_CLASSES)],
                "sent_ns": sent_ns if aligned else None,
                "received_ns": received_ns if aligned else None,
            }
            for pid, to, number, size, operation, cls, sent_ns, received_ns in values
        ]

    def document(self) -> clusters.MergeDocument:
        """What ``--format json`` prints."""
        return {
            "schema": 1,
            "nodes": [_node(node) for node in self._before],
            "links": [self._link(link) for link in self.links],
            "given_up": self._given_up,
            "unrecorded": [
                {
                    "node": node.name,
                    "peer": node.contents.atoms.get(peer),
                    "sent": sent,
                    "received": received,
                }
                for node, peer, sent, received in unrecorded(self._before)[:_UNRECORDED]
            ],
            "flows": self._flows(),
            "calls": self._calls(),
            "slowest_calls": [self._slow(call) for call in self.traffic.finish_slowest()],
        }

    def _link(self, link: Link) -> clusters.MergedLink:
        traffic = self.traffic
        counts = traffic.classes[link].tolist()
        known = bool(link.paired) and not link.refused
        return {
            "from": link.source.name,
            "to": link.target.name,
            "sent": link.sent_count,
            "received": link.received_count,
            "paired": link.paired if known else 0,
            "bytes": traffic.octets[link] if known else 0,
            "by_class": {n: c for n, c in zip(_CLASSES, counts, strict=True) if c and known},
            "delay_seconds": _times(traffic.delays.get(link)) if known else None,
            "refused": link.refused or None,
        }

    def _flows(self) -> list[clusters.MessageFlow]:
        found = sorted(self.traffic.flows.items(), key=lambda item: (-item[1][0], -item[1][1]))
        return [self._flow(flow, *counts) for flow, counts in found[:_FLOWS] if counts[0]]

    def _flow(self, flow: Flow, messages: int, octets: int) -> clusters.MessageFlow:
        source, target = self.names[flow.link.source], self.names[flow.link.target]
        (pid,) = source.senders([flow.sender])
        (to,) = source.receivers(np.array([flow.receiver], np.uint64))
        return {
            "from": flow.link.source.name,
            "to": flow.link.target.name,
            "sender": source.label(pid) or pid,
            "receiver": target.label(to) or to,
            "messages": messages,
            "bytes": octets,
        }

    def _calls(self) -> list[clusters.ServerOfNode]:
        found = self.traffic.servers.items()
        ordered = sorted(found, key=lambda item: -item[1].times.total)[:_SERVERS]
        return [self._server(*key, row) for key, row in ordered]

    def _server(
        self, client: Node, target: Node | None, server: int, row: ServerCalls
    ) -> clusters.ServerOfNode:
        pid, label = self.names[target].process(server) if target else (None, None)
        known = row.legs[0].count
        means = [times.total / times.count / 1e9 if known else None for times in row.legs]
        return {
            "from": client.name,
            "to": target.name if target else "(unknown)",
            "server": label or pid,
            "calls": row.calls,
            "down": row.down,
            "seconds": _times(row.times),
            "legs": _legs(means) if known else None,
            "legs_known": known,
        }

    def _slow(self, call: RemoteCall) -> clusters.SlowCall:
        caller, name = self.names[call.client].process(call.caller)
        target = call.target
        pid, label = self.names[target].process(call.server) if target else (None, None)
        return {
            "from": call.client.name,
            "to": target.name if target else "(unknown)",
            "caller": name or caller,
            "server": label or pid,
            "sent_ns": call.sent + call.client.to_wall,
            "seconds": (call.ended - call.sent) / 1e9,
            "legs": _legs([None if leg is None else leg / 1e9 for leg in call.legs()]),
        }


def _legs(seconds: list[float | None]) -> clusters.Legs:
    return cast("clusters.Legs", dict(zip(LEGS, seconds, strict=True)))


def _times(times: Times | None) -> clusters.Delay | None:
    """Seconds; None if there are none."""
    if times is None or not times.count:
        return None
    return {
        "mean": times.total / times.count / 1e9,
        "p50": times.quantile(0.5),
        "p99": times.quantile(0.99),
        "max": times.largest / 1e9,
    }


def _node(node: Node) -> clusters.MergedNode:
    clock = node.clock
    return {
        "node": node.name,
        "host": host(node),
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


def host(node: Node) -> str | None:
    """The host of a node, as its capture has it."""
    name = node.contents.head.host.get("name")
    return None if name is None else str(name)


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
    if merged["given_up"]:
        output.write(
            f"{merged['given_up']:,} records of packets were given up: too many waited for the "
            "other end\n"
        )
    output.writelines(map(_unrecorded_line, merged["unrecorded"][:_REPORTED]))
    output.writelines(map(_flow_line, merged["flows"][:_REPORTED]))
    output.writelines(map(_calls_lines, merged["calls"][:_REPORTED]))


def _unrecorded_line(row: clusters.UnrecordedNode) -> str:
    return (
        f"{plain(row['node'])} -> {plain(row['peer'] or 'another node')}: {row['sent']:,} packets "
        f"sent, {row['received']:,} came back; there is no capture of the other node\n"
    )


def _flow_line(flow: clusters.MessageFlow) -> str:
    return (
        f"{plain(flow['from'])} {plain(flow['sender'] or '-')} -> {plain(flow['to'])} "
        f"{plain(flow['receiver'] or 'an alias')}: {flow['messages']:,} messages, "
        f"{flow['bytes']:,} bytes\n"
    )


def _calls_lines(row: clusters.ServerOfNode) -> str:
    took, legs = row["seconds"], row["legs"]
    times = f"; p50 {duration(took['p50'])}, p99 {duration(took['p99'])}" if took else ""
    return (
        f"{plain(row['from'])} calls {plain(row['server'] or '-')} on {plain(row['to'])}: "
        f"{row['calls']:,} calls{times}\n" + (f"  on average {_legs_text(legs)}\n" if legs else "")
    )


#: What each leg is called in a report.
_LEG_TEXTS = dict(
    zip(
        LEGS,
        (
            *("to the link", "over it", "to the server", "in the server"),
            *("to the link", "over it", "to the caller"),
        ),
        strict=True,
    )
)


def _legs_text(legs: clusters.Legs) -> str:
    known = [(name, cast("dict[str, float | None]", legs)[name]) for name in LEGS]
    return ", ".join(f"{_LEG_TEXTS[name]} {duration(s)}" for name, s in known if s is not None)


class LinesWriter:
    """Packets as JSON lines in *output*."""

    def __init__(self, output: IO[bytes]) -> None:
        self._output, self.done = output, 0

    def rows(self, some: list[clusters.PacketLine]) -> None:
        """Write some packets. Raises OSError."""
        self._output.write("".join(json.dumps(row) + "\n" for row in some).encode())
        self.done += len(some)

    def close(self) -> None:
        """Everything is written already."""


class ParquetWriter:
    """Packets as a table of Parquet in *output*, its numbers signed, so that Spark reads it."""

    _NUMBERS = ("packet", "bytes", "operation", "sent_ns", "received_ns")
    _TEXTS = (
        *("from_node", "from_host", "from_pid", "from_who"),
        *("to_node", "to_host", "to", "to_who"),
    )

    def __init__(self, output: IO[bytes]) -> None:
        try:
            import pyarrow as pa  # an extra
            from pyarrow import parquet
        except ImportError as error:
            raise MissingPackageError(
                f"Parquet needs the Python package pyarrow ({error}): write a file .jsonl instead"
            ) from None
        names = (*self._TEXTS, "packet", "bytes", "operation", "class", "sent_ns", "received_ns")
        self._pa = pa
        self._schema = pa.schema(
            [(n, pa.int64() if n in self._NUMBERS else pa.string()) for n in names]
        )
        self._writer: Any = parquet.ParquetWriter(output, self._schema, compression="zstd")
        self.done = 0

    def rows(self, some: list[clusters.PacketLine]) -> None:
        """Write some packets. Raises OSError."""
        self._writer.write_table(self._pa.Table.from_pylist(some, schema=self._schema))
        self.done += len(some)

    def close(self) -> None:
        """Write the end of the table."""
        self._writer.close()


#: What writes packets, by the ending of the file.
WRITERS: dict[str, type[LinesWriter | ParquetWriter]] = {
    ".jsonl": LinesWriter,
    ".parquet": ParquetWriter,
}
