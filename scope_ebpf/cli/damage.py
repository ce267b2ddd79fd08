# SPDX-License-Identifier: Apache-2.0
"""What of a capture cannot be read, for the commands that read captures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.runs.terminal import announce

if TYPE_CHECKING:
    from scope_ebpf.capture.reader import Contents


def say_damage(contents: Contents) -> None:
    """Print on stderr what of a capture could not be read."""
    if contents.damage:
        announce(f"only the first {contents.records:,} events can be read: {contents.damage}")
    if contents.left_out:
        announce(f"{contents.left_out:,} blocks cannot be understood, the first: {contents.wrong}")
    for name, count in contents.unknown.items():
        announce(f"{count:,} events of a kind that this version does not know: {name!r}")
