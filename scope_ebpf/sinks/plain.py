# SPDX-License-Identifier: Apache-2.0
"""Text from a VM, a host or a capture, as sinks and commands print it: no part of it is obeyed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from scope_ebpf.plain import plain

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TextIO

__all__ = ["of_target", "plain", "say"]


def say(text: str, output: TextIO | None = None) -> None:
    """Print *text*, each of its lines plain, to stderr unless it is for another *output*."""
    print("\n".join(map(plain, text.split("\n"))), file=output or sys.stderr, flush=True)


def of_target(target: Mapping[str, Any]) -> tuple[str, str]:
    """The node's name, and what else a heading says of a target: a line of plain text."""
    return plain(str(target["node"] or "a node without a name")), plain(
        f"(pid {target['pid']}): OTP {target['otp_release']}, erts {target['erts_version']}, "
        f"{target['flavor']}, {target['schedulers']} schedulers"
    )
