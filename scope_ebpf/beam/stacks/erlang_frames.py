# SPDX-License-Identifier: Apache-2.0
"""
From a copied stack to functions: C frames, then the Erlang frames beneath them.

The JIT runs Erlang code on the process's own stack and changes to the thread's
when it calls C. The return address into Erlang code then lies at the very top of
the C stack, and the instructions that follow it say where the Erlang stack
pointer was put meanwhile: into the process (``c_p->stop``) or a register
(emit_enter_runtime and emit_leave_runtime, OTP-25.2.3 and 29.0.2
erts/emulator/beam/jit/x86/beam_asm.hpp).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf import events
from scope_ebpf.beam.stacks.frame_layout import has_frame_pointers
from scope_ebpf.beam.stacks.frames import RBP, RETURN, RSP
from scope_ebpf.beam.stacks.jit_frames import JitFrames
from scope_ebpf.beam.stacks.native_frames import follow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.code.tables import CodeMap, Mfa
    from scope_ebpf.beam.stacks.native import NativeCode, NativeName
    from scope_ebpf.beam.stacks.native_frames import NativeStack
    from scope_ebpf.beam.vm.target import Target

#: Erlang frames that are kept: from the innermost.
MAX_ERLANG = 512
_WORD = 8
#: Addresses that are kept with what is known of them.
_CACHE = 1 << 16
#: Stacks that are kept with their frames.
_MAX_SCANS = 1 << 12


class Stack(NamedTuple):
    """The frames of one sample, innermost first."""

    native: tuple[NativeName, ...]
    #: At most MAX_ERLANG frames; None where no process was on the scheduler.
    erlang: tuple[Mfa, ...] | None
    #: True if the Erlang frames reach down to the start of the process.
    complete: bool
    #: True if every C frame was found.
    unwound: bool


class Stacks:
    """Reads the stacks of samples, each an ``events.SAMPLE`` and the words behind it."""

    def __init__(self, target: Target, code: CodeMap, native: NativeCode) -> None:
        self._target = target
        self._code = code
        self._native = native
        self._i = target.layout.offset("Process", "i")
        self._frame_pointers = bool(has_frame_pointers(target))
        self._locations: dict[int, Mfa | None] = {}
        self._jit = JitFrames(target.memory)
        self._schedule = 0
        #: Words of stacks that were checked since code was loaded last.
        self._met: set[int] = set()
        self._foreign: set[int] = set()
        #: Frames by the words of a stack that lie in code, without frame pointers.
        self._scans: dict[bytes, list[Mfa]] = {}

    def refresh(self) -> None:
        """Read again which code and libraries there are; then drop what is cached of addresses."""
        before = self._code.generation
        self._code.refresh()
        self._native.refresh()
        if self._code.generation != before:
            self._native.forget_names()
            self._jit.forget()
            self._locations.clear()
            self._met.clear()
            self._scans.clear()

    def _meet(self, head: np.void, words: NDArray[np.uint64]) -> None:
        """
        Read the VM's tables again if a stack leads into code that is in none of them.

        The JIT's own code never is: an address is looked up once.
        """
        candidates = words[words & np.uint64(3) == 0]
        candidates = candidates[self._native.jit_many(candidates)]
        news = set(candidates.tolist()) - self._met
        if len(self._met) >= _CACHE:
            self._met.clear()
        self._met |= news
        ours = {int(head["ip"]), int(head["i"])}
        ours |= {word for word in news if self._jit.is_return(word)}
        unknown = {address for address in ours - self._foreign if self._native.jit(address)}
        if not unknown:
            return
        addresses = np.array(sorted(unknown), np.uint64)
        strange = addresses[~self._code.inside(addresses)].tolist()
        if strange:
            self.refresh()
            if len(self._foreign) >= _CACHE:
                self._foreign.clear()
            self._foreign.update(strange)

    def read(self, record: bytes) -> Stack:
        """Read one sample."""
        head = np.frombuffer(record, events.SAMPLE, 1)[0]
        first = events.SAMPLE.itemsize
        erlang = np.frombuffer(record, np.uint64, int(head["erlang_bytes"]) // _WORD, first)
        native = record[first + int(head["erlang_bytes"]) :][: int(head["native_bytes"])]
        self._meet(head, erlang)
        walk = follow(self._native, head, native)
        names = tuple(self._native.name(address) for address in walk.addresses)
        if not head["process"]:
            self._learn(walk)
            return Stack(names, None, complete=False, unwound=walk.whole)
        # Where the JIT keeps frame pointers a process has one as soon as it was put down.
        self._frame_pointers |= bool(head["stop"] <= head["frame_pointer"] < head["hend"])
        frames, complete = self._erlang(head, erlang, walk)
        return Stack(names, frames, complete, walk.whole)

    def waiting(self, record: bytes) -> Stack:
        """Read the sample of a process that waited: its stack is as it was put down."""
        head = np.frombuffer(record, events.SAMPLE, 1)[0]
        size = int(head["erlang_bytes"]) // _WORD
        words = np.frombuffer(record, np.uint64, size, events.SAMPLE.itemsize)
        self._frame_pointers |= bool(head["stop"] <= head["frame_pointer"] < head["hend"])
        self._meet(head, words)
        inner = self._location(int(head["i"])) or self._function(head)
        frames = [inner] if inner else []
        if not size:
            return Stack((), tuple(frames), complete=False, unwound=True)
        frames += self._scan(words, int(head["erlang_from"]))
        end = int(head["erlang_from"]) + int(head["erlang_bytes"])
        complete = end == int(head["hend"]) and self._native.jit(int(head["bottom"]))
        return Stack((), tuple(frames[:MAX_ERLANG]), complete, unwound=True)

    def location(self, address: int) -> Mfa | None:
        """Name the function and line of an address in Erlang code."""
        return self._location(address)

    def _learn(self, walk: NativeStack) -> None:
        """Store where process_main calls erts_schedule: no process runs only within that call."""
        if walk.whole and walk.addresses and self._native.jit(walk.registers[RETURN]):
            self._schedule = walk.registers[RETURN]

    def _erlang(
        self, head: np.void, words: NDArray[np.uint64], walk: NativeStack
    ) -> tuple[tuple[Mfa, ...], bool]:
        """
        Find the Erlang frames; true if they are all there.

        An interpreter keeps its stack and instruction pointers in registers of its own. The process
        struct has them as they were when it last left a scheduler; only the native function is
        current.
        """
        if self._target.flavor == "emu":
            native = self._function(head) if head["nif"] else None
            return (native,) if native else (), False
        address = walk.registers[RETURN]
        jit = self._native.jit(address)
        on_stack = int(head["heap"]) <= walk.registers[RSP] <= int(head["hend"])
        if jit and on_stack:
            top: int | None = walk.registers[RSP]
        else:
            top = self._put_down(head, walk) if jit else int(head["stop"])
        # Where C code was called the address is that behind the call.
        inner = [self._location(address - (1 if walk.addresses else 0))] if jit else []
        if jit and self._jit.resumes(address, self._schedule, self._i):
            inner = [self._location(int(head["i"]))]  # it is being scheduled, in or out
        if head["nif"] or (not jit and walk.whole):
            inner = [self._function(head)]  # a native function, or a dirty scheduler's work
        found = [frame for frame in inner if frame is not None]
        start = (top - int(head["erlang_from"])) // _WORD if top is not None else -1
        if not len(words) or not 0 <= start <= len(words):
            return tuple(found), False
        if jit and self._code.bounds(address):
            start += self._skip_frame(address, words[start:])
        frames = found + self._scan(words[start:], int(head["erlang_from"]) + start * _WORD)
        end = int(head["erlang_from"]) + int(head["erlang_bytes"])
        complete = end == int(head["hend"]) and self._native.jit(int(head["bottom"]))
        return tuple(frames[:MAX_ERLANG]), complete

    def _function(self, head: np.void) -> Mfa | None:
        """Return the native function that a process runs, or else its last Erlang function."""
        function = self._code.mfa(int(head["current"])) if head["current"] else None
        return function or self._location(int(head["i"]))

    def _scan(self, words: NDArray[np.uint64], at: int) -> list[Mfa]:
        """Find the frames in the words of a stack that begins at *at*."""
        candidates = np.flatnonzero(words & np.uint64(3) == 0)
        candidates = candidates[self._code.inside(words[candidates])]
        if self._frame_pointers:
            return self._frames(words, at, candidates.tolist())
        # A process that repeats its work has the same words in its stack.
        key = words[candidates].tobytes()
        if key not in self._scans:
            if len(self._scans) >= _MAX_SCANS:
                self._scans.clear()
            self._scans[key] = self._frames(words, at, candidates.tolist())
        return self._scans[key]

    def _frames(self, words: NDArray[np.uint64], at: int, slots: list[int]) -> list[Mfa]:
        frames = []
        for slot in slots:
            address = int(words[slot])
            if not self._jit.is_return(address):
                continue
            if self._frame_pointers and slot and not self._linked(words, slot, at):
                continue
            frame = self._location(address - 1)
            if frame is not None:
                frames.append(frame)
        return frames

    def _linked(self, words: NDArray[np.uint64], slot: int, at: int) -> bool:
        """Whether a return address has a frame pointer beneath it, or was only just put there."""
        pointer = int(words[slot - 1]) if slot else 0
        end = at + len(words) * _WORD
        return pointer == 0 or (pointer % _WORD == 0 and at + slot * _WORD < pointer < end)

    def _put_down(self, head: np.void, walk: NativeStack) -> int | None:
        """Return the Erlang stack pointer at the call of C code; None if it was clobbered."""
        if self._frame_pointers or self._jit.put_down(walk.registers[RETURN]) == "stop":
            return int(head["stop"])
        return walk.registers.get(RBP)

    def _skip_frame(self, address: int, words: NDArray[np.uint64]) -> int:
        """
        Return how many words of the stack belong to the function at *address*.

        Until it has filled them there may be return addresses of others in them, from before.
        """
        bounds = None if self._frame_pointers else self._code.bounds(address)
        if bounds is None:
            return 0
        for size in self._jit.sizes(address, *bounds):
            slot = size // _WORD
            if slot < len(words) and self._is_frame(int(words[slot])):
                return slot
        return 0

    def _is_frame(self, address: int) -> bool:
        """Whether a word of the stack is somewhere to return to; the last one is no function."""
        return address & 3 == 0 and self._native.jit(address) and self._jit.is_return(address)

    def _location(self, address: int) -> Mfa | None:
        if address not in self._locations:
            if len(self._locations) >= _CACHE:
                self._locations.clear()
            self._locations[address] = self._code.location(address)
        return self._locations[address]
