# SPDX-License-Identifier: Apache-2.0
"""Families that are being filled; what is not in the catalogue cannot be exported."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from prometheus_client.core import Metric

from scope_ebpf.metrics.catalogue import Series, catalogue
from scope_ebpf.metrics.compat import Names
from scope_ebpf.plain import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

#: A label value is no longer than this; OTP's names are at most 255 characters.
MAX_LABEL = 255
#: Characters at the end of one that was cut, which are others for another value.
_DIGEST = 16


class Page:
    """
    Families that are being filled: each name, label and type is that of the catalogue.

    With *compat*, what means the same as a series of prometheus.erl has its names too.
    """

    def __init__(self, *, compat: bool = False) -> None:
        self._families: dict[str, Metric] = {}
        self._names = Names() if compat else None
        #: Samples that were added, those of other names counted twice: they have an old one, too.
        self.samples = 0

    def add(self, series_name: str, value: float, /, **labels: str) -> None:
        """One sample of a counter or a gauge; KeyError for a name that is not in the catalogue."""
        series = catalogue()[series_name]
        checked = _checked(series, labels)
        self._family(series).add_sample(series_name, checked, value)
        self.samples += 1
        if self._names:
            self.samples += 2 * self._names.add(series_name, checked, value)

    def elsewhere(self, source: str, value: float, /, **labels: str) -> None:
        """One figure that has no series of ours, only names of prometheus.erl."""
        if self._names:
            texts = {n: label_value(text) for n, text in labels.items()}
            self.samples += 2 * self._names.add(source, texts, value)

    def histogram(
        self, name: str, slots: NDArray[np.float64], total_ns: float, **labels: str
    ) -> None:
        """
        One histogram of log2 *slots*: slot N counts 2^N ns up to 2^(N+1).

        A bound of 2^E ns takes in all slots below E. Counts that were estimated are rounded once
        they are added up: whole, as OpenMetrics wants them, and none below the one before.
        """
        series = catalogue()[name]
        family, values = self._family(series), _checked(series, labels)
        running = np.rint(slots.cumsum())
        for exponent in series.exponents:
            bound = {**values, "le": repr(2**exponent / 1e9)}
            family.add_sample(f"{name}_bucket", bound, float(running[exponent - 1]))
        family.add_sample(f"{name}_bucket", {**values, "le": "+Inf"}, float(running[-1]))
        family.add_sample(f"{name}_count", values, float(running[-1]))
        family.add_sample(f"{name}_sum", values, total_ns / 1e9)
        self.samples += len(series.exponents) + 3

    def families(self) -> Iterator[Metric]:
        """Everything that was added, in the order of the catalogue; then by other names."""
        order = {series.family: place for place, series in enumerate(catalogue().values())}
        yield from sorted(self._families.values(), key=lambda family: order[family.name])
        if self._names:
            yield from self._names.families()

    def _family(self, series: Series) -> Metric:
        if series.family not in self._families:
            self._families[series.family] = Metric(series.family, series.help, series.type)
        return self._families[series.family]


def _checked(series: Series, labels: Mapping[str, str]) -> dict[str, str]:
    if set(labels) != set(series.labels):
        raise KeyError(f"{series.name} has the labels {series.labels}, not {tuple(labels)}")
    return {name: label_value(labels[name]) for name in series.labels}


def label_value(text: str) -> str:
    """
    *text* as a label's value: fit for a terminal, and cut if it is long.

    What was changed ends in a digest, so that it is another than that of another.
    """
    clean = plain(text)
    if clean == text and len(clean) <= MAX_LABEL:
        return clean
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]
    return f"{clean[: MAX_LABEL - 1 - _DIGEST]}~{digest}"
