# SPDX-License-Identifier: Apache-2.0
"""The hatchling hook that builds the BPF objects into a wheel."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parent))

import build_objects


class ObjectsHook(BuildHookInterface[Any]):
    """What hatchling calls before it packs the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Build the objects, unless this is an editable install, which has a Makefile."""
        if version != "editable":
            build_objects.build()
