# SPDX-License-Identifier: Apache-2.0
"""
Which processes are BEAM VMs, and what each says about itself.

Everything goes through ``/proc/PID``: the file that runs (also when the one on
the disk was replaced, or lies in another root) and the memory as it is.
"""

from __future__ import annotations

import errno
import os
import re
import struct
import time
import weakref
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from scope_ebpf.beam.elf.binary import Binary, UnreadableElfError
from scope_ebpf.beam.layouts.live import layout_for
from scope_ebpf.beam.memory.look_limits import limited, one_of_many
from scope_ebpf.beam.memory.process_memory import Memory
from scope_ebpf.beam.memory.roots import Roots
from scope_ebpf.beam.vm.command import command_words
from scope_ebpf.beam.vm.identity import Identity, Process
from scope_ebpf.beam.vm.node import MAX_NAME, NodeName
from scope_ebpf.beam.vm.target import Target
from scope_ebpf.errors import (
    LOOK,
    NoSuchProcessError,
    NotABeamError,
    NotPermittedError,
    ReadRefusedError,
    ScopeError,
)
from scope_ebpf.sandbox.filesystems import in_user_namespace
from scope_ebpf.sandbox.proc import status_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scope_ebpf.beam.layouts import Layout

#: Threads of a VM: ``1_scheduler`` up to OTP 25, ``erts_sched_1`` since 26.
SCHEDULER_THREAD = re.compile(r"^(?:\d+_scheduler|erts_sched_\d+)$")
#: The greeting of the shell, in every emulator, stripped or not
#: (OTP-25.2.3 erts/emulator/beam/erl_bif_info.c).
_GREETING = b"Erlang/OTP "
_BANNER = re.compile(rb"Erlang/OTP (\d{1,3})[^\[\0]{0,64}\[erts-([0-9.]{1,32})\][^\0]{0,512}")
#: Capabilities to look into another user's process (include/uapi/linux/capability.h).
_TO_LOOK = {"CAP_SYS_PTRACE": 19, "CAP_DAC_READ_SEARCH": 2}
#: An auxiliary vector is some 20 pairs of words; AT_ENTRY is where the program starts.
_AT_ENTRY = 9
_MAX_AUXV = 4096
#: Links of a folder /proc/PID/task with one thread (fs/proc/base.c, proc_task_getattr).
_ONE_THREAD = 3
#: Bytes of a thread's name: of a kernel thread's, too (fs/proc/array.c, proc_task_name).
_MAX_COMM = 64
#: Seconds until a layout that was refused is checked again, at most: as long as the VM has lived.
_REFUSED_FOR = 30.0


class Beam(Target):
    """A target whose layout and globals are found at their first use."""

    @cached_property
    def layout(self) -> Layout:
        """Checked against the VM, once; one that is refused is checked again after a while."""
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        if self._refusals and now < self._refusals[-1][0]:
            raise ReadRefusedError(self._refusals[-1][1])
        try:
            return layout_for(self)
        except ReadRefusedError as error:
            # A VM that just begins soon has what is missing.
            pause = min(_REFUSED_FOR, max(now - self.started, 0.0))
            self._refusals[:] = [(now + pause, str(error))]
            raise

    @cached_property
    def _refusals(self) -> list[tuple[float, str]]:
        """Until when the layout is refused, in seconds since the host booted, and why."""
        return []

    @cached_property
    def roots(self) -> Roots:
        """Addresses of the VM's global tables."""
        # No reference cycle: what is held of a VM goes with the last user.
        return Roots(weakref.proxy(self))

    def find(self, name: str) -> int | None:
        """By its symbol, or searched for; once."""
        return self.roots.find(name)

    def address(self, name: str) -> int:
        """By its symbol, or searched for; once."""
        return self.roots.address(name)


class Refusal(NamedTuple):
    """A process that looks like a BEAM but cannot be observed, and why."""

    pid: int
    reason: Exception


