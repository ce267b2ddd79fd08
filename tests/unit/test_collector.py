# SPDX-License-Identifier: Apache-2.0
"""
Spans of a cluster, posted to a collector that others wrote (rotel), and what it hands on.
"""

from __future__ import annotations

import contextlib
import gzip
import http.server
import importlib.util
import queue
import socket
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import beams_run
from cluster_fixtures import planted
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from scope_ebpf.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

CALLS = 700


@contextlib.contextmanager
def backend() -> Iterator[tuple[int, queue.Queue[bytes]]]:
    """
    A port that takes requests in protobuf, as a store of traces does, and their bodies.
    """
    bodies: queue.Queue[bytes] = queue.Queue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            bodies.put(gzip.decompress(body))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.end_headers()
            self.wfile.write(ExportTraceServiceResponse().SerializeToString())

        def log_message(self, *_words: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port, bodies
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def collector(behind: int, log: Path) -> Iterator[int]:
    """
    The port of a collector that sends all spans on to the port *behind*.
    """
    found = importlib.util.find_spec("rotel")
    beams_run.require(found and found.origin, "rotel is not installed (PyPI)")
    port, other = beams_run.free_port(), beams_run.free_port()
    options = {
        "otlp-http-endpoint": f"127.0.0.1:{port}",
        "otlp-grpc-endpoint": f"127.0.0.1:{other}",
        "otlp-exporter-endpoint": f"http://127.0.0.1:{behind}",
        "otlp-exporter-protocol": "http",
        "otlp-exporter-compression": "gzip",
        "exporter": "otlp",
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    program = Path(found.origin).parent / "rotel-agent"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "start", *words], env={}, stdout=output, stderr=output, cwd=log.parent
        )
    try:
        while process.poll() is None and not listens(port):
            pass
        assert process.poll() is None, log.read_text()
        yield port
    finally:
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    """
    Whether a connection to the port is taken.
    """
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def test_a_collector_takes_the_spans_of_a_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """
    All spans come out of it, as many as were sent, each call's server below its client.
    """
    planted(tmp_path, CALLS)
    paths = [str(tmp_path / name) for name in ("a.scope", "b.scope", "all.scope")]
    assert 0 == main(["merge", *paths[:2], "-o", paths[2]])
    with backend() as (behind, bodies), collector(behind, tmp_path / "log") as port:
        url = f"http://127.0.0.1:{port}/v1/traces"
        capsys.readouterr()
        assert 0 == main(["export", paths[2], "--to", "otlp", "--endpoint", url])
        assert f"2 nodes, {2 * CALLS + 2:,} spans" in capsys.readouterr().err
        spans: list[Span] = []
        nodes = set()
        while len(spans) < 2 * CALLS + 2:
            request = ExportTraceServiceRequest.FromString(bodies.get(timeout=beams_run.PATIENCE))
            for part in request.resource_spans:
                named = {one.key: one.value.string_value for one in part.resource.attributes}
                nodes.add(named["service.instance.id"])
                spans += [span for scope in part.scope_spans for span in scope.spans]
    assert {"a@one", "b@two"} == nodes
    clients, servers = (
        [span for span in spans if span.kind == kind]
        for kind in (Span.SPAN_KIND_CLIENT, Span.SPAN_KIND_SERVER)
    )
    called = {(span.trace_id, span.span_id) for span in clients}
    assert CALLS == len(clients) == len(servers) == len(called)
    assert called == {(span.trace_id, span.parent_span_id) for span in servers}
