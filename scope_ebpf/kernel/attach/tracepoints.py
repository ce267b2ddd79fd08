# SPDX-License-Identifier: Apache-2.0
"""Attaching a program to a tracepoint of the kernel."""

from __future__ import annotations

from scope_ebpf.errors import HostError
from scope_ebpf.kernel import host
from scope_ebpf.kernel.bpf.libbpf import check, library


def attach_tracepoint(program: int, name: str) -> int:
    """
    Attach a loaded *program* (libbpf's handle) to its tracepoint, called *name*; the link.

    Raises HostError where the kernel refuses it, and in a pid namespace of our own, in which
    threads have other numbers than those in the tracepoint's records.
    """
    if host.pid_namespace() != (0, 0):
        raise HostError("within a pid namespace threads have other numbers than the kernel's")
    return check(library().bpf_program__attach(program), f"cannot attach to {name}")
