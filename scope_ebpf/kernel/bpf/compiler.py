# SPDX-License-Identifier: Apache-2.0
"""
Compiles a user's C text to BPF programs, by bcc.

bcc is the distribution's package. It is imported when it is needed, also from a virtual
environment, which does not have the system's packages.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scope_ebpf.errors import CompilerMissingError, ProbeError
from scope_ebpf.kernel.bpf.headers import kernel_headers
from scope_ebpf.kernel.bpf.instructions import judge, require_bounded
from scope_ebpf.kernel.bpf.stats import verified_instructions

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Iterator, Sequence

#: Folders in which distributions install Python packages.
_FOLDERS = ("/usr/lib/python3/dist-packages", "/usr/lib/python3*/site-packages")
#: ``BPF_PROG_TYPE_KPROBE``, include/uapi/linux/bpf.h; programs of uprobes are of this type.
_KPROBE = 2
#: Lines of the compiler's or the verifier's output that are shown.
_MOST_LINES = 30


class Compiled:
    """
    The programs and maps of a probe's *text*, called *name* in messages.

    Raises CompilerMissingError where bcc or headers are missing, and ProbeError with the
    compiler's output, or with the first thing in a program that is not allowed.

    ``functions`` are the names of its functions, ``notes`` the compiler's warnings.
    """

    def __init__(self, name: str, text: str, flags: Sequence[str]) -> None:
        self._bcc = _import_bcc()
        said: list[str] = []
        try:
            with kernel_headers(), _stderr(said):
                self._module = _only_compiled(self._bcc)(
                    text=text.encode(), cflags=["-Wno-macro-redefined", *flags]
                )
        except CompilerMissingError:
            raise
        except Exception as error:  # noqa: BLE001 - bcc raises nothing more special
            raise ProbeError(
                f"{name} does not compile; the compiler says:", _essence(said) or str(error)
            ) from None
        self.notes = _essence(said)
        library, module = self._bcc.lib, self._module.module
        self.functions: tuple[str, ...] = tuple(
            library.bpf_function_name(module, number).decode()
            for number in range(library.bpf_num_functions(module))
        )
        for function in self.functions:
            judge(function, self._module.dump_func(function.encode()))

    def load(self, function: str, attach_type: int | None) -> int:
        """Load one function; its file descriptor, or ProbeError with the verifier's output."""
        said: list[str] = []
        try:
            with _stderr(said):
                kind = -1 if attach_type is None else attach_type
                loaded = self._module.load_func(function.encode(), _KPROBE, attach_type=kind)
        except Exception as error:  # noqa: BLE001 - bcc raises nothing more special
            # The last lines of the verifier's output name the error.
            reason = "\n".join("".join(said).strip().splitlines()[-_MOST_LINES:])
            raise ProbeError(f"the kernel refused {function} ({error}); it says:", reason) from None
        fd: int = loaded.fd
        require_bounded(function, verified_instructions(fd))
        return fd

    def map_fd(self, name: str) -> int:
        """The file descriptor of a map."""
        fd: int = self._table(name).map_fd
        return fd

    def struct(self, name: str) -> type[ctypes.Structure]:
        """The type of a map's values."""
        leaf: type[ctypes.Structure] = self._table(name).Leaf
        return leaf

    def items(self, name: str) -> list[tuple[Any, Any]]:
        """Keys and values of a map, as ctypes values."""
        return list(self._table(name).items())

    def summed(self, name: str) -> list[int]:
        """The values of a per-CPU array of numbers, each summed over the CPUs."""
        table = self._table(name)
        return [sum(table[number]) for number in range(len(table))]

    def _table(self, name: str) -> Any:
        return self._module[name.encode()]

    def close(self) -> None:
        """Give everything back to the kernel."""
        self._module.cleanup()


def _import_bcc() -> Any:
    """The distribution's module bcc; the package of that name on PyPI is another project."""
    if "bcc" in sys.modules:
        return sys.modules["bcc"]
    finds = [
        path for folder in _FOLDERS for path in Path("/").glob(f"{folder[1:]}/bcc/__init__.py")
    ]
    for path in finds:
        spec = importlib.util.spec_from_file_location(
            "bcc", path, submodule_search_locations=[str(path.parent)]
        )
        if spec is None or spec.loader is None:
            continue
        module = importlib.util.module_from_spec(spec)
        sys.modules["bcc"] = module
        try:
            spec.loader.exec_module(module)
        except (ImportError, OSError, SyntaxError) as error:
            del sys.modules["bcc"]
            raise CompilerMissingError(f"bcc cannot be used: {error}") from error
        return module
    raise CompilerMissingError(
        "a probe of yours is compiled by bcc, which is not on this host; install it (Debian, "
        "Ubuntu: apt install python3-bpfcc; Fedora: dnf install python3-bcc)"
    )


def _only_compiled(bcc: Any) -> Any:
    """The class of bcc, but functions called ``kprobe__*`` are not attached when it compiles."""
    members = {"_trace_autoload": lambda _self: None}
    return type("Compiled", (bcc.BPF,), members)


@contextlib.contextmanager
def _stderr(said: list[str]) -> Iterator[None]:
    """Append to *said* what is written to descriptor 2 in the block: clang does not use Python."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            said.append(file.read().decode(errors="replace"))


def _essence(said: list[str]) -> str:
    """The compiler's output, without the lines about kernel modules, at most _MOST_LINES."""
    lines = "".join(said).splitlines()
    noise = ("modprobe: ", "Unable to find kernel headers")
    return "\n".join([line for line in lines if not line.startswith(noise)][:_MOST_LINES]).strip()
