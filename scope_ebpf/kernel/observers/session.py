# SPDX-License-Identifier: Apache-2.0
"""
A plan attached to a target, from load to detach.

Nothing is pinned: programs, maps, links and breakpoints live as long as the file
descriptors of this process, and go with it by whatever door it leaves.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from scope_ebpf import events
from scope_ebpf.attach import allowlist
from scope_ebpf.errors import HostError, NothingToAttachError
from scope_ebpf.kernel import host
from scope_ebpf.kernel.attach.uprobes import Attacher, Uprobes, has_multi, wait_gone
from scope_ebpf.kernel.bpf.libbpf import check, library
from scope_ebpf.kernel.observers.program_pool import Programs, build_of
from scope_ebpf.kernel.observers.tracepoints import attach_tracepoint

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from numpy.typing import NDArray

    from scope_ebpf.attach.plan import Attachment, Plan
    from scope_ebpf.beam.elf.usdt import Argument
    from scope_ebpf.kernel.attach.uprobes import Identity
    from scope_ebpf.kernel.bpf.objects import BpfObject
    from scope_ebpf.kernel.bpf.ring import Ring
    from scope_ebpf.kernel.observers.program_pool import Build

#: Room for 260,000 records: a quarter of a second of the fastest stream a two-core VM can make.
DEFAULT_RING_BYTES = 16 << 20

#: Where a register lies in struct pt_regs, bytes (arch/x86/include/uapi/asm/ptrace.h).
_REGISTERS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8"),
    *("rax", "rcx", "rdx", "rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp"),
)
PT_REGS = {name: 8 * place for place, name in enumerate(_REGISTERS)}
_FORMS = {
    "constant": events.ARGUMENT_CONSTANT,
    "register": events.ARGUMENT_REGISTER,
    "memory": events.ARGUMENT_MEMORY,
    "symbol": events.ARGUMENT_ABSOLUTE,
}


@dataclass(frozen=True, slots=True)
class Failure:
    """A hook that the kernel would not attach."""

    attachment: Attachment
    reason: str


class Session:
    """
    Loads what *plan* needs, attaches it to the process of *identity*, and reads its maps.

    *base* is the load address of the target, *settings* one ``events.SETTINGS``
    with ``streamed`` set. *addresses* gives the value of symbols
    that USDT arguments name. *flavor* is the target's; the function probes are attached to an
    interpreter only. *names* are what may be attached to, if not the list of ``allowed``;
    *multi* forces or forbids uprobe_multi links; *attacher* may be one that others
    use too; *attaching* is called when all is loaded and no hook is in. Use it as a context
    manager; what cannot be attached is in :attr:`failures`, and if nothing can,
    NothingToAttachError.
    """

    def __init__(
        self,
        plan: Plan,
        identity: Identity,
        base: int,
        settings: NDArray[np.void],
        *,
        addresses: dict[str, int] | None = None,
        flavor: str = "jit",
        ring_bytes: int = DEFAULT_RING_BYTES,
        names: Collection[str] | None = None,
        multi: bool | None = None,
        attacher: Attacher | None = None,
        attaching: Callable[[], None] | None = None,
    ) -> None:
        names = allowlist.names(flavor) if names is None else names
        for attachment in plan.attachments:
            if attachment.name not in names:
                raise HostError(f"{attachment.name} is not on the list of what we may attach to")
        self.failures: list[Failure] = []
        self._plan = plan
        self._identity = identity
        self._base = base
        self._addresses = addresses or {}
        self._programs: Programs | None = None
        self._links: list[int] = []
        self._attaching = attaching
        self._multi = has_multi() if multi is None else multi
        self._attacher, self._own_attacher = attacher, attacher is None
        self._uprobes: Uprobes | None = None
        self._settings = settings.copy()
        for attachment in plan.attachments:
            for name, register in attachment.registers:
                self._settings[name] = PT_REGS[register]
        self._settings["pidns_dev"], self._settings["pidns_ino"] = host.pid_namespace()
        self._ring_bytes = ring_bytes if int(settings["streamed"]) else 4096

    def __enter__(self) -> Self:
        try:
            self._attacher = self._attacher or Attacher()  # starts while we load
            self._programs = self._load(
                build_of(self._plan, self._settings, self._ring_bytes, multi=self._multi)
            )
            self._programs.look_at(self._identity.pid, self._base)
            if self._attaching:
                self._attaching()
            self._attach()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self, build: Build) -> Programs:
        return Programs(build)

    @property
    def _loaded(self) -> Programs:
        assert self._programs is not None  # noqa: S101 - the block has begun
        return self._programs

    @property
    def _objects(self) -> dict[str, BpfObject]:
        return self._loaded.objects

    @property
    def _cpus(self) -> int:
        return self._loaded.cpus

    @property
    def ring(self) -> Ring:
        """Where records are, and where a spent allowance rings."""
        return self._loaded.ring

    def _attach(self) -> None:
        places: dict[str, list[Attachment]] = {}
        for attachment in self._plan.attachments:
            places.setdefault(attachment.program, []).append(attachment)
        ready: list[tuple[int, list[Attachment]]] = []
        for program, group in places.items():
            owner = self._objects[group[0].family]
            try:
                if group[0].tracepoint:
                    self._links.append(attach_tracepoint(owner.programs[program], group[0].name))
                    continue
                for attachment in group:
                    if attachment.arguments:
                        self._describe(attachment)
                ready.append((owner.program_fd(program), group))
            except (HostError, KeyError) as error:
                self.failures += [Failure(attachment, str(error)) for attachment in group]
        self._uprobes = self._make_uprobes()
        results = self._uprobes.attach(ready)
        for (_, group), failed in zip(ready, results, strict=True):
            if failed:
                self.failures += [Failure(attachment, str(failed)) for attachment in group]
        if not self._uprobes and not self._links:
            raise NothingToAttachError(f"no hook could be attached: {self.failures[0].reason}")

    def _make_uprobes(self) -> Uprobes:
        assert self._attacher is not None  # noqa: S101 - the block has begun
        return Uprobes(self._identity, self._attacher, multi=self._multi)

    def _describe(self, attachment: Attachment) -> None:
        """Tell the kernel side where the arguments of a USDT site lie."""
        site = np.zeros(events.USDT_ARGUMENTS, events.USDT_ARGUMENT)
        for place, argument in zip(site, attachment.arguments, strict=False):
            self._describe_argument(place, argument)
        key = ctypes.c_uint64(self._base + attachment.address)
        check(
            library().bpf_map_update_elem(
                self._objects[attachment.family].map_fd("usdt_sites"),
                ctypes.byref(key),
                site.tobytes(),
                0,
            ),
            f"cannot describe the arguments of {attachment.name}",
        )

    def _describe_argument(self, place: np.void, argument: Argument) -> None:
        place["form"] = _FORMS[argument.form]
        place["size"] = argument.size
        place["is_signed"] = argument.is_signed
        place["value"] = argument.value
        if argument.register:
            place["reg"] = PT_REGS[argument.register]
        if argument.symbol:
            place["value"] += self._addresses[argument.symbol]

    def map_fd(self, name: str) -> int:
        """The file descriptor of a map: one that all share, or one of the first object."""
        return self._loaded.map_fd(name)

    def _per_cpu(
        self, name: str, dtype: np.dtype[np.void], keys: Iterable[int]
    ) -> NDArray[np.void]:
        """A per-CPU array's values at *keys*, shape ``(keys, cpus)``."""
        wanted = list(keys)
        values = np.zeros((len(wanted), self._cpus), dtype)
        fd = self.map_fd(name)
        for row, number in zip(values, wanted, strict=True):
            key = ctypes.c_uint32(number)
            check(
                library().bpf_map_lookup_elem(fd, ctypes.byref(key), row.ctypes.data),
                f"cannot read the map {name}",
            )
        return values

    def _by_kind(self, name: str, dtype: np.dtype[np.void]) -> NDArray[np.void]:
        kinds = len(events.KINDS)
        return self._per_cpu(name, dtype, range(kinds * events.CLASSES)).reshape(
            kinds, events.CLASSES, self._cpus
        )

    def tallies(self) -> NDArray[np.void]:
        """Counts from the start, shape ``(kinds, classes, cpus)`` of ``events.COUNTERS``."""
        return self._by_kind("counters", events.COUNTERS)

    def durations(self) -> NDArray[np.void]:
        """Histograms from the start, shape ``(kinds, classes, cpus)`` of ``events.HISTOGRAM``."""
        return self._by_kind("histograms", events.HISTOGRAM)

    def hits(self) -> dict[str, int]:
        """How often each program ran on the target, by its name."""
        dtype = np.dtype([("hits", "<u8")])
        values = self._per_cpu("hits", dtype, range(len(events.PROGRAMS)))["hits"].sum(axis=1)
        return dict(zip(events.PROGRAMS, values.tolist(), strict=True))

    def count(self, *, on: bool) -> None:
        """Let events count from now on, or no longer: for all hooks at one moment."""
        key, value = ctypes.c_uint32(0), ctypes.c_uint64(on)
        check(
            library().bpf_map_update_elem(
                self.map_fd("gate"), ctypes.byref(key), ctypes.byref(value), 0
            ),
            "cannot open the gate",
        )

    def detach(self) -> None:
        """Take every hook out; the maps can still be read."""
        while self._links:
            library().bpf_link__destroy(self._links.pop())
        if self._uprobes:
            wait_gone(self._uprobes.detach())

    def close(self) -> None:
        """Detach, and give everything back to the kernel."""
        self.detach()
        if self._programs:
            self._programs.close()
            self._programs = None
        if self._attacher and self._own_attacher:
            self._attacher.close()
            self._attacher = None
