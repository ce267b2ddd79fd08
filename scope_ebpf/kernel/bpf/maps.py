# SPDX-License-Identifier: Apache-2.0
"""
BPF maps: their set-up before an object is loaded, and typed access to them after that.

No other module calls libbpf's functions for maps. Keys and values are numpy types, whose sizes must
be those of the kernel's map. A per-CPU map has one value for each possible CPU at each key.
"""

from __future__ import annotations

import ctypes
import errno
import math
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from scope_ebpf.errors import HostError
from scope_ebpf.kernel.bpf.libbpf import check, library

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

#: Types of most keys, and of values that are one number.
U32, U64 = np.dtype("<u4"), np.dtype("<u8")
#: enum bpf_map_type (include/uapi/linux/bpf.h).
_HASH, _ARRAY, _PER_CPU_HASH, _PER_CPU_ARRAY, _LRU_HASH, _LRU_PER_CPU_HASH = 1, 2, 5, 6, 9, 10
_PER_CPU = (_PER_CPU_HASH, _PER_CPU_ARRAY, _LRU_PER_CPU_HASH)
#: Kinds of maps that :meth:`MapHandle.clear` empties.
_ARRAYS, _HASHES = (_ARRAY, _PER_CPU_ARRAY), (_HASH, _LRU_HASH)


@cache
def possible_cpus() -> int:
    """Number of values at each key of a per-CPU map; HostError if it cannot be read."""
    return check(library().libbpf_num_possible_cpus(), "cannot count the CPUs")


class MapHandle:
    """
    One map of an open BPF object, by libbpf's *handle*, which lives as long as the object.

    ``name`` is that of the C source; the maps of global variables end in ``.rodata`` and ``.bss``.
    ``kind`` is of ``enum bpf_map_type``, ``key_bytes`` and ``value_bytes`` are the sizes of a key
    and of one value.
    """

    def __init__(self, handle: int) -> None:
        self._lib = library()
        self.handle = handle
        self.name: str = self._lib.bpf_map__name(handle).decode()
        self.kind: int = self._lib.bpf_map__type(handle)
        self.key_bytes: int = self._lib.bpf_map__key_size(handle)
        self.value_bytes: int = self._lib.bpf_map__value_size(handle)

    @property
    def entries(self) -> int:
        """Keys that the map has room for; of a ring its bytes."""
        entries: int = self._lib.bpf_map__max_entries(self.handle)
        return entries

    @property
    def fd(self) -> int:
        """The file descriptor, from loading on; it lives as long as the object."""
        return check(self._lib.bpf_map__fd(self.handle), f"no map {self.name}")

    def set_entries(self, entries: int) -> None:
        """Size of the map, before loading; for a ring its bytes, a power of two of whole pages."""
        result = self._lib.bpf_map__set_max_entries(self.handle, entries)
        check(result, f"cannot size the map {self.name}")

    def set_contents(self, data: bytes) -> None:
        """Set the initial value of a map of global variables, before loading."""
        result = self._lib.bpf_map__set_initial_value(self.handle, data, len(data))
        check(result, f"cannot set the map {self.name}")

    def share(self, fd: int) -> None:
        """Use the map behind *fd* instead of making one."""
        check(self._lib.bpf_map__reuse_fd(self.handle, fd), f"cannot share the map {self.name}")

    def clear(self) -> None:
        """
        Reset the map to its state after loading; global variables and rings stay as they are.

        HostError where the kernel cannot empty a hash in one call (before 5.6).
        """
        if "." in self.name:
            return
        if self.kind in _HASHES:
            self._empty()
        elif self.kind in _ARRAYS:
            cpus = possible_cpus() if self.kind in _PER_CPU else 1
            zeroes = bytes((self.value_bytes + 7 & ~7) * cpus)
            fd = self.fd
            for number in range(self.entries):
                key = ctypes.c_uint32(number)
                result = self._lib.bpf_map_update_elem(fd, ctypes.byref(key), zeroes, 0)
                check(result, f"cannot clear the map {self.name}")

    def _empty(self) -> None:
        entries = self.entries
        keys = ctypes.create_string_buffer(entries * self.key_bytes)
        values = ctypes.create_string_buffer(entries * self.value_bytes)
        count, after = ctypes.c_uint32(entries), ctypes.c_uint32()
        result = self._lib.bpf_map_lookup_and_delete_batch(
            self.fd, None, ctypes.byref(after), keys, values, ctypes.byref(count), None
        )
        if result != -errno.ENOENT:  # which marks the end of the map
            check(result, f"cannot clear the map {self.name}")


