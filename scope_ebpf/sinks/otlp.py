# SPDX-License-Identifier: Apache-2.0
"""
A capture as OpenTelemetry spans: schedules, collections, long and marked calls, calls of servers.

A call is a client's span from request to answer; within it are the time that the request waited in
the mailbox of the server, and the time that the server took. Each call is a trace of its own. Of a
call from node to node the caller's capture has the client's span, the server's capture the server's
span below it: both make the same ids, of the caller's node and the call's reference.

The form is OTLP/JSON (opentelemetry.io/docs/specs/otlp), one export request a line as
the file exporter writes it; the same requests can be posted to a collector.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from typing import TYPE_CHECKING, Any, Literal

from scope_ebpf import events
from scope_ebpf.capture.calls import Calls
from scope_ebpf.capture.legs import span_id, trace_id
from scope_ebpf.capture.marked import MarkedCalls
from scope_ebpf.capture.served import Served
from scope_ebpf.capture.terms import CapturedTerms
from scope_ebpf.capture.values import within
from scope_ebpf.sinks.columns import add_names, columns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.capture.calls import Call
    from scope_ebpf.capture.marked import MarkedCall
    from scope_ebpf.capture.reader import Capture, Contents
    from scope_ebpf.capture.served import ServedCall
    from scope_ebpf.results.documents.exports import (
        Attribute,
        DoubleValue,
        IntValue,
        Scope,
        Span,
        SpansRequest,
        StringValue,
    )

#: Spans in one request.
SPANS = 1000
_BATCH = 8192
_INTERNAL: Literal[1] = 1  # SpanKind
_SERVER: Literal[2] = 2
_CLIENT: Literal[3] = 3
#: Set in the numbers of spans of marked calls, which others refer to before they are made.
_MARKED = 1 << 62
_TIMED = ("schedule", "gc", "long_call")
_UNKNOWN = 0xFFFFFFFFFFFFFFFF


class Spans:
    """Makes the spans of one capture; they are children of one span for the whole of it."""

    def __init__(self, capture: Capture, contents: Contents) -> None:
        self._capture = capture
        self._contents = contents
        self._terms = CapturedTerms(contents)
        self._to_wall = contents.head.clocks.to_wall
        target = contents.head.target
        seed = f"{target['node']} {target['pid']} {contents.head.clocks.realtime}"
        self._trace = hashlib.sha256(seed.encode()).hexdigest()[:32]
        self.made = 0

    def requests(
        self, moved: Callable[[int], object] = lambda _done: None
    ) -> Iterator[SpansRequest]:
        """Export requests of SPANS spans at most, as OTLP/JSON has them."""
        contents = self._contents
        first, last = contents.first_ns or contents.head.clocks.monotonic, contents.last_ns
        waiting = [self._span("scope-trace record", first, max(first, last), {})]
        done = 0
        calls = Calls()
        nodes = {term: text for term, text in contents.atoms.items() if "@" in text}
        served, marked = Served(nodes), MarkedCalls()
        for batch in self._capture.batches(_BATCH):
            for name in _TIMED:
                rows = batch[batch["kind"] == events.KINDS[name].id]
                waiting += self._spans(name, rows)
            for call in calls.records(batch):
                waiting += self._call(call)
            waiting += [self._served(call) for call in served.records(batch)]
            waiting += [self._marked(call) for call in marked.records(batch)]
            while len(waiting) >= SPANS:
                yield self._request(waiting[:SPANS])
                waiting = waiting[SPANS:]
            done += len(batch)
            moved(done)
        if waiting:
            yield self._request(waiting)

    def _spans(self, name: str, rows: NDArray[np.void]) -> list[Span]:
        rows = rows[rows["body"][:, 0] != _UNKNOWN]  # each has its duration first
        if not len(rows):
            return []
        table = columns(name, rows, self._terms)
        add_names(table, self._terms)
        words = rows["process"].tolist()
        who = self._terms.who(words)
        ends = rows["time_ns"].tolist()
        durations, tids = rows["body"][:, 0].tolist(), rows["tid"].tolist()
        table.pop("duration_seconds")
        spans = []
        for row, (end, duration, word, tid) in enumerate(
            zip(ends, durations, words, tids, strict=True)
        ):
            facts = {f"beam.{label}": values[row] for label, values in table.items()}
            facts |= {"beam.process": who.get(word), "thread.id": tid}
            role = self._contents.threads.get(tid)
            facts["beam.scheduler"] = f"{role[0]} {role[1]}" if role else None
            spans.append(self._span(name, end - duration, end, facts))
        return spans

    def _call(self, call: Call) -> list[Span]:
        """The span of a call that has ended, and those within it."""
        who = self._terms.who([call.caller, call.server])
        texts = self._terms.texts([call.caller, call.server], text_pids=False)
        server = who.get(call.server) or texts[1]
        facts = {
            "rpc.system.name": "erlang",
            "rpc.method": server,
            "beam.pid": texts[0],
            "beam.process": who.get(call.caller),
            "beam.server.pid": texts[1],
            "error.type": "down" if call.down else None,
        }
        whole = self._span(
            f"call {server or 'on another node'}", call.sent_ns, call.ended_ns, facts
        )
        node = str(self._contents.head.target["node"])
        whole["kind"], whole["traceId"] = _CLIENT, trace_id(node, call.reference)
        whole["spanId"] = span_id(node, call.reference, "client")
        whole.pop("parentSpanId", None)
        parts = (
            ("queue", call.sent_ns, call.taken_ns),
            ("service", call.taken_ns, call.replied_ns),
        )
        made = [whole]
        for name, begin, end in parts:
            if begin and end:
                made.append(self._span(name, begin, end, {"rpc.method": server}))
                made[-1]["parentSpanId"] = whole["spanId"]
                made[-1]["traceId"] = whole["traceId"]
                made[-1]["spanId"] = span_id(node, call.reference, name)
        return made

    def _served(self, call: ServedCall) -> Span:
        """The span of a server for a call of another node, below the span of its client."""
        (text,) = self._terms.texts([call.server], text_pids=False)
        server = self._terms.who([call.server]).get(call.server) or text
        facts = {
            "rpc.system.name": "erlang",
            "rpc.method": server,
            "beam.server.pid": text,
            "beam.client.node": call.node,
        }
        span = self._span(f"serve {server}", call.taken_ns, call.replied_ns, facts)
        span["kind"], span["traceId"] = _SERVER, trace_id(call.node, call.reference)
        span["spanId"] = span_id(call.node, call.reference, "server")
        span["parentSpanId"] = span_id(call.node, call.reference, "client")
        return span

    def _marked(self, call: MarkedCall) -> Span:
        """The span of a marked call that has ended, within that of the marked call around it."""
        pid, tag, returned = self._terms.texts(
            [call.process, call.tag, call.returned], text_pids=False
        )
        name = self._terms.marked(call.function) or f"function {call.function:#x}"
        facts = {
            "code.function.name": name,
            "beam.pid": pid,
            "beam.process": self._terms.who([call.process]).get(call.process),
            "beam.tag": None if name.endswith("/0") else tag,
            "beam.returned": returned,
            "beam.called_from": self._terms.function(call.caller),
            "beam.end": call.end,
            "error.type": "exception" if call.end == "failed" else None,
        }
        span = self._span(name, call.began_ns, call.ended_ns, facts)
        span["spanId"] = f"{_MARKED | call.number:016x}"
        if call.parent:
            span["parentSpanId"] = f"{_MARKED | call.parent:016x}"
        return span

    def _span(self, name: str, begin: int, end: int, facts: dict[str, Any]) -> Span:
        self.made += 1
        span: Span = {
            "traceId": self._trace,
            "spanId": f"{self.made:016x}",
            "name": name,
            "kind": _INTERNAL,
            "startTimeUnixNano": str(within(begin + self._to_wall)),
            "endTimeUnixNano": str(within(end + self._to_wall)),
            "attributes": _attributes(facts),
        }
        if self.made > 1:
            span["parentSpanId"] = f"{1:016x}"
        return span

    def _request(self, spans: list[Span]) -> SpansRequest:
        target, host = self._contents.head.target, self._contents.head.host
        resource = {
            "service.name": str(target["node"] or "beam"),
            "service.instance.id": target["node"],
            "process.pid": target["pid"],
            "process.executable.path": target["exe"],
            "process.runtime.name": "BEAM",
            "process.runtime.version": f"{target['otp_release']} ({target['erts_version']})",
            "host.name": host.get("name"),
        }
        scope: Scope = {"name": "scope-ebpf", "version": importlib.metadata.version("scope-ebpf")}
        return {
            "resourceSpans": [
                {
                    "resource": {"attributes": _attributes(resource)},
                    "scopeSpans": [{"scope": scope, "spans": spans}],
                }
            ]
        }


def line(request: SpansRequest) -> str:
    """A request as one line."""
    return json.dumps(request, separators=(",", ":")) + "\n"


def _attributes(facts: dict[str, Any]) -> list[Attribute]:
    """The known ones of *facts*; 64-bit numbers are strings in protobuf's JSON."""
    return [
        {"key": key, "value": _value(value)} for key, value in facts.items() if value is not None
    ]


def _value(value: Any) -> IntValue | DoubleValue | StringValue:
    if isinstance(value, int):
        # OTLP has signed numbers only; only addresses are that large.
        return {"intValue": str(value)} if value < 1 << 63 else {"stringValue": hex(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    return {"stringValue": str(value)}
