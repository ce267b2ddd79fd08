# SPDX-License-Identifier: Apache-2.0
"""``scope-trace mcp``: the read-only commands for programs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from scope_ebpf.errors import MissingPackageError, UsageError

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the server."""
    parser.add_argument(
        "--redact",
        action="store_true",
        help="replace names and texts of the application by pseudonyms in every answer; without "
        "it, in those for which the client asks it",
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until the client closes stdin; returns the exit code."""
    try:
        from scope_ebpf.mcp.server import serve  # an extra
    except ImportError as error:
        raise MissingPackageError(
            f"scope-trace mcp needs the Python package mcp, version 2 ({error}): "
            "pip install 'scope-ebpf[mcp]'"
        ) from None
    if sys.stdin.isatty():
        raise UsageError(
            "a program speaks to scope-trace mcp over its stdin, which is a terminal here: put the "
            "command `scope-trace mcp` into the configuration of that program"
        )
    serve(redact=arguments.redact)
    return 0
