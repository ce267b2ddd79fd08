# SPDX-License-Identifier: Apache-2.0
"""
The errors that a user can act on, each with its exit code.

A message says what happened, why, and what to do now. ``cli.main`` catches
:class:`ScopeError` once and prints it without a traceback.
"""

from __future__ import annotations

#: The exit code of a mistake of the program, EX_SOFTWARE of sysexits.h: 1 is that of findings.
UNEXPECTED = 70


class ScopeError(Exception):
    """Something a user can act on. Subclasses carry the exit code."""

    exit_code = UNEXPECTED
    #: Lines of another program that explain it, such as a compiler's.
    details: tuple[str, ...] = ()


#: What a user can do if the kernel does not permit something.
PERMIT = (
    "run as root, or with CAP_BPF and CAP_PERFMON (before Linux 6.6 CAP_SYS_ADMIN); in a container "
    "also outside its seccomp filter (docker: --privileged)"
)


#: What a user can do if another user's process may not be read.
LOOK = "run as root, or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"


class UsageError(ScopeError):
    """The command line asks for something that does not exist."""

    exit_code = 2


class NoSuchProcessError(ScopeError):
    """There is no process of that pid, or no longer."""

    exit_code = 3
    #: What became of the process, for a sentence about it.
    what = "ended"


class NotABeamError(ScopeError):
    """The process is not a BEAM VM."""

    exit_code = 4


class NotRootError(ScopeError):
    """BPF needs privileges that this process does not have."""

    exit_code = 5


class NotPermittedError(ScopeError):
    """The target belongs to another user and may not be read."""

    exit_code = 6


class KernelTooOldError(ScopeError):
    """The kernel has no BPF ring buffer."""

    exit_code = 7


class NoBtfError(ScopeError):
    """The kernel does not describe its own types."""

    exit_code = 8


class TargetEndedError(ScopeError):
    """The target ended before or while it was observed."""

    exit_code = 9


class TargetChangedError(NoSuchProcessError):
    """The process is another program or another user's by now: *what* it did."""

    exit_code = TargetEndedError.exit_code

    def __init__(self, pid: int, what: str) -> None:
        super().__init__(f"process {pid} {what}; it is not looked at any further")
        self.what = what


class OutputError(ScopeError):
    """The output cannot be written: a full disk, a missing folder."""

    exit_code = 10


class NothingToAttachError(ScopeError):
    """No hook of what was asked for is there."""

    exit_code = 11


class HostError(ScopeError):
    """The host lacks a part that is needed, such as libbpf or the BPF objects."""

    exit_code = 12


class ReadRefusedError(ScopeError):
    """A reading of the VM's memory failed its check and is switched off."""

    exit_code = 13


class TooMuchError(ScopeError):
    """Reading a process takes more bytes or time than is allowed, and was given up."""

    exit_code = 14


class NoAnswerError(TooMuchError):
    """
    A process has memory that does not come, such as a page of a file whose server does not answer.

    It is not a ReadRefusedError: a caller that goes on with other readings would wait as long again
    for each.
    """


class CompilerMissingError(ScopeError):
    """The host cannot compile a user's probe: bcc or kernel headers are missing."""

    exit_code = 17


class ProbeError(ScopeError):
    """A user's probe does not compile, or is not allowed to do what it does."""

    exit_code = 18

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = tuple(details.splitlines())


class CaptureError(ScopeError):
    """A file is not a capture, or cannot be read."""

    exit_code = 20


class MissingPackageError(ScopeError):
    """An optional Python package is not installed."""

    exit_code = 21


class RefusedFileError(ScopeError):
    """
    A file that another user chose is of a kind that is not opened, or too large.

    *lasting* is whether another try would fail in the same way, because of the file.
    """

    exit_code = 22

    def __init__(self, message: str, *, lasting: bool = True) -> None:
        super().__init__(message)
        self.lasting = lasting