class Map:
    """
    A loaded map whose keys are of type *key* and whose values are of type *value*.

    Values have the shape ``()``, or ``(cpus,)`` in a per-CPU map. Raises HostError if the kernel's
    sizes differ from those of the types, and LibbpfError where the kernel refuses an access.

    ``name`` is that of the C source, ``fd`` the file descriptor, which lives as long as the object.
    """

    def __init__(self, handle: MapHandle, key: np.dtype[Any], value: np.dtype[Any]) -> None:
        _require_size(handle.name, "keys", handle.key_bytes, key)
        _require_size(handle.name, "values", handle.value_bytes, value)
        self._lib = library()
        self.name, self.fd = handle.name, handle.fd
        self._entries = handle.entries
        self._key, self._value = key, value
        self._shape = (possible_cpus(),) if handle.kind in _PER_CPU else ()
        if self._shape and value.itemsize % 8:
            raise ValueError(f"the per-CPU map {self.name} has values of whole words only")
        # Quicker than an array of numpy's, whose address takes microseconds to get.
        self._buffer = ctypes.c_char * (value.itemsize * math.prod(self._shape))
        self._has_batch = True

    def __getitem__(self, key: ArrayLike) -> NDArray[Any]:
        """The value at *key*; LibbpfError if there is none."""
        buffer = self._buffer()
        result = self._lib.bpf_map_lookup_elem(self.fd, self._key_bytes(key), buffer)
        check(result, f"cannot read the map {self.name}")
        return np.ndarray(self._shape, self._value, memoryview(buffer))

    def get(self, key: ArrayLike) -> NDArray[Any] | None:
        """The value at *key*; None if there is none."""
        buffer = self._buffer()
        result = self._lib.bpf_map_lookup_elem(self.fd, self._key_bytes(key), buffer)
        if result == -errno.ENOENT:
            return None
        check(result, f"cannot read the map {self.name}")
        return np.ndarray(self._shape, self._value, memoryview(buffer))

    def _key_bytes(self, key: ArrayLike) -> bytes:
        return np.array(key, self._key).tobytes()

    def __setitem__(self, key: ArrayLike, value: ArrayLike) -> None:
        """Set the *value* at *key*; ValueError if it has another shape than the map's values."""
        data = np.array(value, self._value)
        if data.shape != self._shape:
            raise ValueError(f"a value of the map {self.name} has the shape {self._shape}")
        result = self._lib.bpf_map_update_elem(self.fd, self._key_bytes(key), data.tobytes(), 0)
        check(result, f"cannot write the map {self.name}")

    def discard(self, key: ArrayLike) -> None:
        """Remove *key*, if it is there."""
        result = self._lib.bpf_map_delete_elem(self.fd, self._key_bytes(key))
        if result != -errno.ENOENT:
            check(result, f"cannot write the map {self.name}")

    def at(self, keys: Sequence[int] | range) -> NDArray[Any]:
        """The values of an array at *keys*, shape ``(keys,)`` or ``(keys, cpus)``."""
        wanted = np.array(keys, self._key)
        values = np.zeros((len(wanted), *self._shape), self._value)
        key, value = wanted.ctypes.data, values.ctypes.data
        for number in range(len(wanted)):
            result = self._lib.bpf_map_lookup_elem(
                self.fd, key + number * wanted.strides[0], value + number * values.strides[0]
            )
            check(result, f"cannot read the map {self.name}")
        return values

    def values(self) -> NDArray[Any]:
        """
        All values of an array, shape ``(entries,)`` or ``(entries, cpus)``.

        Read in one call where the kernel can (5.6, for per-CPU arrays 5.13).
        """
        values = self._batch() if self._has_batch else None
        self._has_batch = values is not None
        return self.at(range(self._entries)) if values is None else values

    def _batch(self) -> NDArray[Any] | None:
        _, values, result = self._read_batch()
        # ENOENT marks the end of the map.
        complete = len(values) == self._entries and result in (0, -errno.ENOENT)
        return values if complete else None

    def _read_batch(self) -> tuple[NDArray[Any], NDArray[Any], int]:
        """Keys and values that are there, and the result of the call."""
        values = np.zeros((self._entries, *self._shape), self._value)
        keys = np.zeros(self._entries, self._key)
        count, after = ctypes.c_uint32(self._entries), ctypes.c_uint32()
        result = self._lib.bpf_map_lookup_batch(
            self.fd,
            None,
            ctypes.byref(after),
            keys.ctypes.data,
            values.ctypes.data,
            ctypes.byref(count),
            None,
        )
        found = count.value if result in (0, -errno.ENOENT) else 0
        return keys[:found], values[:found], result

    def entries(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """
        The keys of a hash and their values, shapes ``(n,)``; what comes and goes may be missing.

        Read in one call where the kernel can (5.6).
        """
        keys, values, result = self._read_batch()
        if result not in (0, -errno.ENOENT):
            pairs = [*self.items()]
            keys = np.array([key for key, _ in pairs], self._key)
            values = np.array([value[()] for _, value in pairs], self._value)
        return keys, values

    def keys(self) -> NDArray[Any]:
        """The keys of a hash, shape ``(n,)``; those that come and go meanwhile may be missing."""
        found = bytearray()
        key = ctypes.create_string_buffer(self._key.itemsize)
        before = None
        for _ in range(self._entries):
            result = self._lib.bpf_map_get_next_key(self.fd, before, key)
            if result == -errno.ENOENT:
                break
            check(result, f"cannot read the map {self.name}")
            found += key.raw
            before = key
        return np.frombuffer(bytes(found), self._key)

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Each key of a hash that is there, with its value."""
        for key in self.keys():
            value = self.get(key)
            if value is not None:
                yield key, value


def _require_size(name: str, what: str, size: int, dtype: np.dtype[Any]) -> None:
    if size != dtype.itemsize:
        raise HostError(
            f"the {what} of the map {name} have {size} bytes, but this program expects "
            f"{dtype.itemsize}: the BPF objects and this program are of different builds; "
            "run `make objects`"
        )
