# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ctypes
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from scope_ebpf.errors import (
    HostError,
    KernelTooOldError,
    NoBtfError,
    NotRootError,
    ScopeError,
)
from scope_ebpf.kernel import host
from scope_ebpf.kernel.attach.uprobes import has_multi
from scope_ebpf.kernel.bpf import libbpf

ROOT = 0x1FFFFFFFFFF


def folder(tmp_path: Path, capabilities: int = ROOT, *, btf: bool = True) -> Path:
    """
    The files of a host that has everything, or not.
    """
    status = tmp_path / "proc/self/status"
    status.parent.mkdir(parents=True)
    status.write_text(f"Name:\tscope\nCapPrm:\t{ROOT:016x}\nCapEff:\t{capabilities:016x}\n")
    if btf:
        vmlinux = tmp_path / "sys/kernel/btf/vmlinux"
        vmlinux.parent.mkdir(parents=True)
        vmlinux.touch()
    return tmp_path


def problem(root: Path, release: str = "6.1.0-18-amd64") -> ScopeError:
    with pytest.raises(ScopeError) as error:
        host.require(root, release)
    return error.value


def test_a_host_with_everything_has_no_problem(tmp_path: Path):
    """
    Root, a kernel from 5.8 on, its BTF, x86-64 and libbpf are all that is needed.
    """
    facts = host.facts(folder(tmp_path), "5.8.0")
    assert ["privileges", "kernel", "kernel BTF", "machine", "libbpf"] == [f.name for f in facts]
    assert [None] * 5 == [f.problem for f in facts]


ENOUGH = ("CAP_BPF", "CAP_PERFMON")


def mask(*names: str) -> int:
    return sum(1 << host.CAPABILITIES[name] for name in names)


@pytest.mark.parametrize("release", ["6.1.0-18-amd64", "6.18.5"])
def test_without_root_it_says_so(tmp_path: Path, release: str):
    """
    Without any privilege the message says how to run it, with exit code 5.
    """
    found = problem(folder(tmp_path, capabilities=0), release)
    assert (NotRootError, 5, "attaching BPF programs needs root: run the same with sudo") == (
        type(found),
        found.exit_code,
        str(found),
    )


@pytest.mark.parametrize("names", [ENOUGH, ("CAP_SYS_ADMIN",)])
def test_two_capabilities_are_enough_from_linux_6_6_on(tmp_path: Path, names: tuple[str, ...]):
    """
    CAP_SYS_ADMIN, which stands for both of them, is not asked for.
    """
    host.require(folder(tmp_path, capabilities=mask(*names)), "6.6.0")


@pytest.mark.parametrize("missing", ENOUGH)
def test_a_missing_capability_is_named(tmp_path: Path, missing: str):
    """
    The message names the capability that is missing.
    """
    rest = mask(*(name for name in ENOUGH if name != missing))
    assert f"{missing} is missing: run the same as root, or give it to this process" == str(
        problem(folder(tmp_path, capabilities=rest), "6.6.0")
    )


def test_an_older_kernel_asks_for_sys_admin(tmp_path: Path):
    """
    Before 6.6 breakpoints are perf events, and those two are not enough.
    """
    found = problem(folder(tmp_path, capabilities=mask(*ENOUGH)), "6.5.13")
    assert "attaching BPF programs needs root: run the same with sudo" == str(found)


@pytest.mark.parametrize("release", ["5.4.0-150-generic", "4.19.0", "5.7.19", "unknown"])
def test_an_old_kernel_is_named(tmp_path: Path, release: str):
    """
    A kernel before 5.8 has no ring buffer; the message says which would, with exit code 7.
    """
    found = problem(folder(tmp_path), release)
    assert (KernelTooOldError, 7) == (type(found), found.exit_code)
    assert (
        f"Linux {release} has no BPF ring buffer: it came with 5.8, so this host needs a newer "
        "kernel (Debian 11, Ubuntu 20.10, RHEL 8.5 or later have one)"
    ) == str(found)


@pytest.mark.parametrize("release", ["5.8.0", "5.10.0-28-amd64", "6.18.5", "10.0"])
def test_a_newer_kernel_is_fine(tmp_path: Path, release: str):
    """
    Releases are compared as numbers: 5.10 is newer than 5.8.
    """
    host.require(folder(tmp_path), release)


def test_a_kernel_without_types_is_named(tmp_path: Path):
    """
    A kernel without BTF is refused with what it would have to be built with, and exit code 8.
    """
    found = problem(folder(tmp_path, btf=False))
    assert (NoBtfError, 8) == (type(found), found.exit_code)
    assert (
        "this kernel does not describe its types (no /sys/kernel/btf/vmlinux): it needs one built "
        "with CONFIG_DEBUG_INFO_BTF=y, as distributions' kernels have been since 2021"
    ) == str(found)


def test_another_machine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """
    A processor that is not supported is named, with exit code 12.
    """
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="riscv64"))
    found = problem(folder(tmp_path))
    assert (HostError, 12, "riscv64 is not supported yet, only x86_64 is") == (
        type(found),
        found.exit_code,
        str(found),
    )


def test_a_missing_libbpf_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """
    Without libbpf the message says which package to install, with exit code 12.
    """

    def nothing(*_, **__):
        raise OSError("libbpf.so.1: cannot open shared object file")

    libbpf.library.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", nothing)
    found = problem(folder(tmp_path))
    monkeypatch.undo()
    libbpf.library.cache_clear()
    assert (
        "libbpf.so.1 is not on this host; install it (Debian, Ubuntu: apt install libbpf1; "
        "Fedora: dnf install libbpf)"
    ) == str(found)
    assert 12 == found.exit_code


def test_the_first_problem_is_the_most_important(tmp_path: Path):
    """
    Of several problems the one that a user can solve first is reported.
    """
    root = folder(tmp_path, capabilities=0, btf=False)
    assert NotRootError is type(problem(root, "5.4.0"))


def test_one_link_for_many_breakpoints_came_with_6_6():
    """
    From Linux 6.6 on all breakpoints of a program are one link.
    """
    releases = ("5.10.0", "6.5.13", "6.6.0", "6.18.5", "strange")
    assert [False, False, True, True, False] == [has_multi(r) for r in releases]


def test_our_own_capabilities_are_read():
    """
    The mask is that of this process, as the kernel shows it.
    """
    status = Path("/proc/self/status").read_text()
    assert f"CapEff:\t{host.capabilities():016x}\n" in status
