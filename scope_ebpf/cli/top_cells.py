# SPDX-License-Identifier: Apache-2.0
"""The columns of ``top``, and the texts of one process in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.beam.processes.shapes import escaped
from scope_ebpf.screen.layout import Column
from scope_ebpf.sinks.plain import short, spelled

if TYPE_CHECKING:
    from scope_ebpf.results.documents.processes import ProcessRow

PID, NAME, RATE, MEMORY, MAIL, STATUS, FUNCTION = range(7)
COLUMNS = (
    Column("PID", rank=7, least=9),
    Column("NAME OR INITIAL CALL", rank=3, least=12, cut=True),
    Column("REDS/S", rank=5, right=True, least=6),
    Column("MEMORY", rank=4, right=True, least=6),
    Column("MAIL", rank=6, right=True, least=4),
    Column("STATUS", rank=1, least=9),
    Column("IN FUNCTION", rank=2, least=14, cut=True),
)
#: What the table can be sorted by, by the numbers of the keys, and the column that shows it.
SORTED = {
    "reductions": RATE,
    "memory": MEMORY,
    "mailbox": MAIL,
    "gc": RATE,
    "pid": PID,
    "binary": MEMORY,
}
#: Messages from which on a mailbox is shown in red.
LONG_MAILBOX = 1000
#: Headings that replace the one of the column that a table is sorted by.
_INSTEAD = {"gc": "GC/S", "binary": "BINARY"}
#: Words of ``process_info`` that are too long for a column.
_STATUS = {"garbage_collecting": "collecting"}


def columns(sort: str) -> tuple[Column, ...]:
    """The columns of a table that is sorted by *sort*."""
    heading = _INSTEAD.get(sort)
    if heading is None:
        return COLUMNS
    at = SORTED[sort]
    one = COLUMNS[at]
    changed = Column(heading, one.rank, right=one.right, least=one.least)
    return (*COLUMNS[:at], changed, *COLUMNS[at + 1 :])


def name_of(name: str | None, label: str | None, module: str | None, call: str | None) -> str:
    """
    The name of a process for people: registered name, label, callback module or initial call.

    The callback *module* of a behaviour follows in brackets where it is another word.
    """
    shown = name or label or module or call or "?"
    if name == "":
        shown = "''"  # that is a name, too
    if module and module != shown:
        shown += f" ({module})"
    return escaped(spelled(shown))


def cells(process: ProcessRow, rate: float | None, sort: str = "") -> tuple[str, ...]:
    """
    The texts of one process, as ``Viewer.describe`` has it, in the order of the columns.

    *rate* is reductions, or bytes of collections, per second; None before it is known. Sorted by
    binaries, these are shown instead of the memory.
    """
    module = process["module"] if process["behaviour"] else None
    about = "~" if process.get("memory_estimated") else ""
    memory = about + short(process["memory_bytes"])
    status = process["status"]
    return (
        process["pid"],
        name_of(process["name"], process["label"], module, process["initial_call"]),
        "-" if rate is None else short(rate),
        short(process["binary_bytes"]) if sort == "binary" else memory,
        short(process["message_queue_len"]),
        _STATUS.get(status, status),
        escaped(spelled(process["current_function"] or "?")),
    )
