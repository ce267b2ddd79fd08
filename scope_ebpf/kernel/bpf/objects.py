# SPDX-License-Identifier: Apache-2.0
"""Compiled BPF objects: found in the package, opened, set up, loaded, closed."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scope_ebpf import events
from scope_ebpf.errors import HostError
from scope_ebpf.kernel.bpf.libbpf import OpenOptions, check, library
from scope_ebpf.kernel.bpf.maps import U32, Map, MapHandle
from scope_ebpf.kernel.interrupts import held_back

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    import numpy as np

#: The build's fingerprints, which packaging/build_objects.py writes into each object.
_BUILD = re.compile(rb"scope-ebpf build ([0-9a-f]{16}) ([0-9a-f]{16})\0")
#: The build of the first object of this process; all others share its maps.
_builds: list[bytes] = []


def object_bytes(family: str) -> bytes:
    """
    The compiled object of a probe family, from the package.

    Raises HostError if it is missing, or of another build than this program or the objects that
    were loaded before: their maps and records may differ, and counts would be wrong.
    """
    path = Path(__file__).parents[1] / "objects" / f"{family}.bpf.o"
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise HostError(
            f"the BPF object {family}.bpf.o is not in this installation; "
            "in a source tree `make objects` builds it"
        ) from error
    _check_build(family, data)
    return data


def _check_build(family: str, data: bytes) -> None:
    found = _BUILD.search(data)
    if found is None or found[1] != events.FINGERPRINT.encode():
        other = "program"
    elif found[2] != (_builds or [found[2]])[0]:
        other = "objects that are in use"
    else:
        _builds[:] = [found[2]]
        return
    raise HostError(
        f"the BPF object {family}.bpf.o is of another build than the {other}: an upgrade came "
        "while this runs, or was left half done. Start it again; if that does not help, install "
        "the package once more (in a source tree: `make generate objects`)"
    )


class BpfObject:
    """
    An open BPF object of a probe *family*, from its compiled bytes *data*.

    Set its maps up, :meth:`load` it, then use its maps and programs. ``maps`` are its maps and
    ``programs`` libbpf's handles of its programs, by name. Raises HostError where libbpf or the
    kernel refuses.
    """

    def __init__(self, family: str, data: bytes) -> None:
        self.family = family
        self._lib = library()
        options = OpenOptions(ctypes.sizeof(OpenOptions), family.encode())
        with held_back():  # libbpf prints by a callback into Python
            self._handle = check(
                self._lib.bpf_object__open_mem(data, len(data), ctypes.byref(options)),
                f"cannot open the BPF object {family}",
            )
        handles = [MapHandle(handle) for handle in self._each("map")]
        self.maps = {handle.name: handle for handle in handles}
        self.programs = {self._lib.bpf_program__name(p).decode(): p for p in self._each("program")}

    def _each(self, what: str) -> Iterator[int]:
        step = getattr(self._lib, f"bpf_object__next_{what}")
        item = step(self._handle, None)
        while item:
            yield item
            item = step(self._handle, item)

    def set_constants(self, data: bytes) -> None:
        """Set the programs' constants to *data*, one ``events.SETTINGS``; before :meth:`load`."""
        for name, handle in self.maps.items():
            if name.endswith(".rodata"):
                handle.set_contents(data)

    def load(self, wanted: Collection[str], attach_type: int | None = None) -> None:
        """
        Load the *wanted* programs, by name; the others are not loaded.

        *attach_type* is of enum bpf_attach_type; None is libbpf's default for each program.
        """
        for name, program in self.programs.items():
            self._lib.bpf_program__set_autoload(program, name in wanted)
            if attach_type is not None:
                self._lib.bpf_program__set_expected_attach_type(program, attach_type)
        with held_back():
            check(
                self._lib.bpf_object__load(self._handle),
                f"the kernel refused the BPF object {self.family}",
            )

    def map(self, name: str, key: np.dtype[Any], value: np.dtype[Any]) -> Map:
        """The loaded map called *name*, with its types."""
        return Map(self.maps[name], key, value)

    def variables(self, value: np.dtype[Any]) -> Map:
        """The loaded map of the programs' global variables, one *value* at the key 0."""
        return self.map(next(name for name in self.maps if name.endswith(".bss")), U32, value)

    def program_fd(self, name: str) -> int:
        """The file descriptor of a loaded program."""
        return check(self._lib.bpf_program__fd(self.programs[name]), f"no program {name}")

    def close(self) -> None:
        """Give everything back to the kernel."""
        if self._handle:
            self._lib.bpf_object__close(self._handle)
            self._handle = 0
