# SPDX-License-Identifier: Apache-2.0
"""
The programs of a plan, loaded for one target, and what they count; no hook is attached yet.

:class:`~scope_ebpf.kernel.observers.session.Session` attaches all hooks at once,
:class:`~scope_ebpf.kernel.observers.governed.GovernedSession` each event's when it is due.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scope_ebpf import events
from scope_ebpf.errors import HostError
from scope_ebpf.kernel import host
from scope_ebpf.kernel.attach.uprobes import Uprobes, has_multi
from scope_ebpf.kernel.bpf.maps import U64
from scope_ebpf.kernel.bpf.stats import program_stats
from scope_ebpf.kernel.observers.programs import Programs, build_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from numpy.typing import NDArray

    from scope_ebpf.attach.plan import Attachment, Plan
    from scope_ebpf.beam.elf.usdt import Argument
    from scope_ebpf.kernel.attach.uprobes import Attacher, Identity
    from scope_ebpf.kernel.bpf.stats import ProgramStats
    from scope_ebpf.kernel.observers.programs import Build

#: ``struct usdt_site`` there.
_USDT_SITE = np.dtype([("arguments", events.USDT_ARGUMENT, (events.USDT_ARGUMENTS,))])

#: Registers in struct pt_regs, in order (arch/x86/include/uapi/asm/ptrace.h).
_REGISTERS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8"),
    *("rax", "rcx", "rdx", "rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp"),
)
#: Offset of each register in it, bytes.
PT_REGS = {name: 8 * index for index, name in enumerate(_REGISTERS)}
#: The family whose object has the map of crashes.
_CRASHES = "process"
_FORMS = {
    "constant": events.ARGUMENT_CONSTANT,
    "register": events.ARGUMENT_REGISTER,
    "memory": events.ARGUMENT_MEMORY,
    "symbol": events.ARGUMENT_ABSOLUTE,
}


@dataclass(frozen=True, slots=True)
class Failure:
    """A hook that could not be attached: its ``attachment``, and the kernel's ``reason``."""

    attachment: Attachment
    reason: str


def set_registers(settings: NDArray[np.void], attachments: Iterable[Attachment]) -> None:
    """Fill the fields of *settings* that say in which registers programs find their arguments."""
    for attachment in attachments:
        for name, register in attachment.registers:
            settings[name] = PT_REGS[register]


def by_program(attachments: Iterable[Attachment]) -> dict[str, list[Attachment]]:
    """The *attachments* of each program, by its name."""
    found: dict[str, list[Attachment]] = {}
    for attachment in attachments:
        found.setdefault(attachment.program, []).append(attachment)
    return found


class LoadedPlan:
    """
    The programs of *plan*, from :meth:`load` to :meth:`close`, for the process of *identity*.

    *base* is the load address of its file, *settings* one ``events.SETTINGS``, *atoms* one
    ``events.TARGET`` with its atoms, *addresses* the value of each symbol that USDT
    arguments name. *multi* forces or forbids uprobe_multi links. HostError if the plan
    has a hook that is not in *names*.
    """

    def __init__(
        self,
        plan: Plan,
        identity: Identity,
        base: int,
        settings: NDArray[np.void],
        *,
        names: Collection[str],
        atoms: NDArray[np.void] | None = None,
        addresses: dict[str, int] | None = None,
        ring_bytes: int = 4096,
        multi: bool | None = None,
    ) -> None:
        for attachment in plan.attachments:
            if attachment.name not in names:
                raise HostError(f"{attachment.name} is not on the list of what we may attach to")
        self.plan = plan
        self._identity = identity
        self._base = base
        self._atoms = np.zeros((), events.TARGET) if atoms is None else atoms
        self._addresses = addresses or {}
        self._ring_bytes = ring_bytes
        self._multi = has_multi() if multi is None else multi
        self._settings = settings.copy()
        set_registers(self._settings, plan.attachments)
        self._settings["pidns_dev"], self._settings["pidns_ino"] = host.pid_namespace()
        self._programs: Programs | None = None

    def load(self, load: Callable[[Build], Programs] = Programs) -> None:
        """Let *load* give the programs; raises as ``build_of`` and :class:`Programs` do."""
        build = build_of(self.plan, self._settings, self._ring_bytes, multi=self._multi)
        self._programs = load(build)
        target = self._atoms.copy()
        target["base"], target["tgid"] = self._base, self._identity.pid
        self._programs.set_target(target)

    @property
    def programs(self) -> Programs:
        """The loaded programs."""
        assert self._programs is not None  # noqa: S101 - between load and close
        return self._programs

    def take_programs(self) -> Programs | None:
        """The programs, which are then the caller's to close; None if none are loaded."""
        programs, self._programs = self._programs, None
        return programs

    def close(self) -> None:
        """Give the programs back to the kernel."""
        programs = self.take_programs()
        if programs:
            programs.close()

    # Attaching -------------------------------------------------------------------------------

    def uprobes(self, attacher: Attacher) -> Uprobes:
        """An empty set of breakpoints in the target, held by *attacher*."""
        return Uprobes(self._identity, attacher, multi=self._multi)

    def ready(self, group: list[Attachment]) -> tuple[int, list[Attachment]]:
        """The descriptor of the program of *group*, which are attachments of one program."""
        return self.programs.objects[group[0].family].program_fd(group[0].program), group

    def describe(self, attachment: Attachment) -> None:
        """Set the locations of the arguments of a USDT site, if *attachment* is one with any."""
        if not attachment.arguments:
            return
        site = np.zeros((), _USDT_SITE)
        for row, argument in zip(site["arguments"], attachment.arguments, strict=False):
            self._describe_argument(row, argument)
        owner = self.programs.objects[attachment.family]
        try:
            owner.map("usdt_sites", U64, _USDT_SITE)[self._base + attachment.address] = site
        except HostError as error:
            raise HostError(
                f"cannot describe the arguments of {attachment.name}: {error}"
            ) from error

    def _describe_argument(self, row: np.void, argument: Argument) -> None:
        row["form"] = _FORMS[argument.form]
        row["size"] = argument.size
        row["is_signed"] = argument.is_signed
        row["value"] = argument.value
        if argument.register:
            row["reg"] = PT_REGS[argument.register]
        if argument.symbol:
            row["value"] += self._addresses[argument.symbol]

    # Counting --------------------------------------------------------------------------------

    def count(self, *, on: bool) -> None:
        """Count events from now on, or no longer: for all hooks at one moment."""
        self.programs.maps["gate"][0] = int(on)

    def by_kind(self, name: str) -> NDArray[Any]:
        """A map with a value per kind and class, shape ``(kinds, classes, cpus)``."""
        values = self.programs.maps[name].values()
        return values.reshape(len(events.KINDS), events.CLASSES, -1)

    def crashes(self) -> list[tuple[NDArray[np.void], int]]:
        """Each group of crashes, an ``events.CRASH``, and how many were seen of it."""
        owner = self.programs.objects.get(_CRASHES)
        if owner is None:
            return []
        rows = owner.map("crashes", events.CRASH, U64).items()
        return [(key, int(value[()])) for key, value in rows]

    def hits(self) -> dict[str, int]:
        """Number of runs of each program on the target, by its name."""
        values = self.programs.maps["hits"].values().sum(axis=1)
        return dict(zip(events.PROGRAMS, values.tolist(), strict=True))

    def stats(self) -> dict[str, ProgramStats]:
        """Runs and run time of each program since it was loaded, where the kernel measures them."""
        families = {a.program: a.family for a in self.plan.attachments}
        return {
            program: program_stats(self.programs.objects[family].program_fd(program))
            for program, family in families.items()
        }
