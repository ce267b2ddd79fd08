# SPDX-License-Identifier: Apache-2.0
"""
numpy without the parts that only its help and its annotations need.

They take a sixth of its import, which is the largest part of a command's start. numpy works without
its help: ``python -OO`` leaves it out, too.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType

# Its linear algebra would start a thread for each CPU, with a stack each; we use none of it. For
# whatever imports numpy behind this module.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

#: Of numpy 2 and 1. A module that is not there is asked for by nobody.
_UNUSED = (
    *("numpy._typing", "numpy._core._add_newdocs", "numpy._core._add_newdocs_scalars"),
    *("numpy.core._add_newdocs", "numpy.core._add_newdocs_scalars"),
)


class _Nothing:
    """A type in an annotation that is read by nobody."""

    def __getitem__(self, _: object) -> _Nothing:
        return self

    def __or__(self, _: object) -> _Nothing:
        return self

    __ror__ = __or__


class _Empty(ModuleType):
    """A module whose every name is :class:`_Nothing`."""

    def __getattr__(self, name: str) -> _Nothing:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing()


def load() -> None:
    """Import numpy, unless it is there. What was left out is imported where it is asked for."""
    empty = {name: _Empty(name) for name in _UNUSED if "numpy" not in sys.modules}
    sys.modules.update(empty)
    try:
        importlib.import_module("numpy")
    finally:
        for name, module in empty.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
