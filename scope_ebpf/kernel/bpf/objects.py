# SPDX-License-Identifier: Apache-2.0
"""One compiled BPF object: its maps, its programs, its life."""

from __future__ import annotations

import ctypes
import errno
import re
from pathlib import Path
from typing import TYPE_CHECKING

from scope_ebpf import events
from scope_ebpf.errors import HostError
from scope_ebpf.kernel.bpf.libbpf import OpenOptions, check, library
from scope_ebpf.kernel.interrupts import held_back

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator


#: What packaging/build_objects.py writes into each object.
_BUILD = re.compile(rb"scope-ebpf build ([0-9a-f]{16}) ([0-9a-f]{16})\0")
#: The build of the first object that this process took; all others share its maps.
_builds: list[bytes] = []


def object_bytes(family: str) -> bytes:
    """
    The compiled object of a probe family, from the package.

    Raises HostError if it is not there, or is of another build than this program or
    the objects that it took before: the maps and records of those differ, and counts
    would be wrong.
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


#: enum bpf_map_type (include/uapi/linux/bpf.h): those that are cleared, and how.
_ARRAYS = {"array": 2, "per_cpu_array": 6}
_HASHES = {"hash": 1, "lru_hash": 9}


class BpfObject:
    """
    An object between open and close.

    Open it, set it up, :meth:`load` it, then take file descriptors from it.
    Raises HostError where libbpf or the kernel refuses.
    """

    def __init__(self, family: str, data: bytes) -> None:
        self.family = family
        self._lib = library()
        options = OpenOptions(ctypes.sizeof(OpenOptions), family.encode())
        with held_back():  # libbpf tells what it does by a callback
            self._handle = check(
                self._lib.bpf_object__open_mem(data, len(data), ctypes.byref(options)),
                f"cannot open the BPF object {family}",
            )
        self.maps = {self._lib.bpf_map__name(m).decode(): m for m in self._each("map")}
        self.programs = {self._lib.bpf_program__name(p).decode(): p for p in self._each("program")}

    def _each(self, what: str) -> Iterator[int]:
        step = getattr(self._lib, f"bpf_object__next_{what}")
        item = step(self._handle, None)
        while item:
            yield item
            item = step(self._handle, item)

    def set_constants(self, data: bytes) -> None:
        """Give *data*, one ``events.SETTINGS``, to the programs as constants."""
        for name, bpf_map in self.maps.items():
            if name.endswith(".rodata"):
                check(
                    self._lib.bpf_map__set_initial_value(bpf_map, data, len(data)),
                    f"cannot set the constants of {self.family}",
                )

    def set_entries(self, name: str, entries: int) -> None:
        """Size of a map; for a ring its bytes, a power of two of whole pages."""
        check(
            self._lib.bpf_map__set_max_entries(self.maps[name], entries),
            f"cannot size the map {name}",
        )

    def share(self, name: str, fd: int) -> None:
        """Use the map behind *fd* instead of making one."""
        check(self._lib.bpf_map__reuse_fd(self.maps[name], fd), f"cannot share the map {name}")

    def load(self, wanted: Collection[str], attach_type: int | None = None) -> None:
        """
        Load the *wanted* programs, by name; the others stay out of the kernel.

        *attach_type* of enum bpf_attach_type, where it is not the default.
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

    def map_fd(self, name: str) -> int:
        """The file descriptor of a map; it lives as long as the object."""
        return check(self._lib.bpf_map__fd(self.maps[name]), f"no map {name}")

    def variables(self) -> int:
        """The file descriptor of the map that holds the variables of its programs."""
        return self.map_fd(next(name for name in self.maps if name.endswith(".bss")))

    def clear(self, name: str, cpus: int) -> None:
        """
        Let the map called *name* be as after loading; constants and rings stay as they are.

        HostError where the kernel cannot empty a hash in one call (before 5.6).
        """
        bpf_map, fd = self.maps[name], self.map_fd(name)
        kind, entries = self._lib.bpf_map__type(bpf_map), self._lib.bpf_map__max_entries(bpf_map)
        size = self._lib.bpf_map__value_size(bpf_map)
        if "." in name:
            return
        if kind in _HASHES.values():
            self._empty(fd, entries, self._lib.bpf_map__key_size(bpf_map), size)
        elif kind in _ARRAYS.values():
            zeroes = bytes((size + 7 & ~7) * (cpus if kind == _ARRAYS["per_cpu_array"] else 1))
            for number in range(entries):
                key = ctypes.c_uint32(number)
                result = self._lib.bpf_map_update_elem(fd, ctypes.byref(key), zeroes, 0)
                check(result, f"cannot clear the map {name}")

    def _empty(self, fd: int, entries: int, key_size: int, size: int) -> None:
        keys, values = bytearray(entries * key_size), bytearray(entries * size)
        count, after = ctypes.c_uint32(entries), ctypes.c_uint32()
        result = self._lib.bpf_map_lookup_and_delete_batch(
            fd,
            None,
            ctypes.byref(after),
            (ctypes.c_char * len(keys)).from_buffer(keys),
            (ctypes.c_char * len(values)).from_buffer(values),
            ctypes.byref(count),
            None,
        )
        # ENOENT says that this was the end of the map.
        if result != -errno.ENOENT:
            check(result, "cannot empty a map")

    def program_fd(self, name: str) -> int:
        """The file descriptor of a loaded program."""
        return check(self._lib.bpf_program__fd(self.programs[name]), f"no program {name}")

    def close(self) -> None:
        """Give everything back to the kernel."""
        if self._handle:
            self._lib.bpf_object__close(self._handle)
            self._handle = 0
