# SPDX-License-Identifier: Apache-2.0
"""
Names of a process: registered name, initial call, behaviour, label.

The facts of proc_lib are in the process's dictionary, which is found by the
same hash that the VM uses (erl_process_dict.c, the same from OTP-25.2.3 to
27.3.4.1: an atom hashes to its index).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from scope_ebpf.arrays import distinct, grouped, taken
from scope_ebpf.beam.code.tables import CACHE, Mfa
from scope_ebpf.beam.memory.process_memory import column
from scope_ebpf.beam.memory.terms import (
    ATOM_MASK,
    ATOM_TAG,
    BOXED,
    LIST,
    POINTER_MASK,
    PRIMARY_MASK,
)
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scope_ebpf.beam.code.tables import CodeMap
    from scope_ebpf.beam.processes.atoms import Atoms
    from scope_ebpf.beam.vm.target import Target

_Found = TypeVar("_Found")
_WORD = 8
#: ProcDict: mask, slots in use, array size, split, number of elements (32-bit but the last).
_MASK, _USED, _SLOTS = 0, 4, 24
#: Keys in one slot of a dictionary that are read.
_COLLISIONS = 16
_PAIR, _TRIPLE = 2 << 6, 3 << 6
#: Columns that say what a process is without a dictionary; kinds of them that are put together
#: before each process is looked at, and how many are worth it.
_OF_BARE, _COMMON, _WORTH = ("module", "function", "arity", "current", "pc"), 8, 64

#: Behaviour of a process by the function in which it waits.
LOOPS = {
    "gen_server": "gen_server",
    "gen_statem": "gen_statem",
    "gen_event": "gen_event",
    "gen_fsm": "gen_fsm",
    "gen_server2": "gen_server2",
    "p1_server": "p1_server",
}
#: Behaviour of a module by its -behaviour attribute: that of the module which runs it.
DECLARED = {
    **{name: name for name in LOOPS},
    "Elixir.GenServer": "gen_server",
    "Elixir.GenStateMachine": "gen_statem",
    "Elixir.GenStage": "gen_server",
}
#: Behaviours whose initial call names the behaviour itself (proc_lib:trans_init/3).
_OWN_CALL = {("supervisor", 1), ("supervisor_bridge", 1)}

#: ``behaviour`` and the list after it in the module's attributes (external term format).
_BEHAVIOUR = re.compile(rb"(?:[dv]\0|[sw])[\x08\x09]behaviou?rl\0\0\0([\x01-\x10])")
_ATOM = re.compile(rb"(?:[dv]\0(?P<long>.)|[sw](?P<short>.))", re.DOTALL)


class Identity(NamedTuple):
    """Names of one process; None where it has none, or it could not be read."""

    initial_call: Mfa | None
    behaviour: str | None
    module: str | None


class Names:
    """Puts names on rows of the process table that have the columns IDENTITY."""

    def __init__(self, target: Target, atoms: Atoms, code: CodeMap) -> None:
        self._memory = target.memory
        self._layout = target.layout
        self._atoms = atoms
        self._code = code
        self._keys: dict[str, tuple[int | None, int]] = {}
        self._behaviours: dict[str, str | None] = {}
        #: Modules that were not there, or could not be read, in one generation of the code.
        self._missing: tuple[int, set[str]] = (0, set())

    def registered(self, rows: NDArray[np.void]) -> list[str | None]:
        """Read the registered name of each process, length ``n``."""
        names: list[str | None] = [None] * len(rows)
        have = np.flatnonzero(rows["registered"])
        layout = self._layout
        entries, read = self._memory.gather(rows["registered"][have], layout.size("RegProc"))
        owner = column(entries, layout.offset("RegProc", "p"), np.uint64)
        terms = column(entries, layout.offset("RegProc", "name"), np.uint64)
        # The entry holds the process that it names; one that is being freed does not.
        read &= owner == rows["pointer"][have]
        texts = self._texts(terms[read])
        for row, term in zip(have[read].tolist(), terms[read].tolist(), strict=True):
            names[row] = texts.get(term)
        return names

    def dictionary(self, rows: NDArray[np.void], key: str) -> NDArray[np.uint64]:
        """Look up an atom in each process's dictionary: terms, shape ``(n,)``, 0 for none."""
        values = np.zeros(len(rows), np.uint64)
        term = self._key(key)
        have = np.flatnonzero(rows["dictionary"])
        if term is None or not len(have):
            return values
        tables = rows["dictionary"][have]
        heads, read = self._memory.gather(tables, 2 * _WORD)
        mask, used = column(heads, _MASK, np.uint32), column(heads, _USED, np.uint32)
        index = np.uint32(term >> 6)
        slot = np.where(index & mask >= used, index & mask >> np.uint32(1), index & mask)
        read &= slot < used
        have, tables = have[read], tables[read]
        offsets: NDArray[np.uint64] = slot[read].astype(np.uint64) * np.uint64(_WORD)
        words, _ = self._memory.gather(tables + np.uint64(_SLOTS) + offsets, _WORD)
        self._search(column(words, 0, np.uint64), term, have, values)
        return values

    def identities(self, rows: NDArray[np.void]) -> list[Identity]:
        """Return initial call, behaviour and callback module of each process, length ``n``."""
        kinds, inverse = self.kinds(rows)
        return _spread([identity for identity, _ in kinds], inverse)

    def kinds(
        self, rows: NDArray[np.void]
    ) -> tuple[list[tuple[Identity, Mfa | None]], NDArray[np.int64]]:
        """
        Return what kinds of processes there are, and of which kind each is, shape ``(n,)``.

        Most share their identity and the function in which they are with many others.
        """
        index, like = _alike(rows)
        found, kind = self._kinds(taken(rows, index))
        return found, kind[like]

    def _kinds(
        self, rows: NDArray[np.void]
    ) -> tuple[list[tuple[Identity, Mfa | None]], NDArray[np.int64]]:
        """The same, looking at each process."""
        calls, called = self._initial_calls(rows)
        nows, at = self.functions(rows)
        pairs = called * max(1, len(nows)) + at
        unique, _, inverse = grouped(pairs)
        found = []
        for pair in unique.tolist():
            call, now = calls[pair // len(nows)], nows[pair % len(nows)]
            found.append((Identity(call, *self._behaviour(call, now)), now))
        return found, inverse

    def initial_calls(self, rows: NDArray[np.void]) -> list[Mfa | None]:
        """Return the initial call of each process; behind proc_lib, what it was asked to run."""
        return _spread(*self._initial_calls(rows))

    def _initial_calls(self, rows: NDArray[np.void]) -> tuple[list[Mfa | None], NDArray[np.int64]]:
        """The initial calls of processes, and which of them each process has."""
        values = self.dictionary(rows, "$initial_call")
        module, function, arity = (rows[name].copy() for name in ("module", "function", "arity"))
        boxed = np.flatnonzero(values & np.uint64(PRIMARY_MASK) == BOXED)
        triples, read = self._memory.gather(values[boxed] & np.uint64(POINTER_MASK), 4 * _WORD)
        head, *terms = (column(triples, _WORD * index, np.uint64) for index in range(4))
        read &= (head == _TRIPLE) & (terms[2] & np.uint64(0xF) == 0xF)
        for part, source in ((module, terms[0]), (function, terms[1])):
            read &= source & np.uint64(ATOM_MASK) == ATOM_TAG
            part[boxed[read]] = source[read]
        arity[boxed[read]] = terms[2][read] >> np.uint64(4)
        names = {0: None} | self._texts(np.concatenate([module, function]))
        triple = np.stack([module, function, arity], axis=1)
        # One number for each triple, where atoms and arity leave room for it, sorts fast.
        key = module << np.uint64(28) ^ function << np.uint64(2) ^ arity
        _, first, inverse = grouped(key)
        if (triple[first][inverse] != triple).any():
            _, first, inverse = np.unique(triple, axis=0, return_index=True, return_inverse=True)
        calls = [
            Mfa(m_text, f_text, a)
            if (m_text := names.get(m)) is not None
            and (f_text := names.get(f)) is not None
            and a < 256
            else None
            for m, f, a in triple[first].tolist()
        ]
        return calls, inverse

    def current_functions(self, rows: NDArray[np.void]) -> list[Mfa | None]:
        """Return the function each process is in, or was in when it last ran."""
        return _spread(*self.functions(rows))

    def in_functions(
        self, rows: NDArray[np.void], wanted: Callable[[Mfa], bool]
    ) -> NDArray[np.bool_]:
        """Which processes are in a function that is *wanted*, or were when they last ran."""
        found, inverse = self.functions(rows)
        mask = np.array([one is not None and wanted(one) for one in found], np.bool_)
        return mask[inverse]

    def functions(self, rows: NDArray[np.void]) -> tuple[list[Mfa | None], NDArray[np.int64]]:
        """Return the functions in which processes are, and in which of them each is, ``(n,)``."""
        # ``current``, where the VM has set it, or else the code's own address.
        exact = rows["current"] != 0
        where = np.where(exact, rows["current"], rows["pc"])
        addresses, first, inverse = grouped(where)
        found = [
            self._code.mfa(address) if known else self._code.function(address)
            for address, known in zip(addresses.tolist(), exact[first].tolist(), strict=True)
        ]
        return found, inverse

    def _key(self, name: str) -> int | None:
        term, searched = self._keys.get(name, (None, 0))
        if term is None:
            # An atom that is not there yet may come, among the new ones.
            total = len(self._atoms)
            if total > searched:
                term = self._atoms.term(name, searched)
                self._keys[name] = (term, total)
        return term

    def _texts(self, terms: NDArray[np.uint64]) -> dict[int, str]:
        unique = distinct(terms[terms & np.uint64(ATOM_MASK) == ATOM_TAG])
        texts = self._atoms.texts((unique >> np.uint64(6)).tolist())
        return {index << 6 | ATOM_TAG: text for index, text in texts.items() if text is not None}

    def _search(
        self,
        terms: NDArray[np.uint64],
        key: int,
        rows: NDArray[np.int64],
        values: NDArray[np.uint64],
    ) -> None:
        """Look for *key* in what a slot holds: a pair, or a list of pairs."""
        for _ in range(_COLLISIONS):
            cells = np.flatnonzero(terms & np.uint64(PRIMARY_MASK) == LIST)
            words, _ = self._memory.gather(terms[cells] & np.uint64(POINTER_MASK), 2 * _WORD)
            pairs, rest = terms.copy(), np.zeros(len(terms), np.uint64)
            pairs[cells], rest[cells] = column(words, 0, np.uint64), column(words, _WORD, np.uint64)
            boxed = np.flatnonzero(pairs & np.uint64(PRIMARY_MASK) == BOXED)
            words, _ = self._memory.gather(pairs[boxed] & np.uint64(POINTER_MASK), 3 * _WORD)
            head, name, value = (column(words, _WORD * index, np.uint64) for index in range(3))
            match = (head == _PAIR) & (name == key)
            values[rows[boxed[match]]] = value[match]
            more = rest != 0
            terms, rows = rest[more], rows[more]
            if not len(rows):
                return

    def _behaviour(self, call: Mfa | None, now: Mfa | None) -> tuple[str | None, str | None]:
        """Return behaviour and callback module, from where a process began and where it waits."""
        if call is None:
            return None, None
        if (call.module, call.arity) in _OWN_CALL:
            return call.module, call.function
        if call.module == "gen_event":
            return "gen_event", None
        if now is not None and now.module in LOOPS:
            return LOOPS[now.module], call.module
        if (call.function, call.arity) == ("init", 1):
            declared = self.declared(call.module)
            return declared, call.module if declared else None
        return None, None

    def declared(self, module: str) -> str | None:
        """Return the behaviour that a loaded module declares, if it is a known one."""
        generation, missing = self._missing
        if generation != self._code.generation or len(missing) > CACHE:
            missing = set()
            self._missing = self._code.generation, missing
        if module not in self._behaviours and module not in missing:
            try:
                self._behaviours[module] = _declared(self._code.attributes(module))
            except ReadRefusedError:
                missing.add(module)  # until code is loaded
        return self._behaviours.get(module)


def _alike(rows: NDArray[np.void]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """
    Processes that stand for all, by their indices, and which of those each process is like.

    In a large table most have no dictionary, and begin and wait in few functions.
    """
    columns = [rows[name].copy() for name in _OF_BARE]
    like = np.arange(len(rows))
    left = np.flatnonzero(rows["dictionary"] == 0)
    for _ in range(_COMMON):
        if len(left) < _WORTH:
            break
        same = np.ones(len(left), np.bool_)
        for values in columns:
            same &= values[left] == values[left[0]]
        like[left[same]] = left[0]
        left = left[~same]
    stands = like == np.arange(len(rows))
    return np.flatnonzero(stands), (np.cumsum(stands) - 1)[like]


def _spread(found: list[_Found], inverse: NDArray[np.int64]) -> list[_Found]:
    """Give each row the object that stands for it."""
    return [found[index] for index in inverse.tolist()]


def _declared(attributes: bytes) -> str | None:
    for found in _BEHAVIOUR.finditer(attributes):
        offset = found.end()
        for _ in range(found[1][0]):
            atom = _ATOM.match(attributes, offset)
            if atom is None:
                break
            length = (atom["long"] or atom["short"])[0]
            name = attributes[atom.end() : atom.end() + length].decode("utf-8", "replace")
            if name in DECLARED:
                return DECLARED[name]
            offset = atom.end() + length
    return None
