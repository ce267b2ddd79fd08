# SPDX-License-Identifier: Apache-2.0
"""
Specifications as the BPF program needs them: with the atoms of one VM.

An atom may come later, when a library is loaded, so :meth:`Encoder.update` is called again and
again; it looks only at atoms that are new.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.beam.memory.terms import ATOM_TAG, NIL, is_atom, is_small, small
from scope_ebpf.errors import NoSuchProcessError, ReadRefusedError
from scope_ebpf.telemetry.specs import ANY, BEGIN, CLASS, ENDS, UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from numpy.typing import NDArray

    from scope_ebpf.beam.processes.atoms import Atoms
    from scope_ebpf.telemetry.specs import Spec

_STRUCT, _WRAPPER, _WRAPPED = "__struct__", "Elixir.Plug.Conn.WrapperError", "reason"
_ANY_ATOM = 0xFFFFFFFF
#: A word that is no key of any map.
_NEVER = 0x10


class Encoder:
    """
    The *specs* for a VM with *atoms*: number N is ``specs[N - 1]``, 0 is all other events.

    ``everything`` is False to leave out events without a specification. *starts*: also those events
    that begin what others end, with the number of one of those. *work*: also those that begin and
    end what a specification calls work, with its number; *only_work*: no others.
    """

    def __init__(
        self,
        specs: Sequence[Spec],
        atoms: Atoms,
        *,
        everything: bool = True,
        starts: bool = False,
        work: bool = False,
        only_work: bool = False,
    ) -> None:
        numbered = dict(enumerate(specs, 1))
        self._work = {s.family: n for n, s in numbered.items() if s.work and (work or only_work)}
        begin = {spec.start: n for n, spec in numbered.items() if starts and spec.start}
        begin |= {(*family, BEGIN): n for family, n in self._work.items()}
        self._begin = {event: n for event, n in begin.items() if event}
        self._specs = {} if only_work else {spec.event: n for n, spec in numbered.items()}
        self._ends = {
            (*family, end): n for family, n in self._work.items() for end in ENDS if only_work
        }
        if everything and not only_work:
            self._specs[()] = 0
        self._numbered = {0: UNKNOWN, **numbered}
        self._atoms = atoms
        names = set().union(*(spec.atoms() for spec in self._numbered.values()))
        names |= {name for event in (*self._begin, *self._ends) for name in event}
        self._missing = names | {_STRUCT, _WRAPPER, _WRAPPED}
        self._found: dict[str, int] = {}
        self._searched = 0
        self._sent: dict[tuple[str, ...], bytes] = {}

    def update(self) -> Iterator[tuple[NDArray[np.void], NDArray[np.void]]]:
        """
        Each specification that is new or has changed: a TELEMETRY_EVENT and a TELEMETRY_SPEC.

        Raises ReadRefusedError.
        """
        total = len(self._atoms)
        if self._missing and total > self._searched:
            fresh = self._atoms.indices(self._missing, self._searched)
            self._found |= fresh
            self._missing -= fresh.keys()
            self._searched = total
        for made, events_ in (
            (self._value, self._specs),
            (self._beginning, self._begin),
            (self._end, self._ends),
        ):
            for event, number in events_.items():
                spec = self._numbered[number]
                needed = {*event, *(spec.where or ())} - {ANY}
                if needed & self._missing:
                    continue  # no such event can have been
                value = made(event, number)
                if self._sent.get(event) != value.tobytes():
                    self._sent[event] = value.tobytes()
                    yield self._key(event), value

    def _key(self, event: tuple[str, ...]) -> NDArray[np.void]:
        key = np.zeros((), events.TELEMETRY_EVENT)
        for n, name in enumerate(event):
            key["atoms"][n] = _ANY_ATOM if name == ANY else self._found[name]
        return key

    def _value(self, event: tuple[str, ...], number: int) -> NDArray[np.void]:
        spec = self._numbered[number]
        value = self._taken(number, spec.labels.values())
        value["measures"] = len(spec.measurements)
        value["measure"][: len(spec.measurements)] = [self._term(n) for n in spec.measurements]
        if spec.where:
            value["guard_key"], value["guard_value"] = map(self._term, spec.where)
        if event and event[-1] in ENDS:
            value["work"] = self._work.get(spec.family, 0)
        return value

    def _beginning(self, event: tuple[str, ...], number: int) -> NDArray[np.void]:
        spec, work = self._numbered[number], self._work.get(event[:-1], 0)
        value = self._taken(number, [spec.labels[name] for name in spec.work] if work else ())
        value["starts"], value["work"] = 1, work
        return value

    def _end(self, event: tuple[str, ...], number: int) -> NDArray[np.void]:
        value = self._taken(number, ())
        value["starts"], value["work"] = 2, self._work[event[:-1]]
        return value

    def _taken(self, number: int, paths: Collection[tuple[str, ...]]) -> NDArray[np.void]:
        """The specification *number* with labels of these *paths*, and no measurements."""
        value = np.zeros((), events.TELEMETRY_SPEC)
        value["number"], value["labels"] = number, len(paths)
        for name, text in (("struct_key", _STRUCT), ("wrapper", _WRAPPER), ("wrapped", _WRAPPED)):
            value[name] = self._term(text)
        for n, path in enumerate(paths):
            first = n * events.TELEMETRY_STEPS
            value["path"][first : first + len(path)] = [self._step(step) for step in path]
        return value

    def _term(self, name: str) -> int:
        index = self._found.get(name)
        return _NEVER if index is None else index << 6 | ATOM_TAG

    def _step(self, step: str) -> int:
        if step == CLASS:
            return events.TELEMETRY_STEP_CLASS
        if step.isdigit():
            return int(step) << 4 | events.TELEMETRY_STEP_ELEMENT
        return self._term(step)


def other_row(number: int) -> NDArray[np.void]:
    """The row for events of specification *number* that find no room: a TELEMETRY_ROW."""
    row = np.zeros((), events.TELEMETRY_ROW)
    row["spec"], row["label"] = number, events.LABEL_OTHER
    return row


class Decoder:
    """
    Rows of the BPF program as text; *atoms* are the VM's.

    An atom that cannot be read any more, because the VM has ended, is "?"; with *strict* that
    raises ReadRefusedError and NoSuchProcessError. Raises TooMuchError.
    """

    def __init__(self, atoms: Atoms, *, strict: bool = False) -> None:
        self._atoms = atoms
        self._strict = strict

    def event(self, row: np.void) -> str | None:
        """The name of an event without a specification; None for events without a row."""
        if row["label"][0] == events.LABEL_OTHER:
            return None
        size = events.TELEMETRY_EVENT.itemsize
        (name,) = np.frombuffer(row["text"].tobytes()[:size], events.TELEMETRY_EVENT)
        return ".".join(self._atom(index) for index in name["atoms"].tolist() if index)

    def labels(self, row: np.void, count: int) -> tuple[str | None, ...] | None:
        """
        The first *count* labels; None for those that are missing or refused.

        None for the row of events without a row of their own.
        """
        words = row["label"].tolist()[:count]
        if words and words[0] == events.LABEL_OTHER:
            return None
        texts = row["text"].tobytes()
        size = events.TELEMETRY_TEXT_BYTES
        return tuple(
            self._label(word, texts[n * size : (n + 1) * size]) for n, word in enumerate(words)
        )

    def _label(self, word: int, text: bytes) -> str | None:
        if is_atom(word):
            return self._atom(word >> 6).removeprefix("Elixir.")
        if is_small(word):
            return str(small(word))
        if word == NIL:
            return "[]"
        if word & 0xF != events.LABEL_TEXT:
            return None
        size = word >> 4
        shown = text[:size].decode("utf-8", "replace")
        return shown if size <= len(text) else shown.rstrip("\ufffd") + "..."

    def _atom(self, index: int) -> str:
        try:
            return self._atoms.text_at(index)
        except (ReadRefusedError, NoSuchProcessError):
            if self._strict:
                raise
            return "?"
