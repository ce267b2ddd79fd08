# SPDX-License-Identifier: Apache-2.0
"""A check as text: the verdict, the findings, what was looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scope_ebpf.sinks.plain import plain, refusals, size, spelled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scope_ebpf.results.documents.checks import CheckDocument, FindingDocument


def lines(document: CheckDocument) -> list[str]:
    """Write the document of a check."""
    target = document["target"]
    text = [document["verdict"]["summary"]]
    text.append(
        f"{target['node'] or '?'}  pid {target['pid']}  OTP {target['otp_release']}  "
        f"{document['duration_seconds']:.1f} s, no hooks, "
        f"{document['own_cpu_seconds']:.2f} s of CPU"
    )
    for number, finding in enumerate(document["findings"], 1):
        text += ["", *_finding(number, finding)]
    if document["left_out"]:
        left = ", ".join(f"{count} {kind}" for kind, count in document["left_out"].items())
        text += ["", f"and {sum(document['left_out'].values())} findings more: {left}"]
    good = ", ".join(document["checked"])
    text += ["", f"looked at: {good or 'nothing'}"]
    missing = refusals((one["what"], one["reason"]) for one in document["not_checked"])
    text += [f"not looked at: {line}" for line in missing]
    return [plain(spelled(line)) for line in text]


def _finding(number: int, finding: FindingDocument) -> Iterator[str]:
    yield (
        f"{number}. {finding['severity']}, {finding['confidence']}, {finding['kind']}: "
        + (finding["summary"])
    )
    for key, value in finding["evidence"].items():
        if isinstance(value, list):
            for one in value:
                yield f"     {key}: {_item(one)}"
        elif value is not None:
            yield f"     {key}: {_figure(key, value)}"
    for command in finding["next"]:
        yield f"     next: {command}"


def _item(one: Any) -> str:
    if not isinstance(one, dict):
        return str(one)
    if "shape" in one:
        return f"{one['count']} x {one['shape']}"
    where = f" in {one['function']}" if one["function"] else ""
    return f"{one['process']} {one['name'] or one['initial_call'] or ''}{where}"


def _figure(key: str, value: Any) -> str:
    if key.endswith("bytes"):
        return size(value)
    if key == "share":
        return f"{100 * value:.0f} %"
    return f"{value:,}" if isinstance(value, int) else str(value)
