# SPDX-License-Identifier: Apache-2.0
"""Options and text of the commands that look at what a VM holds: ``ets``, ``ports``, ``memory``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.beam.processes.shapes import escaped
from scope_ebpf.cli.options import above_zero, add_duration
from scope_ebpf.errors import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from scope_ebpf.results.documents.held import EtsDocument, PortsDocument


def add_looks(
    parser: argparse.ArgumentParser, keys: Sequence[str], sorts: str, *, unseen: str
) -> None:
    """
    Add ``--duration``, ``--sort``, ``--once`` and ``--limit``.

    *keys* are what rows are sorted by, the default first, described by *sorts*; one look does not
    show *unseen*.
    """
    add_duration(parser, "1s")
    parser.add_argument(
        "-s", "--sort", choices=keys, default=keys[0], help=f"{sorts} (default: %(default)s)"
    )
    parser.add_argument("--once", action="store_true", help=f"look once, which shows no {unseen}")
    parser.add_argument("--limit", type=above_zero, default=20, help="rows (default: %(default)s)")


def pause(arguments: argparse.Namespace, command: str, *, unseen: str, instead: str) -> float:
    """
    Seconds between two looks, 0 for one look; raises UsageError.

    One look cannot be sorted by *unseen*, but by *instead*.
    """
    duration: float | None = arguments.duration
    if duration is None:
        raise UsageError(
            f"{command} looks twice: say how long after the first, such as --duration 1s"
        )
    if arguments.once and arguments.sort == unseen:
        raise UsageError(f"one look shows no {unseen}: leave out --once, or sort by {instead}")
    return 0.0 if arguments.once else duration


def heading(document: EtsDocument | PortsDocument, held: str) -> str:
    """The first line: the VM, how long it was looked at, and what is *held*."""
    target, seconds = document["target"], document["duration_seconds"]
    looked = f"{seconds:.1f} s, " if seconds else ""
    return (
        f"{escaped(target['node'] or '?')}  pid {target['pid']}  OTP {target['otp_release']}  "
        f"{looked}{held}"
    )


def remainder(document: EtsDocument | PortsDocument, what: str, shown: int) -> list[str]:
    """Lines on what is not among the *shown* rows."""
    lines = []
    if document["read"] > shown:
        lines.append(f"and {document['read'] - shown:,} {what} more")
    if document["torn"]:
        lines.append(f"{document['torn']} {what} changed each time they were read: left out")
    return lines