def beams(proc: Path = Path("/proc")) -> list[Beam | Refusal]:
    """
    Find every BEAM of the host, by pid; one that ends meanwhile is left out.

    Each inspection has limits, and its errors do not affect the others.
    """
    found: list[Beam | Refusal] = []
    for pid in sorted(int(entry.name) for entry in proc.iterdir() if entry.name.isdecimal()):
        if not _has_schedulers(proc / str(pid)):
            continue
        try:
            with limited(one_of_many(pid)):
                found.append(inspect(pid, proc))
        except (NoSuchProcessError, NotABeamError):
            continue
        except (ScopeError, OSError) as error:
            found.append(Refusal(pid, error))
        except Exception as error:  # noqa: BLE001 - what a hostile process leads to is anything
            found.append(Refusal(pid, ScopeError(f"process {pid} cannot be looked at: {error!r}")))
    return found


def inspect(
    pid: int, proc: Path = Path("/proc"), opened: Callable[[Path], Binary] = Binary.open
) -> Beam:
    """
    Inspect one process; *opened* opens the file that it runs.

    Raises NoSuchProcessError, NotABeamError or NotPermittedError, each with the
    cause and what to do about it.
    """
    process = _hold(pid, proc / str(pid))
    try:
        return _inspect(process, proc, opened)
    except BaseException:
        process.close()
        raise


def _hold(pid: int, folder: Path) -> Process:
    try:
        return Process(pid)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        _started(pid, folder)  # says what it is instead
        raise NoSuchProcessError(f"there is no process {pid}") from None


def _inspect(process: Process, proc: Path, opened: Callable[[Path], Binary]) -> Beam:
    pid = process.pid
    folder = proc / str(pid)
    started = _started(pid, folder)
    exe, binary = _open(pid, folder, opened)
    process.watch()
    identity = Identity.of(process, started, binary, proc)
    release, version, flavor = _version(pid, exe, binary)
    target = Beam(
        pid=pid,
        exe=exe,
        node=None,
        otp_release=release,
        erts_version=version,
        flavor=flavor,
        schedulers=_count_schedulers(folder),
        usdt=any(site.provider == "erlang" for site in binary.usdt_sites),
        started=started / os.sysconf("SC_CLK_TCK"),
        base=_base(pid, folder, binary),
        binary=binary,
        memory=Memory(pid, process),
        identity=identity,
    )
    target = replace(target, node=NodeName(target).read() or _node_argument(folder, target.memory))
    identity.check()
    return target


def _started(pid: int, folder: Path) -> int:
    """Return when the process started, in clock ticks; raise for a thread, or if it has ended."""
    try:
        stat = (folder / "stat").read_bytes()
        leader = status_number((folder / "status").read_bytes(), "Tgid")
    except (FileNotFoundError, ProcessLookupError):
        raise NoSuchProcessError(f"there is no process {pid}") from None
    # The name stands in brackets and may hold anything, brackets too.
    fields = stat.rpartition(b")")[2].split()
    if fields[0] in (b"Z", b"X", b"x"):
        raise NoSuchProcessError(f"process {pid} has ended; its parent has not noticed yet")
    if leader not in (None, pid):
        raise NoSuchProcessError(f"{pid} is a thread of process {leader}: use that number")
    return int(fields[19])


def program_of(folder: Path | str) -> str:
    """Return the path of the program that runs, as text, which a path need not be."""
    path = os.readlink(os.fsencode(f"{folder}/exe"))  # noqa: PTH115 - fast, and bytes
    return path.decode("utf-8", "replace")


def _open(pid: int, folder: Path, opened: Callable[[Path], Binary]) -> tuple[str, Binary]:
    try:
        return program_of(folder), opened(folder / "exe")
    except PermissionError:
        raise NotPermittedError(_forbidden(pid)) from None
    except (FileNotFoundError, ProcessLookupError):
        if not folder.exists():
            raise NoSuchProcessError(f"process {pid} has ended") from None
        raise NotABeamError(f"process {pid} is a thread of the kernel, no BEAM") from None
    except (UnreadableElfError, OSError) as error:
        raise NotABeamError(f"process {pid} is no BEAM: {error}") from None


def _forbidden(pid: int) -> str:
    if os.geteuid() == 0 and in_user_namespace():
        return (
            f"process {pid} is outside of the user namespace of this root: run as the host's root"
        )
    if os.geteuid() != 0:
        return f"process {pid} belongs to another user: {LOOK}"
    missing = _missing_capabilities()
    if missing:
        return f"process {pid} may not be looked into: root lacks {' and '.join(missing)} here"
    return (
        f"process {pid} may not be looked into, not even by root: a security module "
        "such as SELinux or AppArmor forbids it"
    )


