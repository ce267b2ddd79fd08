# SPDX-License-Identifier: Apache-2.0
"""Requests as trees for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.sinks.plain import duration, plain, spelled

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.results.requests import Request, Requests, Span
    from scope_ebpf.results.telemetry import Telemetry

#: Characters of one label; spans that are shown of one request.
_WIDTH, _SPANS = 60, 30


def lines(requests: Requests, run: Telemetry, pid_text: Callable[[int], str]) -> list[str]:
    """Write the slowest requests, then the failed ones."""
    target = run.target
    head = (
        f"{target['node'] or '?'}  pid {target['pid']}  OTP {target['otp_release']}  "
        f"{run.seconds:.1f} s, {requests.seen:,} requests, {requests.failures:,} failed"
    )
    text = [head]
    for request in requests.found():
        text += ["", *_tree(request, pid_text)]
    text.append("")
    if run.counts["lost"]:
        text.append(f"{run.counts['lost']:,} events found no room: their requests lack a span")
    text += [f"{n:,} {what}" for n, what in _missing(requests) if n]
    text += run.notes
    hits = f"cost: {run.hits:,} hits"
    taken = f", about {run.cpu_seconds:.3f} s of CPU" if run.cpu_seconds is not None else ""
    return [plain(line) for line in [*text, hits + taken]]


def _missing(requests: Requests) -> tuple[tuple[int, str], ...]:
    """What is not shown: numbers, each with what there are so many of."""
    return (
        (requests.left_out, "events are part of no request, or of one that was not seen in full"),
        (requests.dropped, "requests were given up: too many were under way at once"),
        (requests.unkept, "places of requests were lost: those kept had too many spans together"),
    )


def _tree(request: Request, pid_text: Callable[[int], str]) -> list[str]:
    head = [duration(request.seconds, ""), request.label("route"), request.label("exception")]
    named = " ".join(spelled(word)[:_WIDTH] for word in head if word)
    text = [f"{named}  {pid_text(request.pid)}{'  failed' if request.failed else ''}"]
    depths: list[int] = []
    start = request.spans[0].start
    for span, parent in zip(request.spans, request.parents, strict=True):
        depths.append(0 if parent == -1 else depths[parent] + 1)
        if len(depths) <= _SPANS:
            text.append(_span(span, depths[-1], span.start - start))
    if len(request.spans) > _SPANS:
        text.append(f"  and {len(request.spans) - _SPANS} more")
    return text


def _span(span: Span, depth: int, offset: int) -> str:
    labels = " ".join(spelled(value)[:_WIDTH] for value in span.labels.values() if value)
    name = f"{'  ' * depth}{spelled(span.event)}"
    took = duration((span.end - span.start) / 1e9, "")
    return f"  {duration(offset / 1e9, ''):>8}  {name:<40} {took:>8}  {labels}".rstrip()
