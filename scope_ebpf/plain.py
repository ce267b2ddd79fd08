# SPDX-License-Identifier: Apache-2.0
"""Text from a VM or a host, made safe for a terminal or a label."""

from __future__ import annotations


def plain(text: str) -> str:
    """*text* with a question mark for each control character: none of it reaches a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
