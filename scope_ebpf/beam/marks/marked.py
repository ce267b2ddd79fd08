# SPDX-License-Identifier: Apache-2.0
"""
The marked modules of a running VM, and their functions.

What marked a module is in its attributes (scope_mark/README.md, version 2), so code of the same
name that is not marked is distinguished. Old code counts as well: processes may still run it.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.beam.code.functions import Functions
from scope_ebpf.beam.code.modules import Modules
from scope_ebpf.beam.marks.marker import id_of
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from scope_ebpf.beam.code.functions import Function, Pattern
    from scope_ebpf.beam.processes.atoms import Atoms
    from scope_ebpf.beam.vm.target import Target

#: ``{scope_mark, [{version, N}, {profile, P}, {functions, N}, {markers, N}]}`` in the external term
#: format, with the tags that the contract names.
_ATTRIBUTE = re.compile(
    rb"h\x02w\x0ascope_markl\0\0\0\x04"
    rb"h\x02w\x07version(?:a(.)|b....)"
    rb"h\x02w\x07profilew.(callbacks|all)"
    rb"h\x02w\x09functions(?:a(.)|b(....))",
    re.DOTALL,
)
#: The version in an attribute of any version; others may have other fields behind it.
_ANY_VERSION = re.compile(rb"w\x0ascope_markl....h\x02w\x07version(?:a(.)|b(....))", re.DOTALL)
#: The version of the marker that is understood.
VERSION = 2
#: Bytes of a module's attributes; those of real ones are below a thousand.
_MAX_ATTRIBUTES = 1 << 20
#: Functions whose ids are known at a time.
MOST = 1 << 18
#: Callbacks of OTP and Elixir whose first argument is a message.
_TAKES_MESSAGE = frozenset(
    {("handle_call", 3), ("handle_cast", 2), ("handle_info", 2), ("handle_event", 2)}
    | {("handle_call", 2), ("handle_continue", 2)}
)


@dataclass(frozen=True, slots=True)
class Mark:
    """What marked one module: the profile, and how many of its functions have markers."""

    profile: str
    functions: int


@dataclass(slots=True)
class Marked:
    """The marked code of a VM."""

    #: By module.
    modules: dict[str, Mark] = field(default_factory=dict)
    #: Functions by their ids.
    functions: dict[int, Function] = field(default_factory=dict)
    #: Names of functions that share an id, so that they cannot be distinguished.
    collided: set[str] = field(default_factory=set)
    #: Modules with markers of a version that is not understood.
    unknown: set[str] = field(default_factory=set)
    #: Those versions, as far as they can be read.
    versions: set[int] = field(default_factory=set)

    @property
    def profiles(self) -> str:
        """The profile of all modules; both, with a comma between, where they differ."""
        return ", ".join(sorted({mark.profile for mark in self.modules.values()}))

    def takes_message(self) -> dict[int, bool]:
        """By id, whether the function's first argument is a message, if it is a callback."""
        return {
            key: (one.function, one.arity) in _TAKES_MESSAGE for key, one in self.functions.items()
        }

    def about(self, ids: Iterable[int]) -> dict[int, tuple[bool, int]]:
        """By id, :meth:`takes_message` and the arity."""
        takes_message = self.takes_message()
        return {key: (takes_message[key], self.functions[key].arity) for key in ids}


class MarkedCode:
    """
    Reads which code is marked; *patterns* choose functions, none means all.

    ReadRefusedError where the VM's tables of modules are not found.
    """

    def __init__(self, target: Target, atoms: Atoms, patterns: Sequence[Pattern] = ()) -> None:
        self._target, self._patterns = target, patterns
        self._modules = Modules(target, atoms)
        self._functions = Functions(target, atoms, self._modules)
        #: Code that was read and is still there: module, and address of its header.
        self._seen: set[tuple[int, int]] = set()
        self.found = Marked()

    def any(self) -> bool:
        """Whether any code that the VM runs is marked, read anew."""
        names = {index: name for name, index in self._modules.names().items()}
        for index, code in self._modules.code(names).items():
            for header in (code.current, code.old, *code.others):
                with suppress(ReadRefusedError):  # purged meanwhile
                    if header and self._mark(names[index], header) is not None:
                        return True
        return False

    def refresh(self) -> dict[int, tuple[bool, int]]:
        """Read code that is new; returns :meth:`Marked.about` its functions."""
        before = set(self.found.functions)
        names = self._modules.names()
        wanted = {index: name for name, index in names.items()}
        there = {
            (index, header)
            for index, code in self._modules.code(wanted).items()
            for header in (code.current, code.old, *code.others)
            if header
        }
        # Where code was purged, other code may be later on.
        new, self._seen = there - self._seen, there
        for index, header in sorted(new):
            self._add(wanted[index], header)
        return self.found.about(self.found.functions.keys() - before)

    def _add(self, module: str, header: int) -> None:
        try:
            mark = self._mark(module, header)
            if mark is None:
                return
            functions = self._functions.of(header)
        except ReadRefusedError:
            return  # purged meanwhile
        self.found.modules[module] = mark
        self._add_functions(one for one in functions if self._fits(one))

    def _fits(self, function: Function) -> bool:
        return not self._patterns or any(
            pattern.fits(function) and pattern.fits_module(function.module)
            for pattern in self._patterns
        )

    def _add_functions(self, functions: Iterable[Function]) -> None:
        known = self.found.functions
        for function in functions:
            other = known.get(number := id_of(function))
            if other is not None and str(other) != str(function):
                self.found.collided |= {str(other), str(function)}
            elif other is not None or len(known) < MOST:
                known[number] = function

    def _mark(self, module: str, header: int) -> Mark | None:
        """What marked the code at *header*; None if nothing did that is understood."""
        memory, layout = self._target.memory, self._target.layout
        at = header + layout.offset("BeamCodeHeader", "attr_ptr")
        address, size = (int(word) for word in memory.words(at, 2).astype(np.uint64))
        if not address or not 0 < size <= _MAX_ATTRIBUTES:
            return None
        attributes = memory.read(address, size)
        found = _ATTRIBUTE.search(attributes)
        if found is None or found[1] != bytes((VERSION,)):
            if b"w\x0ascope_mark" in attributes:
                self.found.unknown.add(module)
                self.found.versions |= _versions(attributes)
            return None
        return Mark(found[2].decode(), int.from_bytes(found[3] or found[4], "big"))


def _versions(attributes: bytes) -> set[int]:
    """The versions of the marker that *attributes* claim."""
    return {
        int.from_bytes(short or long, "big") for short, long in _ANY_VERSION.findall(attributes)
    }
