# SPDX-License-Identifier: Apache-2.0
"""Puts names on the samples of the kernel while the target runs, and makes a profile of them."""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.beam.code.natives import Natives
from scope_ebpf.beam.code.tables import CodeMap
from scope_ebpf.beam.memory.terms import PortCodec, is_pid, is_port
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.beam.processes.labels import Label, Labels
from scope_ebpf.beam.stacks.erlang_frames import Stacks
from scope_ebpf.beam.stacks.native import NativeCode
from scope_ebpf.beam.vm.threads import role_of
from scope_ebpf.kernel.kallsyms import KernelSymbols
from scope_ebpf.results.profile import Frame, Sample
from scope_ebpf.runs.ended import EndedProcesses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from scope_ebpf.beam.code.tables import Mfa
    from scope_ebpf.beam.stacks.erlang_frames import Stack
    from scope_ebpf.beam.stacks.native import NativeName
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.results.profile import Profile

#: Names of threads that run no process, by their role.
_THREADS = {
    "normal": "(scheduler)",
    "dirty_cpu": "(dirty CPU scheduler)",
    "dirty_io": "(dirty I/O scheduler)",
    "poll": "(poll thread)",
    "aux": "(aux thread)",
}
#: The function in which the thread of a dirty scheduler runs processes.
_DIRTY_MAIN = "erts_dirty_process_main"
#: Wait reasons in the order of ``events.WAIT_REASONS``.
_WAITS = (
    "[waits for a message or a timeout]",
    "[waits in the run queue]",
    "[suspended: a busy port or node, or another process]",
    "[on a dirty scheduler, or waiting for one]",
)
#: Kinds of outermost frames: ``name`` puts processes of one name or module together, ``route`` what
#: processes work on.
OWNERS = ("name", "pid", "thread", "route")


@lru_cache(1 << 16)
def _erlang_frame(mfa: Mfa) -> Frame:
    return Frame(str(mfa), "erlang", mfa.file, mfa.line)


@lru_cache(1 << 16)
def _native_frame(name: NativeName) -> Frame:
    return Frame(name.name, "native", name.file)


def wait_frame(reason: int) -> Frame:
    """The innermost frame of a sample of waiting, by its wait *reason*."""
    known = reason < len(_WAITS)
    return Frame(_WAITS[reason] if known else "[waits]", "wait")


class Symbolizer:
    """
    Puts names on samples of one target and adds them to a profile.

    *by* is the outermost frame, one of :data:`OWNERS`; *works* names what processes work on, by the
    number in a sample. An interpreter's missing Erlang frames are noted in the profile.
    """

    def __init__(
        self,
        target: Target,
        profile: Profile,
        by: str = "name",
        works: Callable[[int], str] | None = None,
    ) -> None:
        atoms = Atoms(target)
        code = CodeMap(target, atoms)
        self._target = target
        self._profile = profile
        self._by, self._works = by, works
        native = NativeCode(target, Natives(target, atoms))
        self._stacks = Stacks(target, code, native)
        self._labels = Labels(target, atoms, code)
        self._ports = PortCodec.of(target)
        self._ended = EndedProcesses()
        self._roles: dict[int, tuple[str, str]] = {}
        #: Samples that came when the target had ended.
        self.undecoded = 0
        #: The address in Erlang code and the wait reason of each sample of waiting.
        self.sites: list[tuple[int, int]] = []
        if target.flavor == "emu":
            profile.notes.append(
                "the interpreter keeps its stack to itself: processes and native code are shown, "
                "Erlang functions are not"
            )

    def refresh(self) -> None:
        """Read the code that was loaded and the libraries that were mapped since."""
        self._stacks.refresh()

    def take(self, records: Iterable[bytes]) -> None:
        """
        Add samples to the profile, each an ``events.SAMPLE`` and its words.

        Raises NoSuchProcessError once the target has ended; then :attr:`undecoded` counts those
        that came too late.
        """
        batch = [(record, np.frombuffer(record, events.SAMPLE, 1)[0]) for record in records]
        self.undecoded += len(batch)
        pids = {int(head["pid"]) for _, head in batch}
        labels = self._labels.labels(pid for pid in pids if is_pid(pid))
        for record, head in batch:
            self._add(record, head, labels)
            self.undecoded -= 1

    def _add(self, record: bytes, head: np.void, labels: dict[int, Label]) -> None:
        waits = self._profile.kind == "off-cpu"
        stack = self._stacks.waiting(record) if waits else self._stacks.read(record)
        quality = self._profile.quality
        quality.samples += 1
        quality.with_process += stack.erlang is not None
        quality.complete += stack.complete
        quality.unwound += stack.unwound
        quality.failed += bool(head["failed"])
        role, thread = ("", "waiting") if waits else self._thread(int(head["tid"]))
        frames = (self._owner(head, stack, labels, role, thread), *self._frames(head, stack))
        if waits:
            self.sites.append((int(head["i"]), int(head["reason"])))
            frames = (*frames, wait_frame(int(head["reason"])))
        self._profile.samples.append(
            Sample(int(head["time_ns"]), thread, frames, int(head["weight_ns"]))
        )

    def code_frame(self, address: int) -> Frame:
        """The frame of an address in Erlang code."""
        found = self._stacks.location(address)
        if found is None:
            return Frame("[runtime]", "native")
        return Frame(str(found), "erlang", found.file, found.line)

    def _frames(self, head: np.void, stack: Stack) -> list[Frame]:
        frames = [_erlang_frame(mfa) for mfa in reversed(stack.erlang or ())]
        native = [_native_frame(name) for name in reversed(stack.native)]
        if stack.erlang is not None:
            # The frames below belong to the thread of a dirty scheduler, not to the process.
            main = [index for index, frame in enumerate(native) if frame.name == _DIRTY_MAIN]
            native = native[main[0] + 1 :] if main else native
        frames += native
        kernel = head["kernel"][: int(head["kernel_frames"])].tolist()
        frames += [
            Frame(self._kernel.name(address), "kernel", "[kernel]") for address in reversed(kernel)
        ]
        return frames

    def _owner(
        self, head: np.void, stack: Stack, labels: dict[int, Label], role: str, thread: str
    ) -> Frame:
        """The outermost frame: the process, port or thread that ran."""
        if self._by == "thread":
            return Frame(thread, "thread")
        label = labels.get(int(head["pid"]))
        if stack.erlang is None or label is None:
            if is_port(int(head["port"])):
                port = self._ports.text(int(head["port"]))
                return Frame(port if self._by == "pid" else "(port)", "thread")
            return Frame(_THREADS.get(role, f"({role})"), "thread")
        if self._works:
            return Frame(self._works(int(head["work"])), "process")
        if self._by == "pid":
            return Frame(f"{label.pid} {label.who or ''}".rstrip(), "process")
        return Frame(label.who or self._ended.name(int(head["pid"]), stack), "process")

    def _thread(self, tid: int) -> tuple[str, str]:
        """The role and name of a thread; ``thread NAME`` for one that the VM did not name."""
        if tid not in self._roles:
            comm = Path(f"/proc/{self._target.pid}/task/{tid}/comm")
            try:
                name = comm.read_bytes().decode("utf-8", "replace").strip()
            except OSError:
                return "other thread", "ended"
            role = role_of(name)
            text = name if role is None else f"{role[0].replace('_', ' ')} {role[1]}"
            self._roles[tid] = (role[0] if role else f"thread {name}", text)
        return self._roles[tid]

    @cached_property
    def _kernel(self) -> KernelSymbols:
        return KernelSymbols()
