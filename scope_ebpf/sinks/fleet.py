# SPDX-License-Identifier: Apache-2.0
"""
Captures of several nodes as three tables of Parquet: events, messages and calls.

Each table is a folder with a folder for each host and node (``host=H/node=N``), as DuckDB, Spark,
polars and ClickHouse take for columns. Times are on the clock of the reference node.
"""

from __future__ import annotations

import urllib.parse
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING, Any

from scope_ebpf.capture.legs import MOMENTS, trace_id
from scope_ebpf.sinks import parquet
from scope_ebpf.sinks.messages import host

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from scope_ebpf.capture.legs import RemoteCall
    from scope_ebpf.capture.merging import Node
    from scope_ebpf.results.documents import clusters
    from scope_ebpf.sinks.messages import Reading

    _Open = Callable[[Path], AbstractContextManager[IO[bytes]]]

#: Rows that wait in all open files together, up to 1 KB each, and the fewest in a group of a file.
_WAITING, _LEAST_GROUP = 1 << 17, 1 << 10
#: Columns of the tables beside host and node, which are those of the sender and of the caller.
_MESSAGES = {
    **dict.fromkeys(("from_pid", "from_who", "to_node", "to_host", "to", "to_who"), "string"),
    "class": "string",
    **dict.fromkeys(("operation", "bytes", "packet", "out_ns", "in_ns"), "int64"),
}
_CALLS = {
    **dict.fromkeys(("client_pid", "client_who", "server_node", "server_host"), "string"),
    **dict.fromkeys(("server_pid", "server_who", "ended", "trace_id"), "string"),
    "reference": "int64",
    **{f"{moment}_ns": "int64" for moment in MOMENTS},
}


class _Table:
    """One file of rows, written in groups of so many rows or some more."""

    def __init__(self, output: IO[bytes], columns: dict[str, str], group: int) -> None:
        self._pa, library = parquet.pyarrow()
        kinds = {"string": self._pa.string(), "int64": self._pa.int64()}
        self._schema = self._pa.schema([(name, kinds[kind]) for name, kind in columns.items()])
        self._writer: Any = library.ParquetWriter(output, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._group = group
        self.done = 0

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Add some rows. Raises OSError."""
        self._rows += rows
        if len(self._rows) >= self._group:
            self._flush()

    def _flush(self) -> None:
        table = self._pa.Table.from_pylist(self._rows, schema=self._schema)
        self._writer.write_table(table)
        self.done += len(self._rows)
        self._rows = []

    def close(self) -> None:
        """Write what is left, and the end of the file."""
        self._flush()
        self.release()

    def release(self) -> None:
        """Let the library write no more; before the file is closed, also after an error."""
        self._writer.close()


class Tables:
    """Writes the tables of a *reading* below *folder*, by files that *open_file* opens."""

    def __init__(self, reading: Reading, folder: Path, open_file: _Open) -> None:
        parquet.pyarrow()
        self._reading, self._folder, self._open = reading, folder, open_file
        self._nodes = {node.name: node for node in reading.nodes}
        #: Rows of each table.
        self.done = {"events": 0, "messages": 0, "calls": 0}

    def write(self, moved: Callable[[float], object]) -> None:
        """Write everything; *moved* is called with the events so far. Raises OSError."""
        with ExitStack() as files:
            messages = {name: self._table(files, "messages", name) for name in self._nodes}
            calls = {name: self._table(files, "calls", name) for name in self._nodes}

            def packets(rows: list[clusters.PacketLine]) -> None:
                chosen = [row for row in rows if row["class"] in ("message", "fragment")]
                if chosen:
                    messages[rows[0]["from_node"]].add([_message(row) for row in chosen])

            def ended(call: RemoteCall) -> None:
                calls[call.client.name].add([self._call(call)])

            self._reading.read(packets, ended)
            for name, tables in (("messages", messages), ("calls", calls)):
                for table in tables.values():
                    table.close()
                    self.done[name] += table.done
        for node in self._reading.nodes:
            self._events(node, moved)

    def _events(self, node: Node, moved: Callable[[float], object]) -> None:
        before = self.done["events"]
        with self._open(self._path("events", node.name)) as output:
            self.done["events"] += parquet.write(
                node.capture,
                node.contents,
                output,
                lambda done: moved(before + done),
                placed=True,
            )

    def _table(self, files: ExitStack, table: str, node: str) -> _Table:
        output = files.enter_context(self._open(self._path(table, node)))
        group = max(_LEAST_GROUP, _WAITING // (2 * len(self._nodes)))
        made = _Table(output, _MESSAGES if table == "messages" else _CALLS, group)
        files.callback(made.release)
        return made

    def _path(self, table: str, node: str) -> Path:
        """The file of a node in a table; its folders are made."""
        where = host(self._nodes[node]) or "unknown"
        folder = self._folder / table / f"host={_quoted(where)}" / f"node={_quoted(node)}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder / "part-0.parquet"

    def _call(self, call: RemoteCall) -> dict[str, Any]:
        names = self._reading.names
        client, label = names[call.client].process(call.caller)
        target = call.target
        pid, who = names[target].process(call.server) if target else (None, None)
        wall = call.client.to_wall
        times = {
            f"{moment}_ns": time + wall if time else None
            for moment, time in zip(MOMENTS, call.moments(), strict=True)
        }
        return {
            "client_pid": client,
            "client_who": label,
            "server_node": target and target.name,
            "server_host": target and host(target),
            "server_pid": pid,
            "server_who": who,
            "ended": "down" if call.down else "replied",
            "reference": call.reference,
            "trace_id": trace_id(call.client.name, call.reference),
            **times,
        }


def _quoted(text: str) -> str:
    """A name of a host or node as a part of a path: no other folder, no other column."""
    return urllib.parse.quote(text, safe="@-_") if text.strip(".") else "%2E" * len(text)


def _message(row: clusters.PacketLine) -> dict[str, Any]:
    same = ("from_pid", "from_who", "to_node", "to_host", "to", "to_who", "class")
    facts: dict[str, Any] = {name: row[name] for name in same}  # type: ignore[literal-required]
    facts |= {"operation": row["operation"], "bytes": row["bytes"], "packet": row["packet"]}
    return facts | {"out_ns": row["sent_ns"], "in_ns": row["received_ns"]}
