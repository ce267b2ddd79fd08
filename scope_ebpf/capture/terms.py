# SPDX-License-Identifier: Apache-2.0
"""Text of the terms and addresses of a capture, as the live stream has it, without the VM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.beam.processes.term_text import TermText
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from scope_ebpf.capture.reader import Contents


class CapturedTerms(TermText):
    """Text of terms of the target of a capture; names of its long calls (``columns.Called``)."""

    def __init__(self, contents: Contents) -> None:
        self._pids = contents.head.pids
        self._ports = contents.head.ports
        self._atoms = _Atoms(contents.atoms)
        self._processes = contents.processes
        self._addresses = contents.addresses
        self._marked = contents.marked

    def who(self, pids: list[int]) -> dict[int, str | None]:
        """The label of each process, where it was named."""
        known = self._processes
        return {pid: known[pid].who for pid in pids if pid in known}

    def marked(self, number: int) -> str | None:
        """The function with this id in its markers, ``M:F/A``, where it was named."""
        return self._marked.get(number)

    def function(self, address: int) -> str | None:
        """The function that an address of Erlang code is in, ``M:F/A``, where it was named."""
        return self._addresses.get(address)

    #: The same of a C function.
    symbol = function


class _Atoms:
    """Atoms by their text; an atom that was never looked up has none."""

    def __init__(self, texts: dict[int, str]) -> None:
        self._texts_of = texts

    def text(self, term: int) -> str:
        """The text of an atom term; ReadRefusedError for one that is not in the capture."""
        try:
            return self._texts_of[term]
        except KeyError:
            raise ReadRefusedError(f"atom {term:#x} is not in the capture") from None
