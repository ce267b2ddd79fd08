# SPDX-License-Identifier: Apache-2.0
"""``scope-trace genservers``: servers by module, how busy they are, and who waits for whom."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from scope_ebpf.beam.processes.table import ALL
from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.beam.vm import discover
from scope_ebpf.cli.options import add_duration
from scope_ebpf.runs.genservers import GROUPS, watch
from scope_ebpf.sinks.plain import say
from scope_ebpf.sinks.servers import SORTS, lines

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``genservers``."""
    parser.add_argument("--pid", type=int, required=True, help="the VM's process on this host")
    add_duration(parser)
    parser.add_argument("--sort", choices=SORTS, default="waiting", help="(default: waiting)")
    parser.add_argument("--by", choices=GROUPS, default="module", help="(default: module)")
    parser.add_argument("--limit", type=int, default=20, help="rows (default: 20; all in JSON)")
    parser.add_argument("--format", choices=("text", "json"), default="text")


def run(arguments: argparse.Namespace) -> int:
    """Look, then print; raises ScopeError."""
    target = discover.inspect(arguments.pid)
    viewer = Viewer(target, ALL)
    found, error = watch(viewer, arguments.duration, arguments.by)
    if arguments.format == "json":
        print(json.dumps(found.as_json()))
    else:
        say("\n".join(lines(found, arguments.sort, arguments.limit)), sys.stdout)
    if error:
        raise error
    return 0
