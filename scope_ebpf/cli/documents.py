# SPDX-License-Identifier: Apache-2.0
"""Documents on standard output, as JSON or as text."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, TypeVar

from scope_ebpf.sinks.plain import say

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_Document = TypeVar("_Document", bound="Mapping[str, object]")


def print_document(document: Mapping[str, object], form: str) -> None:
    """Print *document*, indented if *form* is ``json``, on one line if it is ``jsonl``."""
    json.dump(document, sys.stdout, indent=2 if form == "json" else None)
    print()


def print_either(document: _Document, form: str, lines: Callable[[_Document], list[str]]) -> None:
    """Print *document* as the text that *lines* makes of it if *form* is ``text``, else as JSON."""
    if form == "text":
        say("\n".join(lines(document)), sys.stdout)
    else:
        print_document(document, form)
