# SPDX-License-Identifier: Apache-2.0
"""
Stack layout from the JIT's own instructions (x86-64).

The code has no frame information. But each function takes its frame back before
it returns, so following its instructions to a ``ret`` shows how large the frame
is; and where C code is called, what comes behind the call shows where the Erlang
stack pointer went (emit_leave_runtime, OTP-25.2.3 and 29.0.2
erts/emulator/beam/jit/x86/beam_asm.hpp). A confined process decodes it (``sandbox.jit_code``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scope_ebpf.errors import ReadRefusedError, RefusedFileError
from scope_ebpf.sandbox import answers
from scope_ebpf.sandbox.client import Parser, UnreadableFileError

if TYPE_CHECKING:
    from scope_ebpf.beam.memory.process_memory import Memory

#: Bytes behind a return address in which the JIT goes back to the Erlang stack. The longest path,
#: from erts_schedule to the next process, has some 200.
_LEAVE = 512
#: Bytes of process_main before and behind its call of erts_schedule: less than this.
_MAIN = 2048
#: Bytes of a function that are read.
_MAX_FUNCTION = 1 << 18
#: Sizes of one frame that are considered, and the number of paths that are followed to find them.
_MAX_SIZES = 4096
#: Seconds of CPU that decoding may take at once.
_DECODING = 5.0
#: Addresses that are kept with what is known of them.
_CACHE = 1 << 16


class JitFrames:
    """Reads code of one VM; what it knows of an address holds until :meth:`forget`."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._decoder = Parser.of_nothing("the code of the JIT", _DECODING)
        self._returns: dict[int, bool] = {}
        self._puts: dict[int, str] = {}
        self._resumes: dict[int, bool] = {}
        self._sizes: dict[int, tuple[int, ...]] = {}

    def forget(self) -> None:
        """Forget what is known, since code has come or gone."""
        self._returns.clear()
        self._puts.clear()
        self._resumes.clear()
        self._sizes.clear()

    def is_return(self, address: int) -> bool:
        """True if the code before an address is a call, so that a function may return there."""
        if address not in self._returns:
            _bound(self._returns)
            try:
                code = self._memory.read(address - 7, 7)
            except ReadRefusedError:
                return False
            # e8 rel32; ff /2 with a register, or with memory and 0, 1 or 4 bytes of displacement.
            self._returns[address] = code[2] == 0xE8 or any(
                code[index] == 0xFF and code[index + 1] >> 3 & 7 == 2 for index in (0, 1, 3, 4, 5)
            )
        return self._returns[address]

    def put_down(self, address: int) -> str:
        """Return where the Erlang stack pointer is while C code runs that returns to *address*."""
        if address not in self._puts:
            _bound(self._puts)
            self._puts[address] = self._find_leave(address)
        return self._puts[address]

    def resumes(self, address: int, schedule: int, field: int) -> bool:
        """
        Return whether code at *address* schedules a process whose resume address is right.

        *schedule* is the address behind the call of erts_schedule, 0 if it is not known; *field*
        the offset of the resume address in the process. Until the JIT has stored it there it is
        that of the time before (emit_process_main, OTP-27.3.4
        erts/emulator/beam/jit/x86/process_main.cpp).
        """
        if not schedule or abs(address - schedule) >= _MAIN:
            return False
        if address not in self._resumes:
            _bound(self._resumes)
            start = schedule - _MAIN
            try:
                code = self._memory.read(start, 2 * _MAIN).hex()
                self._resumes[address] = self._decoder.ask(
                    "resumes", answers.flag, code, start, address, schedule, field
                )
            except (ReadRefusedError, RefusedFileError, UnreadableFileError):
                self._resumes[address] = False
        return self._resumes[address]

    def sizes(self, address: int, start: int, end: int) -> tuple[int, ...]:
        """
        Return how far above the stack pointer the return address may lie, in bytes.

        *address* is about to run, in the function from *start* to *end*. The likeliest first;
        empty where no path to a return was found.
        """
        if address not in self._sizes:
            _bound(self._sizes)
            try:
                code = self._memory.read(start, min(end - start, _MAX_FUNCTION))
                self._sizes[address] = self._follow(code, start, address)
            except (ReadRefusedError, RefusedFileError, UnreadableFileError):
                self._sizes[address] = ()
        return self._sizes[address]

    def _find_leave(self, address: int) -> str:
        try:
            code = self._memory.read(address, _LEAVE)
            return "rbp" if self._decoder.ask("leave", answers.flag, code.hex()) else "stop"
        except (ReadRefusedError, RefusedFileError, UnreadableFileError):
            return "stop"

    def _follow(self, code: bytes, start: int, address: int) -> tuple[int, ...]:
        found = self._decoder.ask("sizes", _sizes, code.hex(), start, address)
        return tuple(found)


def _sizes(found: Any) -> list[int]:
    return answers.many(found, lambda size: answers.integer(size, _MAX_FUNCTION), _MAX_SIZES)


def _bound(known: dict[int, Any]) -> None:
    if len(known) >= _CACHE:
        known.clear()