def _missing_capabilities(status: Path = Path("/proc/self/status")) -> list[str]:
    """Names of the capabilities of LOOK that this process does not have."""
    found = re.search(rb"^CapEff:\s*([0-9a-f]+)", status.read_bytes(), re.MULTILINE)
    mask = int(found[1], 16) if found else 0
    return [name for name, bit in _TO_LOOK.items() if not mask >> bit & 1]


def _version(pid: int, exe: str, binary: Binary) -> tuple[str, str, Literal["jit", "emu"]]:
    found = version_of(binary)
    if found is None:
        raise NotABeamError(f"process {pid} runs {exe}, which is no BEAM")
    return found


def version_of(binary: Binary) -> tuple[str, str, Literal["jit", "emu"]] | None:
    """
    OTP release, ERTS version and flavour, from symbols or else from the greeting.

    None for a program that is no BEAM.
    """
    release, version = (_string(binary, name) for name in ("etp_otp_release", "etp_erts_version"))
    if release and version:
        jit = binary.symbol("etp_beamasm")
        number = binary.read(jit.address, 4) if jit else b"\0"
        return release, version, "jit" if any(number) else "emu"
    banner = None
    with suppress(UnreadableElfError):
        banner = binary.search((".rodata", ".data"), _GREETING, _BANNER)
    if banner is None:
        return None
    flavor: Literal["jit", "emu"] = "jit" if b"[jit" in banner[0] else "emu"
    return banner[1].decode(), banner[2].decode(), flavor


def _string(binary: Binary, name: str) -> str | None:
    symbol = binary.symbol(name)
    if symbol is None or not 0 < symbol.size <= 64:
        return None
    try:
        text = binary.read(symbol.address, symbol.size).split(b"\0")[0].decode("ascii")
    except (ValueError, UnreadableElfError):
        return None
    return text if re.fullmatch(r"[0-9A-Za-z.+-]+", text) else None


def _base(pid: int, folder: Path, binary: Binary) -> int:
    """Return how far the kernel moved the program, by its entry point."""
    if not binary.relative:
        return 0
    try:
        with (folder / "auxv").open("rb") as file:
            vector = file.read(_MAX_AUXV)
    except PermissionError:
        raise NotPermittedError(f"process {pid} may not be looked into: {LOOK}") from None
    except OSError:
        raise NoSuchProcessError(f"process {pid} has ended") from None
    for kind, value in struct.iter_unpack("<QQ", vector[: len(vector) // 16 * 16]):
        if kind == _AT_ENTRY:
            return int(value) - binary.entry & (1 << 64) - 1
    raise NoSuchProcessError(f"process {pid} has ended")


def _thread_names(folder: Path) -> Iterator[str]:
    """Names of a process's threads, as they are read; none once it has ended."""
    tasks = f"{folder}/task"
    with suppress(OSError):  # processes end, and so do threads
        for tid in os.listdir(tasks):  # noqa: PTH208 - pathlib takes ten times as long
            path = f"{tasks}/{tid}/comm"
            with suppress(OSError), open(path, "rb", buffering=0) as comm:  # noqa: PTH123 - fast
                yield comm.read(_MAX_COMM).decode("utf-8", "replace").strip()


def _has_schedulers(folder: Path) -> bool:
    try:
        # Most processes of a host have one thread, and none of these is a VM.
        if os.stat(f"{folder}/task").st_nlink == _ONE_THREAD:  # noqa: PTH116 - fast
            return False
    except OSError:
        return False
    return any(SCHEDULER_THREAD.match(name) for name in _thread_names(folder))


def _count_schedulers(folder: Path) -> int:
    return sum(1 for name in _thread_names(folder) if SCHEDULER_THREAD.match(name))


def _node_argument(folder: Path, memory: Memory) -> str | None:
    """Read the name that the command line asks for, if it says the host as well."""
    for option, value in pairwise(command_words(folder, memory)):
        if option in ("-name", "-sname") and "@" in value:
            return value[:MAX_NAME]
    return None
