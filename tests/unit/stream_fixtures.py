# SPDX-License-Identifier: Apache-2.0
"""
Records and texts of terms, made by hand.
"""

from __future__ import annotations

import numpy as np

from scope_ebpf import events

UNKNOWN = 0xFFFFFFFFFFFFFFFF
#: What no atom of a well-meaning node contains.
HOSTILE = '\x1b[2J"\n\\\x00\u202e%s {"a":1}\r\x7f'


class Terms:
    """
    Texts of terms from a table; a word that is not in it is its number, 0 is absent.
    """

    def __init__(self, table: dict[int, str] | None = None) -> None:
        self.table = table or {}
        self.asked: list[tuple[list[int], bool]] = []

    def texts(self, terms: list[int], *, text_pids: bool) -> list[str | None]:
        self.asked.append((terms, text_pids))
        return [self.table.get(t, f"t{t}") if t else None for t in terms]

    def marked(self, number: int) -> str | None:
        return self.table.get(number)


def record(name: str, /, **fields) -> np.ndarray:
    """
    One record of a kind, as it lies in the ring; its class by name.
    """
    kind = events.KINDS[name]
    row = np.zeros(1, events.RECORDS[name])
    row["kind"] = kind.id
    row["ring_length"] = 56
    for field, value in fields.items():
        row[field] = kind.classes.index(value) if field == "class" else value
    return row.view(events.RECORD)
