# SPDX-License-Identifier: Apache-2.0
"""Prometheus families under construction; a name outside the catalogue cannot be exported."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from prometheus_client.core import Metric

from scope_ebpf.metrics.catalogue import Series, catalogue
from scope_ebpf.metrics.compat import CompatNames
from scope_ebpf.metrics.prom_ex import PromExNames
from scope_ebpf.plain import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

#: Maximum characters of a label value; names in OTP have at most 255.
MAX_LABEL = 255
#: Characters of the digest at the end of a shortened value, which differ for different values.
_DIGEST = 16


class Page:
    """
    Families under construction: names, labels and types are those of the catalogue.

    With *compat*, series that have an equivalent in prometheus.erl get its names too, and with
    *prom_ex* those that have one in PromEx.

    Attributes:
        samples: number of samples; those under other names count twice, for they have an old name.
    """

    def __init__(self, *, compat: bool = False, prom_ex: bool = False) -> None:
        self._families: dict[str, Metric] = {}
        self._names = CompatNames() if compat else None
        self._prom_ex = PromExNames() if prom_ex else None
        self.samples = 0

    def add(self, series_name: str, value: float, /, **labels: str) -> None:
        """Add a sample of a counter or gauge; KeyError if the catalogue does not have the name."""
        series = catalogue()[series_name]
        checked = _checked(series, labels)
        self._family(series).add_sample(series_name, checked, value)
        self.samples += 1
        if self._names:
            self.samples += 2 * self._names.add(series_name, checked, value)

    def add_compat(self, source: str, value: float, /, **labels: str) -> None:
        """Add a figure that only has names of prometheus.erl."""
        if self._names:
            texts = {n: label_value(text) for n, text in labels.items()}
            self.samples += 2 * self._names.add(source, texts, value)

    def histogram(
        self, name: str, slots: NDArray[np.float64], total_ns: float, **labels: str
    ) -> None:
        """
        Add a histogram of log2 *slots*: slot N counts durations from 2^N ns to 2^(N+1).

        A bound of 2^E ns includes all slots below E. Estimated counts are rounded after they are
        summed up, so that they are whole, as OpenMetrics requires, and never decrease.
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
        if self._prom_ex:
            self.samples += self._prom_ex.add(name, slots, total_ns, values)

    def families(self) -> Iterator[Metric]:
        """All families in the order of the catalogue; then those of prometheus.erl and PromEx."""
        order = {series.family: number for number, series in enumerate(catalogue().values())}
        yield from sorted(self._families.values(), key=lambda family: order[family.name])
        for names in (self._names, self._prom_ex):
            if names:
                yield from names.families()

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
    *text* as a label value: printable, and shortened if it is long.

    A changed value ends in a digest, so that different texts have different values.
    """
    clean = plain(text)
    if clean == text and len(clean) <= MAX_LABEL:
        return clean
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]
    return f"{clean[: MAX_LABEL - 1 - _DIGEST]}~{digest}"
