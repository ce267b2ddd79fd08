# SPDX-License-Identifier: Apache-2.0
"""
Findings about one VM: what is wrong, by which evidence, and how certain that is.

Pure. The JSON of :meth:`Check.as_json` is a contract; fields and kinds are added, never renamed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, get_args

from scope_ebpf.results.kinds import Confidence, Kind, Severity

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.results.documents.checks import (
        CheckDocument,
        Evidence,
        FindingDocument,
        Subject,
    )
    from scope_ebpf.results.documents.vms import Target

SEVERITIES: tuple[Severity, ...] = get_args(Severity)
CONFIDENCES: tuple[Confidence, ...] = get_args(Confidence)
#: Causes come before what follows from them.
KINDS: tuple[Kind, ...] = get_args(Kind)
#: Findings that are shown; the rest is counted.
MOST = 10


class Name(NamedTuple):
    """A text of the application in a sentence of ours; *key* is what redaction calls it."""

    key: str
    text: str


#: A sentence: words of ours, and texts of the application.
Text = tuple[str | Name, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    kind: Kind
    severity: Severity
    subject: Subject
    summary: Text
    evidence: Evidence
    confidence: Confidence = "certain"
    #: Commands behind ``scope-trace``, with ``{pid}`` for the VM. No name of the VM's is in them:
    #: people paste them into a shell.
    next: tuple[str, ...] = ()
    #: Decides between findings of one kind: the larger comes first.
    weight: float = 0.0

    def order(self) -> tuple[int, int, int, float]:
        """The most severe first, then the most certain, then causes."""
        return (
            SEVERITIES.index(self.severity),
            CONFIDENCES.index(self.confidence),
            KINDS.index(self.kind),
            -self.weight,
        )

    def text(self, write: Callable[[Name], str] = lambda name: name.text) -> str:
        """The sentence; *write* writes texts of the application."""
        return "".join(one if isinstance(one, str) else write(one) for one in self.summary)

    def as_json(self, pid: int, write: Callable[[Name], str]) -> FindingDocument:
        """The fields of one finding of the VM *pid*."""
        return {
            "severity": self.severity,
            "kind": self.kind,
            "subject": self.subject,
            "summary": self.text(write),
            "evidence": self.evidence,
            "confidence": self.confidence,
            "next": [f"scope-trace {one.format(pid=pid)}" for one in self.next],
        }


@dataclass(slots=True)
class Check:
    """All that was found of one VM."""

    target: Target
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    #: Why a part was not looked at, by part.
    not_checked: dict[str, str] = field(default_factory=dict)
    #: Findings that were counted without being made, by kind.
    more: Counter[Kind] = field(default_factory=Counter)
    cpu_seconds: float = 0.0

    def sorted(self) -> list[Finding]:
        """All findings in their order."""
        return sorted(self.findings, key=Finding.order)

    def worst(self) -> Severity | None:
        """The worst severity of all findings; None if nothing was found."""
        found = self.sorted()
        return found[0].severity if found else None

    def fails(self, at: Severity) -> bool:
        """Whether there is a finding of the severity *at* or a worse one."""
        worst = self.worst()
        return worst is not None and SEVERITIES.index(worst) <= SEVERITIES.index(at)

    def left_out(self) -> Counter[Kind]:
        """Findings behind the first MOST, by kind."""
        return self.more + Counter(one.kind for one in self.sorted()[MOST:])

    def verdict(self, write: Callable[[Name], str] = lambda name: name.text) -> str:
        """What is wrong, in one line."""
        found = self.sorted()
        if found:
            more = len(found) + self.more.total() - 1
            rest = f" ({more} more)" if more else ""
            return f"{found[0].severity}: {found[0].text(write)}{rest}"
        if not self.checked:
            return "nothing could be looked at"
        parts = "part was" if len(self.checked) == 1 else "parts were"
        rest = f"; {len(self.not_checked)} could not be looked at" if self.not_checked else ""
        return f"good: nothing was found; {len(self.checked)} {parts} looked at{rest}"

    def as_json(
        self, write: Callable[[Name], str] = lambda name: name.text, *, redacted: bool = False
    ) -> CheckDocument:
        """The document; *write* writes texts of the application that are in sentences."""
        found = self.sorted()
        pid = self.target["pid"]
        left_out = self.left_out()
        return {
            "schema": 1,
            "outcome": "partial" if self.not_checked else "complete",
            "target": self.target,
            "duration_seconds": round(self.seconds, 3),
            "verdict": {
                "severity": found[0].severity if found else "good",
                "summary": self.verdict(write),
            },
            "findings": [one.as_json(pid, write) for one in found[:MOST]],
            "findings_total": len(found) + self.more.total(),
            "left_out": {kind: left_out[kind] for kind in KINDS if left_out[kind]},
            "checked": self.checked,
            "not_checked": [
                {"what": what, "reason": reason} for what, reason in self.not_checked.items()
            ],
            "own_cpu_seconds": round(self.cpu_seconds, 3),
            "redacted": redacted,
        }
