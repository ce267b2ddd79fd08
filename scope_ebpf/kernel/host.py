# SPDX-License-Identifier: Apache-2.0
"""
Which requirements of BPF programs on another process this host meets, and which not.

*root* is the folder that holds ``proc`` and ``sys``, so tests can use a folder of
files.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from scope_ebpf.errors import HostError, KernelTooOldError, NoBtfError, NotRootError, ScopeError

if TYPE_CHECKING:
    from collections.abc import Callable

#: BPF_MAP_TYPE_RINGBUF came with this release.
OLDEST_KERNEL = (5, 8)
#: From this release on, all breakpoints of a program are one link, which requires only CAP_PERFMON.
#: Before, they are perf events, which require CAP_SYS_ADMIN (CVE-2025-38466).
_NO_ADMIN = (6, 6)
#: include/uapi/linux/capability.h
CAPABILITIES = {
    "CAP_SYS_ADMIN": 21,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}
#: Capabilities that CAP_SYS_ADMIN includes.
_OF_ADMIN = ("CAP_PERFMON", "CAP_BPF")
#: The inode of the host's own pid namespace (include/linux/proc_ns.h, PROC_PID_INIT_INO).
_HOST_PID_NAMESPACE = 0xEFFFFFFC


class Fact(NamedTuple):
    """
    One property of the host.

    ``name`` and ``value`` are shown to the user; ``problem`` is the error that the value causes.
    """

    name: str
    value: str
    problem: ScopeError | None = None


def facts(root: Path = Path("/"), release: str | None = None) -> list[Fact]:
    """All properties that are required of the host, most important first."""
    release = release or os.uname().release
    checks: list[Callable[[], Fact]] = [
        lambda: _privileges(root, release),
        lambda: _kernel(release),
        lambda: _btf(root),
        _machine,
        _libbpf,
    ]
    return [check() for check in checks]


def require(root: Path = Path("/"), release: str | None = None) -> None:
    """Raise the first problem of this host, if it has one."""
    for fact in facts(root, release):
        if fact.problem:
            raise fact.problem


def capabilities(root: Path = Path("/")) -> int:
    """The effective capabilities of this process, as a bit mask."""
    status = (root / "proc/self/status").read_bytes()
    match = re.search(rb"^CapEff:\s*(\w+)", status, re.MULTILINE)
    return int(match[1], 16) if match else 0


def pid_namespace(root: Path = Path("/")) -> tuple[int, int]:
    """Device and inode of our pid namespace; (0, 0) where it is the host's own."""
    status = os.stat(root / "proc/self/ns/pid")  # noqa: PTH116 - a magic link, not a file
    if status.st_ino == _HOST_PID_NAMESPACE:
        return 0, 0
    return status.st_dev, status.st_ino


def require_host_pids(problem: str) -> None:
    """Raise HostError, with the *problem* in its text, if we are in a pid namespace of our own."""
    if pid_namespace() != (0, 0):
        raise HostError(f"{problem}; run it in the host's (docker: --pid=host)")


def has(name: str, root: Path = Path("/")) -> bool:
    """Whether this process has the capability called *name*."""
    mask = capabilities(root)
    admin = mask & 1 << CAPABILITIES["CAP_SYS_ADMIN"] and name in _OF_ADMIN
    return bool(admin or mask & 1 << CAPABILITIES[name])


def _privileges(root: Path, release: str) -> Fact:
    """
    The capabilities that this kernel requires, or a problem that names the missing ones.

    Reading VMs of other users requires more; the reader raises its own error.
    """
    needed = ["CAP_BPF", "CAP_PERFMON"] if _number(release) >= _NO_ADMIN else ["CAP_SYS_ADMIN"]
    missing = [name for name in needed if not has(name, root)]
    if not missing:
        return Fact("privileges", ", ".join(needed))
    why = "attaching BPF programs needs root: run the same with sudo"
    if len(missing) < len(needed):
        why = f"{missing[0]} is missing: run the same as root, or give it to this process"
    return Fact("privileges", "none", NotRootError(why))


def _number(release: str) -> tuple[int, int]:
    """Major and minor number of a kernel release; (0, 0) if *release* is not one."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _kernel(release: str) -> Fact:
    if _number(release) >= OLDEST_KERNEL:
        return Fact("kernel", release)
    return Fact(
        "kernel",
        release,
        KernelTooOldError(
            f"Linux {release} has no BPF ring buffer: it came with 5.8, so this host needs a "
            "newer kernel (Debian 11, Ubuntu 20.10, RHEL 8.5 or later have one)"
        ),
    )


def _btf(root: Path) -> Fact:
    path = root / "sys/kernel/btf/vmlinux"
    if path.exists():
        return Fact("kernel BTF", "yes")
    return Fact(
        "kernel BTF",
        "no",
        NoBtfError(
            "this kernel does not describe its types (no /sys/kernel/btf/vmlinux): it needs one "
            "built with CONFIG_DEBUG_INFO_BTF=y, as distributions' kernels have been since 2021"
        ),
    )


def _machine() -> Fact:
    machine = os.uname().machine
    if machine == "x86_64":
        return Fact("machine", machine)
    return Fact("machine", machine, HostError(f"{machine} is not supported yet, only x86_64 is"))


def _libbpf() -> Fact:
    from scope_ebpf.kernel.bpf.libbpf import library  # may be missing, which is then the problem

    try:
        return Fact("libbpf", library().libbpf_version_string().decode())
    except HostError as error:
        return Fact("libbpf", "no", error)
