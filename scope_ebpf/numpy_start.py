# SPDX-License-Identifier: Apache-2.0
"""
numpy without the parts that a command does not use: they are loaded where they are asked for.

They take half of its import, which is the largest part of a command's start. Without its help and
without checks of its own sources numpy works: ``python -OO`` leaves the former out, too.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Its linear algebra would start a thread for each CPU, with a stack each; we use none of it. For
# whatever imports numpy behind this module.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

#: Of numpy 2 and 1, what only help and annotations need. A module that is not there is asked for
#: by nobody.
_UNUSED = (
    *("numpy._typing", "numpy._core._add_newdocs", "numpy._core._add_newdocs_scalars"),
    *("numpy.core._add_newdocs", "numpy.core._add_newdocs_scalars"),
)
#: Of numpy 2: packages whose names stand in ``numpy``, and which its core does not need.
_DEFERRED = ("numpy.lib", "numpy.matrixlib")
#: What numpy imports for functions of which we call none.
_SELDOM = ("ast", "inspect", "pickle")
#: What ``numpy.lib`` has from the core.
_OF_CORE = "bincount"


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


class Later(ModuleType):
    """A module that is loaded when a name of it is asked for."""

    def __getattr__(self, name: str) -> object:
        if name == "__path__":
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


class _Signature(NamedTuple):
    """What ``numpy._utils._inspect.getargspec`` returns; all are alike, so they match."""

    args: tuple[()] = ()
    varargs: None = None
    keywords: None = None
    defaults: None = None


class _Deferred(NamedTuple):
    """A name of a module that is not loaded yet, or the module."""

    module: str
    name: str = ""


class _DeferredModule(ModuleType):
    """A module of such a package; its names and its submodules are :class:`_Deferred`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []
        self.__all__: list[str] = []

    def __getattr__(self, name: str) -> _Deferred:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Deferred(self.__name__, name)


class _Finder:
    """Finds the modules of deferred packages, and makes them empty."""

    def find_spec(
        self, name: str, _path: Sequence[str] | None, _target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith(_DEFERRED):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _DeferredModule(spec.name)

    def exec_module(self, _: ModuleType) -> None:
        pass


class _Matrix(type):
    """The class of :class:`matrix`, of which there are no objects before the module is loaded."""

    def __instancecheck__(cls, value: object) -> bool:
        loaded = sys.modules.get("numpy.matrixlib")
        return loaded is not None and isinstance(value, loaded.matrix)

    def __call__(cls, *values: object, **more: object) -> Any:
        return importlib.import_module("numpy.matrixlib").matrix(*values, **more)


class matrix(metaclass=_Matrix):  # noqa: N801 - numpy's name
    """``np.matrix``, as functions of the core ask whether they were given one."""


def load() -> None:
    """Import numpy, unless it is there. What was left out is imported where it is asked for."""
    if "numpy" in sys.modules:
        return
    stubs: dict[str, ModuleType] = {name: _Empty(name) for name in _UNUSED}
    stubs |= {name: Later(name) for name in _SELDOM}
    _without_help(stubs["inspect"])
    stubs = {name: module for name, module in stubs.items() if name not in sys.modules}
    sys.modules.update(stubs)
    finder = _Finder()
    try:
        if _is_new():
            signatures = ModuleType("numpy._utils._inspect")
            signatures.getargspec = lambda _: _Signature()  # type: ignore[attr-defined]
            stubs[signatures.__name__] = sys.modules[signatures.__name__] = signatures
            sys.meta_path.insert(0, finder)
        numpy = importlib.import_module("numpy")
    finally:
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)
        deferred = {n: m for n, m in sys.modules.items() if isinstance(m, _DeferredModule)}
        for name, module in (stubs | deferred).items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
    if deferred:
        _complete(numpy)
    if "inspect" not in sys.modules:  # for dataclasses, which seldom use it
        later = sys.modules["inspect"] = Later("inspect")
        later.__spec__ = importlib.machinery.PathFinder.find_spec("inspect")


def _is_new() -> bool:
    """Whether the numpy that will be loaded is numpy 2, whose parts can be deferred."""
    spec = importlib.machinery.PathFinder.find_spec("numpy")
    if spec is None or spec.origin is None:
        return False
    return os.path.exists(f"{os.path.dirname(spec.origin)}/lib/_arraypad_impl.py")  # noqa: PTH110, PTH120 - fast


def _without_help(inspect: ModuleType) -> None:
    """Let help texts and signatures by the module *inspect* be none."""
    inspect.cleandoc = lambda _: ""  # type: ignore[attr-defined]
    inspect.signature = lambda *_: None  # type: ignore[attr-defined]


def _complete(numpy: ModuleType) -> None:
    """Let *numpy* load what was deferred when a name of it is asked for."""
    names = dict(_deferred_names(vars(numpy)))
    for name in names:
        delattr(numpy, name)
    setattr(numpy, _OF_CORE, getattr(sys.modules["numpy._core.multiarray"], _OF_CORE))
    numpy.matrix = matrix  # type: ignore[attr-defined]
    usual = numpy.__getattr__

    def found(name: str) -> Any:
        if name not in names:
            return usual(name)
        module, attribute = names[name]
        value: Any = importlib.import_module(module)
        if attribute:
            value = getattr(value, attribute)
        setattr(numpy, name, value)
        return value

    numpy.__getattr__ = found  # type: ignore[method-assign]


def _deferred_names(names: dict[str, object]) -> Iterator[tuple[str, _Deferred]]:
    for name, value in names.items():
        if isinstance(value, _Deferred):
            yield name, value
        elif isinstance(value, _DeferredModule):
            yield name, _Deferred(value.__name__)
