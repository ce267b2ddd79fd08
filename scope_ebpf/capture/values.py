# SPDX-License-Identifier: Apache-2.0
"""
The JSON of a capture, each value checked for its type and range where it is taken.

A capture may come from a stranger. The rest of the program may count on what passes these
checks: whole numbers within 64 bits, finite floats, text of bounded length that can be
encoded, lists of bounded length. Nothing else of a document is read.
"""

from __future__ import annotations

import json
import math
import reprlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from scope_ebpf.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Iterator

UNSIGNED = (1 << 64) - 1
#: Largest time or offset: numpy and Perfetto have it signed.
SIGNED = (1 << 63) - 1
#: Characters of one text.
TEXT = 4096
#: Lists, objects and commas of one block; an object of Python's takes 200 bytes at most for each.
_PARTS = 1 << 21


@dataclass(frozen=True, slots=True)
class Value:
    """One value of a block's JSON, with its path for error messages."""

    raw: Any
    #: The name of the block, or the key or index within *inside*.
    key: str | int
    inside: Value | None = None

    def wrong(self, wanted: str) -> NoReturn:
        """Raise CaptureError: block, field, what is there and what is *wanted*."""
        raise CaptureError(f"{self} is {reprlib.repr(self.raw)}, and wanted is {wanted}")

    def __str__(self) -> str:
        """Say where it is, such as ``the first block: plan[3].via``."""
        if self.inside is None:
            return str(self.key)
        inner = f"[{self.key}]" if isinstance(self.key, int) else str(self.key)[:64]
        outer = str(self.inside)
        if isinstance(self.key, int):
            return outer + inner
        return f"{outer}: {inner}" if self.inside.inside is None else f"{outer}.{inner}"

    def __getitem__(self, name: str) -> Value:
        """A field that must be there."""
        if name not in self._fields():
            self.wrong(f"an object with the field {name}")
        return Value(self.raw[name], name, self)

    def get(self, name: str, default: Any) -> Value:
        """A field, or *default* where it is not there."""
        return Value(self._fields().get(name, default), name, self)

    def fields(self, most: int) -> Iterator[tuple[str, Value]]:
        """Every field of an object that has *most* at most."""
        if len(self._fields()) > most:
            self.wrong(f"an object of at most {most:,} fields")
        return ((text(name), Value(value, name, self)) for name, value in self.raw.items())

    def items(self, most: int) -> list[Value]:
        """The items of a list of *most* at most."""
        if not isinstance(self.raw, list) or len(self.raw) > most:
            self.wrong(f"a list of at most {most:,}")
        return [Value(item, index, self) for index, item in enumerate(self.raw)]

    def row(self, count: int) -> list[Value]:
        """The items of a list of exactly *count*."""
        if not isinstance(self.raw, list) or len(self.raw) != count:
            self.wrong(f"a list of {count}")
        return [Value(item, index, self) for index, item in enumerate(self.raw)]

    def whole(self, most: int = UNSIGNED, least: int = 0) -> int:
        """A whole number from *least* to *most*."""
        raw = self.raw
        if isinstance(raw, bool) or not isinstance(raw, int) or not least <= raw <= most:
            self.wrong(f"a whole number from {least} to {most}")
        return int(raw)

    def number(self, most: float) -> float:
        """A number from 0 to *most*."""
        raw = self.raw
        if isinstance(raw, bool) or not isinstance(raw, (int, float)):
            self.wrong("a number")
        if not (math.isfinite(raw) and 0 <= raw <= most):
            self.wrong(f"a number from 0 to {most:g}")
        return float(raw)

    def text(self, most: int = TEXT) -> str:
        """Text of at most *most* characters that can be encoded."""
        if not isinstance(self.raw, str) or len(self.raw) > most:
            self.wrong(f"text of at most {most:,} characters")
        return text(self.raw)

    def one_of(self, *known: str) -> str:
        """One of the texts *known*."""
        if not isinstance(self.raw, str) or self.raw not in known:
            self.wrong(f"one of {', '.join(known)}")
        return self.raw

    def truth(self) -> bool:
        """True or false."""
        if not isinstance(self.raw, bool):
            self.wrong("true or false")
        return self.raw

    def _fields(self) -> dict[str, Any]:
        if not isinstance(self.raw, dict):
            self.wrong("an object")
        return self.raw


def within(value: int, most: int = UNSIGNED) -> int:
    """*value* as a field for numbers up to *most* can hold it: sums of a capture's may be any."""
    return min(max(value, 0), most)


def text(raw: str) -> str:
    """*raw* without halves of surrogate pairs: a path that is no UTF-8 has them in JSON."""
    return raw if raw.isascii() else raw.encode("utf-8", "replace").decode()


def document(payload: bytes, block: str) -> Value:
    """The JSON of a block; CaptureError if it is not JSON, or has too many parts for memory."""
    if sum(map(payload.count, (b",", b"[", b"{"))) > _PARTS:
        raise CaptureError(f"{block} has more than {_PARTS:,} values")
    try:
        return Value(json.loads(payload, parse_constant=_no_number), block)
    except (ValueError, RecursionError) as error:
        raise CaptureError(f"{block} cannot be read: {error or type(error).__name__}") from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
