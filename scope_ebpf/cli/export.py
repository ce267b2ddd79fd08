# SPDX-License-Identifier: Apache-2.0
"""``scope-trace export FILE --to FORMAT``: a recorded trace for other tools."""

from __future__ import annotations

import argparse
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from scope_ebpf.capture import cluster
from scope_ebpf.capture.reader import sound
from scope_ebpf.cli.damage import say_damage
from scope_ebpf.cli.options import add_force, web_address, whole
from scope_ebpf.errors import OutputError, UsageError
from scope_ebpf.runs.terminal import (
    keep_old,
    open_document,
    open_output,
    output_error,
    progress_bar,
)
from scope_ebpf.sinks.plain import plain, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scope_ebpf.capture.reader import Capture, Contents

#: Each format, and what a file of it is called.
FORMATS = {
    "perfetto": ".pftrace",
    "jsonl": ".jsonl",
    "parquet": ".parquet",
    "otlp": ".otlp.jsonl",
}
#: Seconds that a collector may take for one request.
_POST_SECONDS = 30
_EXAMPLES = """\
examples:
  scope-trace export run.scope --to perfetto        then open run.pftrace in ui.perfetto.dev
  scope-trace export run.scope --to jsonl -o - | jq 'select(.event == "gc")'

The capture is all that is needed: no root, no VM.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.epilog = _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("capture", metavar="FILE", help="what `scope-trace record` wrote")
    parser.add_argument(
        "-f", "--format", "--to", choices=list(FORMATS), required=True, help="the format"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="(default: the capture's name with the format's own ending; - is standard output)",
    )
    add_force(parser)
    parser.add_argument(
        "--processes",
        type=whole,
        default=64,
        metavar="N",
        help="perfetto: tracks for the N busiest processes (default: %(default)s)",
    )
    parser.add_argument(
        "--endpoint",
        type=web_address,
        metavar="URL",
        help="otlp: post the spans there, such as http://localhost:4318/v1/traces",
    )


def run(arguments: argparse.Namespace) -> int:
    """The command; returns its exit code."""
    captures = cluster.captures(arguments.capture)
    if arguments.endpoint is not None and arguments.format != "otlp":
        raise UsageError("--endpoint is for --to otlp")
    path = arguments.output or str(Path(arguments.capture).with_suffix(FORMATS[arguments.format]))
    if arguments.output is None:  # nobody has asked for this name
        keep_old(path, force=arguments.force)
    if len(captures) > 1:
        from scope_ebpf.cli.export_nodes import export

        export(captures, path, arguments)
        return 0
    (capture,) = captures
    contents = capture.contents()
    visible = path != "-"
    with sound(capture), progress_bar(contents.records, visible=visible, what="exporting") as moved:
        said = _EXPORTS[arguments.format](capture, contents, path, arguments, moved)
    say_damage(contents)
    if path != "-" or arguments.endpoint:
        what = f"sent to {arguments.endpoint}" if arguments.endpoint else f"wrote {path}"
        say(f"scope-trace: {plain(f'{what}: {said}')}")
    return 0


def _perfetto(
    capture: Capture,
    contents: Contents,
    path: str,
    arguments: argparse.Namespace,
    moved: Callable[[float], object],
) -> str:
    from scope_ebpf.sinks.perfetto.timeline import Timeline

    with binary(path, force=arguments.force) as output:
        timeline = Timeline(capture, contents, output, arguments.processes)
        timeline.write(moved)
    flows = timeline.flows
    return (
        f"{contents.records:,} events, {timeline.packets:,} packets; messages: "
        f"{flows.paired:,} from send to receive, {flows.unreceived:,} sends without a known "
        f"receive, {flows.unsent:,} receives without a known send (of ports {flows.by_ports:,}, of "
        f"other nodes {flows.by_nodes:,}, of timers and other services of the VM {flows.by_vm:,})"
    )


def _jsonl(
    capture: Capture,
    contents: Contents,
    path: str,
    arguments: argparse.Namespace,
    moved: Callable[[float], object],
) -> str:
    from scope_ebpf.capture.terms import CapturedTerms
    from scope_ebpf.sinks.stream import Stream

    terms = CapturedTerms(contents)
    done = 0
    with open_output(path, force=arguments.force, whole=True) as output:
        to_wall = contents.head.clocks.to_wall
        sink = Stream(output, terms, "jsonl", terms.who, offset_ns=to_wall, called=terms)
        try:
            for batch in capture.batches():
                sink.write(batch)
                done += len(batch)
                moved(done)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise output_error(error, path) from error
    return f"{done:,} events"


def _parquet(
    capture: Capture,
    contents: Contents,
    path: str,
    arguments: argparse.Namespace,
    moved: Callable[[float], object],
) -> str:
    from scope_ebpf.sinks.parquet import write  # an extra

    with binary(path, force=arguments.force) as output:
        return f"{write(capture, contents, output, moved):,} rows"


def _otlp(
    capture: Capture,
    contents: Contents,
    path: str,
    arguments: argparse.Namespace,
    moved: Callable[[float], object],
) -> str:
    from scope_ebpf.sinks.otlp import Spans, line

    spans = Spans(capture, contents)
    if arguments.endpoint:
        for request in spans.requests(moved):
            post(arguments.endpoint, line(request).encode())
        return f"{spans.made:,} spans"
    with binary(path, force=arguments.force) as output:
        for request in spans.requests(moved):
            output.write(line(request).encode())
    return f"{spans.made:,} spans"


def post(url: str, body: bytes) -> None:
    """Post a request of spans to a collector; OutputError if it does not take them."""
    import http.client
    import urllib.request

    headers = {"Content-Type": "application/json"}
    try:
        request = urllib.request.Request(url, body, headers)  # noqa: S310 - checked above
        with urllib.request.urlopen(request, timeout=_POST_SECONDS) as answer:  # noqa: S310
            answer.read(1 << 16)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise OutputError(f"{url} does not take the spans: {error}") from None


@contextmanager
def binary(path: str, *, force: bool) -> Iterator[IO[bytes]]:
    """The file at *path*, whole or not at all, or standard output."""
    if path == "-":
        if sys.stdout.isatty():
            raise UsageError("a terminal cannot show that: give a file with -o")
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with open_document(path, force=force) as output:
        try:
            yield output
        except OSError as error:
            raise output_error(error, path) from error


_EXPORTS = {"perfetto": _perfetto, "jsonl": _jsonl, "parquet": _parquet, "otlp": _otlp}
