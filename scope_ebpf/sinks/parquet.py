# SPDX-License-Identifier: Apache-2.0
"""
A capture as one Parquet table: a row for each event, null for what an event does not have.

Times are of microseconds and all whole numbers are signed, so that Spark reads it as it is.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

import numpy as np

from scope_ebpf import events
from scope_ebpf.capture.terms import CapturedTerms
from scope_ebpf.capture.values import SIGNED
from scope_ebpf.errors import MissingPackageError
from scope_ebpf.sinks.columns import add_names, columns

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scope_ebpf.capture.reader import Capture, Contents

#: Rows in one group of the file.
_BATCH = 1 << 16
_HEADER = len(events.RECORD.names or ()) - 1


def pyarrow() -> tuple[Any, Any]:
    """The library; MissingPackageError where it is not installed."""
    try:
        import pyarrow as pa  # an extra
        from pyarrow import parquet
    except ImportError as error:
        raise MissingPackageError(
            f"the Parquet export needs the Python package pyarrow ({error}): pip install pyarrow "
            "where scope-trace is installed by pip; Debian has no package of it, so the deb has "
            "--to jsonl instead"
        ) from None
    return pa, parquet


def _fields(pa: Any) -> dict[str, Any]:
    """The type of every column: what all events have, then the fields of each kind."""
    text = pa.dictionary(pa.int32(), pa.string())
    fields: dict[str, Any] = {
        "time": pa.timestamp("us", "UTC"),
        "time_ns": pa.int64(),
        "node": text,
        "host": text,
        "event": text,
        "tid": pa.int64(),
        "pid": text,
        "who": text,
        "class": text,
        # Of long and marked calls; a spawn has a function, too.
        "function": text,
        "symbol": text,
        "called_from": text,
    }
    for name, kind in events.KINDS.items():
        dtype = events.RECORDS[name]
        for field in (dtype.names or ())[_HEADER:]:
            unit = kind.units.get(field)
            if field == "reserved":
                continue
            if unit == "ns":
                fields[f"{field.removesuffix('_ns')}_seconds"] = pa.float64()
            elif unit == "words":
                fields[f"{field}_bytes"] = pa.int64()
            elif unit == "form":
                fields |= {"form": text, "reference": pa.int64()}
            else:
                words = ("eterm", "atom", "atom_index", "loss", "remote", "mark")
                term = unit in words or dtype[field].kind == "S"
                fields[field] = text if term else pa.int64()
    return fields


def write(
    capture: Capture,
    contents: Contents,
    output: IO[bytes],
    moved: Callable[[int], object] = lambda _done: None,
    *,
    placed: bool = False,
) -> int:
    """
    Write everything to *output*; how many rows. Raises OSError where it does.

    If the file is *placed* in a folder that names node and host, it has no columns of them.
    """
    pa, parquet = pyarrow()
    fields = _fields(pa)
    if placed:
        fields = {name: kind for name, kind in fields.items() if name not in ("node", "host")}
    schema = pa.schema(list(fields.items()))
    terms = CapturedTerms(contents)
    done = 0
    with parquet.ParquetWriter(output, schema, compression="zstd") as writer:
        for batch in capture.batches(_BATCH):
            table = _table(batch, fields, terms, contents)
            arrays = [pa.array(table[name], kind) for name, kind in fields.items()]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            done += len(batch)
            moved(done)
    return done


def _table(
    batch: NDArray[np.void], fields: dict[str, Any], terms: CapturedTerms, contents: Contents
) -> dict[str, Any]:
    """Every column of a batch, in the order of its records."""
    empty = np.full(len(batch), None, object)
    made: dict[str, Any] = {name: empty.copy() for name in fields}
    made["time_ns"] = batch["time_ns"].astype(np.int64) + contents.head.clocks.to_wall
    made["time"] = made["time_ns"] // 1000
    made["tid"] = batch["tid"]
    for name, text in (("node", contents.head.target["node"]), ("host", host(contents))):
        if name in made:
            made[name][:] = text
    names = tuple(events.KINDS)
    for number in np.unique(batch["kind"]).tolist():
        chosen = batch["kind"] == number
        made["event"][chosen] = names[number]
        rows = batch[chosen]
        table = columns(names[number], rows, terms)
        add_names(table, terms)
        for label, values in table.items():
            made[label][chosen] = [_signed(value) for value in values]
        made["who"][chosen] = _who(rows, terms)
    return made


def _signed(value: Any) -> Any:
    """Leave out a number that no signed column holds: no size, time or address is that large."""
    return None if isinstance(value, int) and value > SIGNED else value


def host(contents: Contents) -> str | None:
    """The host of a capture; None where it does not say."""
    name = contents.head.host.get("name")
    return None if name is None else str(name)


def _who(rows: NDArray[np.void], terms: CapturedTerms) -> list[str | None]:
    if (rows["flags"] & events.FLAG_TEXT_PID).any():
        return [None] * len(rows)
    words = rows["process"].tolist()
    names = terms.who(words)
    return [names.get(word) for word in words]
