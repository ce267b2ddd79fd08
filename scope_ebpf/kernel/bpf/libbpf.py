# SPDX-License-Identifier: Apache-2.0
"""
The functions of libbpf 1.x that this package calls, over ctypes.

They return libbpf's results; :func:`check` turns NULL and negative numbers into
:class:`LibbpfError`, with the last messages of libbpf. Signatures are those of libbpf 1.1
``src/libbpf.h`` and ``src/bpf.h``.
"""

from __future__ import annotations

import collections
import ctypes
import os
from ctypes import POINTER, c_bool, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from errno import EPERM
from functools import cache
from typing import Any

from scope_ebpf.errors import PERMIT, HostError

#: The lowest level of libbpf messages that are dropped (enum libbpf_print_level).
_LIBBPF_DEBUG = 2

#: The last messages of libbpf, newest at the end.
messages: collections.deque[str] = collections.deque(maxlen=200)

_Print = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)


class LibbpfError(HostError):
    """A call to libbpf failed, so *what* did not happen. ``errno`` is its error number."""

    def __init__(self, what: str, errno: int) -> None:
        printed = "; ".join(list(messages)[-3:])
        text = f"{what}: {os.strerror(errno)}" + (f" ({printed})" if printed else "")
        if errno == EPERM:
            text = f"{what}: the kernel does not permit it; {PERMIT}"
        super().__init__(text)
        self.errno = errno


class OpenOptions(ctypes.Structure):
    """``struct bpf_object_open_opts`` as far as its name."""

    _fields_ = (("sz", c_size_t), ("object_name", c_char_p))


class TestRunOptions(ctypes.Structure):
    """``struct bpf_test_run_opts``."""

    _fields_ = (
        ("sz", c_size_t),
        ("data_in", c_void_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_void_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    )


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "bpf_object__open_mem": (c_void_p, [c_char_p, c_size_t, POINTER(OpenOptions)]),
    "bpf_object__load": (c_int, [c_void_p]),
    "bpf_object__close": (None, [c_void_p]),
    "bpf_object__next_map": (c_void_p, [c_void_p, c_void_p]),
    "bpf_object__next_program": (c_void_p, [c_void_p, c_void_p]),
    "bpf_map__name": (c_char_p, [c_void_p]),
    "bpf_map__fd": (c_int, [c_void_p]),
    "bpf_map__type": (c_int, [c_void_p]),
    "bpf_map__key_size": (c_uint32, [c_void_p]),
    "bpf_map__value_size": (c_uint32, [c_void_p]),
    "bpf_map__max_entries": (c_uint32, [c_void_p]),
    "bpf_map__reuse_fd": (c_int, [c_void_p, c_int]),
    "bpf_map__set_max_entries": (c_int, [c_void_p, c_uint32]),
    "bpf_map__set_initial_value": (c_int, [c_void_p, c_void_p, c_size_t]),
    "bpf_program__name": (c_char_p, [c_void_p]),
    "bpf_program__fd": (c_int, [c_void_p]),
    "bpf_program__set_autoload": (c_int, [c_void_p, c_bool]),
    "bpf_program__set_expected_attach_type": (c_int, [c_void_p, c_int]),
    "bpf_link__destroy": (c_int, [c_void_p]),
    "bpf_map_lookup_elem": (c_int, [c_int, c_void_p, c_void_p]),
    "bpf_map_get_next_key": (c_int, [c_int, c_void_p, c_void_p]),
    "bpf_map_lookup_batch": (
        c_int,
        [c_int, c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_uint32), c_void_p],
    ),
    "bpf_map_lookup_and_delete_batch": (
        c_int,
        [c_int, c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_uint32), c_void_p],
    ),
    "bpf_map_update_elem": (c_int, [c_int, c_void_p, c_void_p, c_uint64]),
    "bpf_program__attach": (c_void_p, [c_void_p]),
    "bpf_program__attach_perf_event": (c_void_p, [c_void_p, c_int]),
    "bpf_obj_get_info_by_fd": (c_int, [c_int, c_void_p, POINTER(c_uint32)]),
    "bpf_enable_stats": (c_int, [c_int]),
    "bpf_map_delete_elem": (c_int, [c_int, c_void_p]),
    "bpf_link_get_next_id": (c_int, [c_uint32, POINTER(c_uint32)]),
    "bpf_link_get_fd_by_id": (c_int, [c_uint32]),
    "bpf_prog_load": (
        c_int,
        [c_int, c_char_p, c_char_p, c_char_p, c_size_t, c_void_p],
    ),
    "bpf_prog_test_run_opts": (c_int, [c_int, POINTER(TestRunOptions)]),
    "libbpf_num_possible_cpus": (c_int, []),
    "libbpf_version_string": (c_char_p, []),
}


@cache
def library() -> Any:
    """Libbpf with its signatures set, printing into :data:`messages`."""
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise HostError(
            "libbpf.so.1 is not on this host; install it (Debian, Ubuntu: apt install libbpf1; "
            "Fedora: dnf install libbpf)"
        ) from error
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(lib, name)
        function.restype = result
        function.argtypes = arguments
    lib.libbpf_set_print(_keep_callback)
    return lib


def _keep(level: int, form: bytes, arguments: int) -> int:
    # A va_list is passed as a pointer on x86_64 and arm64, as vsnprintf expects it.
    if level < _LIBBPF_DEBUG:
        text = ctypes.create_string_buffer(4096)
        ctypes.CDLL(None).vsnprintf(text, c_size_t(4096), form, c_void_p(arguments))
        messages.append(text.value.decode(errors="replace").strip())
    return 0


_keep_callback = _Print(_keep)


def check(result: int | None, what: str) -> int:
    """The *result* of a libbpf call, or :class:`LibbpfError` if it is one; *what* is its text."""
    if result is None or (isinstance(result, int) and result < 0):
        raise LibbpfError(what, -result if result else ctypes.get_errno())
    return result
