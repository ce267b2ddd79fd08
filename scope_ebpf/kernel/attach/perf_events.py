# SPDX-License-Identifier: Apache-2.0
"""
Perf events: ``perf_event_open``, as far as an event with a BPF program needs it.

The event counts and overflows in the kernel; a BPF program replaces perf's own sample buffer, so
nothing is mapped here. Structure and constants are those of ``include/uapi/linux/perf_event.h``;
the structure ends after the last field that is used, and ``size`` gives the kernel its length.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from pathlib import Path

from scope_ebpf.errors import HostError, NotRootError
from scope_ebpf.kernel.bpf.libbpf import LibbpfError, check, library

#: ``perf_event_open`` by machine (asm/unistd.h): the C library has no function for it.
_SYSCALL = {"x86_64": 298, "aarch64": 241}
TYPE_SOFTWARE = 1
TYPE_BREAKPOINT = 5
#: A timer of the CPU, which runs whether or not the machine counts cycles.
SW_CPU_CLOCK = 0
SW_TASK_CLOCK = 1
#: Bits of the flag word behind ``read_format``.
DISABLED = 1 << 0
EXCLUDE_KERNEL = 1 << 5
EXCLUDE_HV = 1 << 6
FREQUENCY = 1 << 10
#: The event ends where its thread executes another program; since Linux 5.13.
REMOVE_ON_EXEC = 1 << 36
_FD_CLOEXEC = 1 << 3
#: PERF_EVENT_IOC_PERIOD, _IOW('$', 4, __u64).
_SET_PERIOD = 0x40082404


class Attributes(ctypes.Structure):
    """``struct perf_event_attr`` up to the breakpoint's length (PERF_ATTR_SIZE_VER1)."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("config", ctypes.c_uint64),
        ("period_or_frequency", ctypes.c_uint64),
        ("sample_type", ctypes.c_uint64),
        ("read_format", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("wakeup_events", ctypes.c_uint32),
        ("breakpoint_type", ctypes.c_uint32),
        ("breakpoint_address", ctypes.c_uint64),
        ("breakpoint_length", ctypes.c_uint64),
    )


def perf_event_open(attributes: Attributes, *, pid: int = -1, cpu: int = -1) -> int:
    """
    Open one event, of a thread (*pid*) or of a CPU, and return its file descriptor.

    Raises NotRootError where the kernel does not let this user, and HostError with
    the kernel's reason otherwise; its ``errno`` is in the exception's ``__cause__``.
    """
    attributes.size = ctypes.sizeof(attributes)
    libc = ctypes.CDLL(None, use_errno=True)
    number = _SYSCALL.get(os.uname().machine)
    if number is None:
        raise HostError(f"{os.uname().machine} is not supported yet, only x86_64 is")
    fd: int = libc.syscall(
        ctypes.c_long(number),
        ctypes.byref(attributes),
        ctypes.c_int(pid),
        ctypes.c_int(cpu),
        ctypes.c_int(-1),
        ctypes.c_ulong(_FD_CLOEXEC),
    )
    if fd >= 0:
        return fd
    code = ctypes.get_errno()
    cause = OSError(code, os.strerror(code))
    if code in (errno.EACCES, errno.EPERM):
        raise NotRootError(
            "the kernel does not permit perf events here: run as root, or with CAP_PERFMON; in a "
            "container also outside its seccomp filter (docker: --privileged)"
        ) from cause
    if code == errno.ENOSYS:
        raise HostError("this kernel was built without perf events") from cause
    raise HostError(f"the kernel refused a perf event: {os.strerror(code)}") from cause


def attach(program: int, fd: int, what: str) -> int:
    """
    Let a loaded BPF program (libbpf's handle) run at every overflow of the event *fd*.

    Returns the link; destroying it closes the event. Where it fails the event is closed.
    """
    try:
        return check(
            library().bpf_program__attach_perf_event(program, fd), f"cannot attach to {what}"
        )
    except LibbpfError:
        os.close(fd)
        raise


def set_period(fd: int, nanoseconds: int) -> None:
    """Set the interval of the timer *fd* from now on; OSError if the kernel refuses."""
    fcntl.ioctl(fd, _SET_PERIOD, struct.pack("<Q", nanoseconds))


def online_cpus(root: Path = Path("/")) -> list[int]:
    """The numbers of the CPUs that are online."""
    text = (root / "sys/devices/system/cpu/online").read_text().strip()
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found
