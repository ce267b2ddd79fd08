# SPDX-License-Identifier: Apache-2.0
"""JSON documents on standard output."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def print_document(document: Mapping[str, object], form: str) -> None:
    """Print *document*, indented if *form* is ``json``, on one line if it is ``jsonl``."""
    json.dump(document, sys.stdout, indent=2 if form == "json" else None)
    print()
