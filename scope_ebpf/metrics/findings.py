# SPDX-License-Identifier: Apache-2.0
"""What a check found of one target, as plain data and as Prometheus families."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, get_args

from scope_ebpf.results.kinds import Kind, Severity

if TYPE_CHECKING:
    from scope_ebpf.metrics.page import Page
    from scope_ebpf.results.documents.checks import CheckDocument

SEVERITIES: tuple[Severity, ...] = get_args(Severity)
KINDS: tuple[Kind, ...] = get_args(Kind)
#: Kinds that are exported for one target.
MOST_KINDS = 24


class FoundKind(NamedTuple):
    """One kind of finding that holds, and its worst severity."""

    kind: Kind
    severity: Severity


@dataclass(frozen=True, slots=True)
class FindingsReading:
    """What the last check of a target found."""

    #: The most severe first, then in the order of KINDS; MOST_KINDS at most.
    kinds: tuple[FoundKind, ...] = ()
    #: The findings, without what is too long; None before the first check, and if it failed.
    document: CheckDocument | None = None
    #: Why the target could not be checked; "" if it could.
    refused: str = ""
    #: When the check began, seconds since 1970; 0 if there was none.
    taken: float = 0.0


def expose_findings(page: Page, node: str, found: FindingsReading) -> None:
    """Add the kinds that hold, and their number for each severity."""
    if found.document is None:
        return
    for one in found.kinds:
        page.add("beam_finding", 1, node=node, kind=one.kind, severity=one.severity)
    for severity in SEVERITIES:
        count = sum(one.severity == severity for one in found.kinds)
        page.add("beam_finding_kinds", count, node=node, severity=severity)
    page.add("scope_ebpf_findings_timestamp_seconds", found.taken, node=node)
