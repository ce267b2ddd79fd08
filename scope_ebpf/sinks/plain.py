# SPDX-License-Identifier: Apache-2.0
"""Text from a VM, a host or a capture, made fit for a terminal: no part of it is obeyed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TextIO


def plain(text: str) -> str:
    """*text* with a question mark for each control character: none of it reaches a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def say(text: str, output: TextIO | None = None) -> None:
    """Print *text*, each of its lines plain, to stderr unless it is for another *output*."""
    print("\n".join(map(plain, text.split("\n"))), file=output or sys.stderr, flush=True)


def of_target(target: Mapping[str, Any]) -> tuple[str, str]:
    """The node's name, and what else a heading says of a target: a line of plain text."""
    return plain(str(target["node"] or "a node without a name")), plain(
        f"(pid {target['pid']}): OTP {target['otp_release']}, erts {target['erts_version']}, "
        f"{target['flavor']}, {target['schedulers']} schedulers"
    )
