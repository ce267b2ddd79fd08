# SPDX-License-Identifier: Apache-2.0
"""
The hatchling hook that builds the BPF objects into a wheel, with their source beside them, and the
viewer of flame graphs.

The programs are GPL-2.0-only, so the objects are distributed with what they were made of, the
script that builds them included.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parent))

import build_objects
import build_viewer


class ObjectsHook(BuildHookInterface[Any]):
    """
    What hatchling calls before it packs the wheel.

    The tag of the wheel names the platform: the objects are for its registers, and the program
    needs Linux's libbpf. It is not a manylinux tag, which promises that only glibc is needed.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the objects, unless this is an editable install, which has a Makefile."""
        if version == "editable":
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-linux_{platform.machine()}"
        build_objects.build()
        try:
            build_viewer.build()
        except build_viewer.ViewerError as error:
            # All else works without it, and `profile` says so.
            self.app.display_warning(f"the wheel has no viewer of flame graphs: {error}")
        for source in _sources():
            inside = source.relative_to(build_objects.ROOT)
            build_data["force_include"][str(source)] = f"scope_ebpf/kernel/source/{inside}"


def _sources() -> list[Path]:
    """What the objects are made of and with; ``events.py``, too, is in the package anyway."""
    files = (path for path in build_objects.PROBES.rglob("*") if path.is_file())
    kept = (path for path in files if "__pycache__" not in path.parts)
    return [*sorted(kept), Path(build_objects.__file__)]
