# SPDX-License-Identifier: Apache-2.0
"""The catalogue of series: ``catalogue.toml`` as records."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Series:
    """One exported series; ``catalogue.toml`` explains the fields at its top."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    help: str
    source: Literal["hook", "memory", "kernel", "snapshot", "daemon"]
    unit: str = ""
    labels: tuple[str, ...] = ()
    event: str | None = None
    class_label: str | None = None
    classes: tuple[str, ...] = ()
    seconds: bool = False
    merged: bool = False
    counter: str | None = None
    limit: str | None = None
    process: str | None = None
    snapshot: str | None = None
    threads: str | None = None
    factor: float = 1
    bounds: tuple[int, int, int] | None = None

    @property
    def family(self) -> str:
        """The name of its family, which for a counter lacks ``_total``."""
        return self.name.removesuffix("_total") if self.type == "counter" else self.name

    @property
    def exponents(self) -> range:
        """Bounds of a histogram, as exponents of two of nanoseconds."""
        first, last, step = self.bounds or (0, 0, 1)
        return range(first, last + 1, step)


@cache
def catalogue() -> dict[str, Series]:
    """Every series by its name, in the order in which it is exported."""
    text = resources.files(__package__).joinpath("catalogue.toml").read_text("utf-8")
    return {name: _series(name, table) for name, table in tomllib.loads(text).items()}


def _series(name: str, table: dict[str, Any]) -> Series:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    if name.startswith("beam_"):
        values["labels"] = ("node", *values.get("labels", ()))
    return Series(name=name, **values)
