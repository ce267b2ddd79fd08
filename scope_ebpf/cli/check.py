# SPDX-License-Identifier: Apache-2.0
"""``scope-trace check``: what is wrong with a VM, by what evidence, and what to do next."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, cast

from scope_ebpf.cli.documents import print_document
from scope_ebpf.cli.options import add_format, interval
from scope_ebpf.cli.target import add_target, target_of
from scope_ebpf.runs.check import check
from scope_ebpf.runs.terminal import announce
from scope_ebpf.sinks.check import lines
from scope_ebpf.sinks.plain import say

if TYPE_CHECKING:
    import argparse

    from scope_ebpf.results.check import Check
    from scope_ebpf.results.documents.checks import CheckDocument

#: The exit code for findings.
FOUND = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``check``."""
    add_target(parser)
    parser.add_argument(
        "-d",
        "--duration",
        type=interval,
        default="3s",
        metavar="TIME",
        help="how long to look: 10, 10s, 500ms (default: %(default)s)",
    )
    parser.add_argument(
        "--fail-on",
        choices=("warning", "critical", "never"),
        default="warning",
        help="the least severity at which the exit code is 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--redact",
        action="store_true",
        help="replace names and texts of the application by pseudonyms",
    )
    add_format(parser, "text", "json", "jsonl")


def run(arguments: argparse.Namespace) -> int:
    """Look, then print; raises ScopeError."""
    target = target_of(arguments)
    announce(f"checking process {target.pid} for {arguments.duration:g} s; Ctrl-C ends it")
    found = check(target, arguments.duration)
    document = _redacted(found) if arguments.redact else found.as_json()
    if arguments.format == "text":
        say("\n".join(lines(document)), sys.stdout)
    else:
        print_document(document, arguments.format)
    at = arguments.fail_on
    return FOUND if at != "never" and found.fails(at) else 0


def _redacted(found: Check) -> CheckDocument:
    """The document without names and texts of the application."""
    from scope_ebpf.mcp.redaction import Redaction

    redaction = Redaction()
    plain = found.as_json(lambda name: redaction.word(name.text, name.key), redacted=True)
    made = redaction.document(cast("dict[str, object]", plain))
    # Their sentences are made of pseudonyms already.
    made["verdict"]["summary"] = plain["verdict"]["summary"]
    for after, before in zip(made["findings"], plain["findings"], strict=True):
        after["summary"] = before["summary"]
    return cast("CheckDocument", made)
