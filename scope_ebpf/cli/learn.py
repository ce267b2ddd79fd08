# SPDX-License-Identifier: Apache-2.0
"""``scope-trace learn``: where the functions of an OTP build lie that hides its symbols."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from scope_ebpf.cli.options import add_force, web_address
from scope_ebpf.cli.target import add_target, target_of, words_of
from scope_ebpf.errors import HostError, OutputError, UsageError
from scope_ebpf.sinks.plain import plain, say

if TYPE_CHECKING:
    import argparse

    from scope_ebpf.beam.elf.binary import Binary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``learn``."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--from",
        dest="beam",
        metavar="BEAM",
        help="make a reference from this emulator with symbols: beam.smp of a build of your own, "
        "of the same release and compiler",
    )
    source.add_argument(
        "--debug-file", metavar="FILE", help="read the debug file of the program of TARGET"
    )
    source.add_argument(
        "--debuginfod",
        type=web_address,
        nargs="?",
        const="",
        metavar="URL",
        help="get that file from a server, of DEBUGINFOD_URLS where none is named; only this "
        "option asks one",
    )
    add_target(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="the reference (default: where other commands and the daemon look for it)",
    )
    add_force(parser)


def run(arguments: argparse.Namespace) -> int:
    """Learn; raises ScopeError."""
    if arguments.beam is None:
        return _read(arguments)
    if words_of(arguments)[0] is not None:
        raise UsageError("--from makes a reference of a file, and takes no TARGET")
    return _make(arguments)


def _make(arguments: argparse.Namespace) -> int:
    from scope_ebpf.beam.elf.binary import Binary
    from scope_ebpf.beam.hidden.learn import learn
    from scope_ebpf.beam.hidden.reference import packed
    from scope_ebpf.beam.hidden.shelf import HOST, name_of
    from scope_ebpf.output import Document

    try:
        binary = Binary.open(Path(arguments.beam))
    except OSError as error:
        raise UsageError(f"{arguments.beam}: {error.strerror}") from None
    reference = learn(binary)
    data = packed(reference)
    path = arguments.output or str(HOST / name_of(reference.build))
    try:
        if not arguments.output:
            HOST.mkdir(mode=0o755, parents=True, exist_ok=True)
        with Document(path, force=arguments.force) as document:
            document.file.write(data)
            document.commit()
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None
    say(
        f"{plain(str(reference.build))}: {len(reference.wanted)} functions, "
        f"{len(data):,} bytes in {plain(path)}",
        sys.stdout,
    )
    return 0


def _read(arguments: argparse.Namespace) -> int:
    from scope_ebpf.beam.hidden import memory
    from scope_ebpf.beam.hidden.learn import of_debug_file
    from scope_ebpf.beam.hidden.resolve import reveal

    target = target_of(arguments)
    if arguments.debug_file is not None:
        fd = _opened(arguments.debug_file)
    else:
        fd = _fetched(target.binary, arguments.debuginfod)
    found = of_debug_file(target.binary, fd)
    hidden = reveal(target.binary, found)
    if not memory.keep(found):
        raise OutputError(f"{memory.folder()} cannot be written: run as root")
    known = len(found.places) - len([n for n in hidden.reasons if n in found.places])
    say(f"process {target.pid}: {known} functions are known from now on", sys.stdout)
    return 0


def _opened(path: str) -> int:
    from scope_ebpf.sandbox import files

    try:
        return files.open_magic(path, most=files.MAX_DEBUG_FILE)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def _fetched(binary: Binary, url: str) -> int:
    """Get the debug file of *binary* from the first server that has it; a descriptor of it."""
    from scope_ebpf.beam.hidden.debuginfod import fetch

    servers = [url] if url else os.environ.get("DEBUGINFOD_URLS", "").split()
    if not servers:
        raise UsageError("no server is named: --debuginfod URL, or set DEBUGINFOD_URLS")
    if not binary.build_id:
        raise UsageError(f"{binary.path} has no build id, by which a server could find its file")
    troubles = []
    for server in servers:
        try:
            return fetch(server, binary.build_id)
        except (OSError, ValueError) as error:
            troubles.append(f"{server}: {error}")
    raise HostError(f"no server has the debug file of {binary.build_id}: {'; '.join(troubles)}")
