# SPDX-License-Identifier: Apache-2.0
"""
The C text of a user's probe, made ready for a compiler and for one VM.

Offsets of the VM's structs and the words of its atoms become constants.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from scope_ebpf import events
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.errors import ProbeError, ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scope_ebpf.beam.vm.target import Target

#: Each kind of record with its own fields, by its number.
Vocabulary = list[tuple[events.Kind, np.dtype[np.void]]]
#: ``struct beam_record`` of beam.h behind the kernel's own header, 128 bytes.
RECORD = np.dtype([*events.RECORD.descr[:-1], ("body", "<u8", (12,))])
#: A probe longer than this is no probe, bytes.
_MAX_SOURCE = 1 << 20
_COMMENT = re.compile(r'/\*.*?\*/|//[^\n]*|("(?:\\.|[^"\\\n])*")', re.DOTALL)
_ATOM = re.compile(r'\bbeam_atom\(\s*"((?:\\.|[^"\\\n])*)"\s*\)')
_EVENT = re.compile(r"\bBEAM_EVENT\(\s*(\w+)")
#: Where the body of a function begins that is attached by its name; or a comment or a string.
_FUNCTION = re.compile(
    _COMMENT.pattern + r"|\b((?:on|uprobe_|uretprobe_)_\w+)\s*\([^(){};#]*\)\s*\{", re.DOTALL
)
_COUNT = re.compile(r"\bBEAM_COUNT\(\s*(\w+)\s*,([^()]*)\)")
_HISTOGRAM = re.compile(r"\bBEAM_HISTOGRAM\(\s*(\w+)\s*\)")
#: Maps that outlive the run, in a file of bpffs, or are another tool's by such a file.
_PINNED = re.compile(r"\bBPF_TABLE_PINNED\w*|\bLIBBPF_PIN_BY_NAME\b|\bpinning\b|\bmaps/pinned\b")
#: Replacements of the macros, on one line so that the lines of the file keep their numbers.
_COUNTING = (
    r"struct \1 {\2}; BPF_HASH(beam_count_\1, struct \1, u64, 8192); "
    r"static __always_inline void beam_count_\1_(struct \1 *key) { u64 zero = 0, *seen; "
    r"seen = beam_count_\1.lookup_or_try_init(key, &zero); "
    r"if (seen) __sync_fetch_and_add(seen, 1); else beam_trouble(BEAM_FULL); }"
)
_OBSERVING = (
    r"BPF_ARRAY(beam_histogram_\1, u64, 64); BPF_ARRAY(beam_total_\1, u64, 1); "
    r"static __always_inline void beam_observe_\1_(u64 ns) { "
    r"u32 zero = 0, slot = ns ? bpf_log2l(ns) - 1 : 0; "
    r"u64 *seen = beam_histogram_\1.lookup(&slot), *total = beam_total_\1.lookup(&zero); "
    r"if (seen && total) { __sync_fetch_and_add(seen, 1); __sync_fetch_and_add(total, ns); } }"
)
#: Names of the fields that begin every line of a stream.
_TAKEN = ("time", "event", "pid", "who")
#: The unit of a field by the end of its name.
_UNITS = {"_ns": "ns", "_words": "words"}


def header() -> str:
    """The text of beam.h."""
    return resources.files(__package__).joinpath("beam.h").read_text("utf-8")


@dataclass(frozen=True, slots=True)
class Source:
    """
    A probe, ready for a VM.
    """

    #: The C text for the compiler.
    text: str
    #: Names of the events, counts and histograms that the probe declares.
    events: tuple[str, ...]
    counts: tuple[str, ...]
    histograms: tuple[str, ...]
    #: Functions that count how often they run, in the order of their numbers in ``beam_hits``.
    counted: tuple[str, ...]
    #: What the author should know.
    notes: tuple[str, ...]


def prepare(
    name: str, text: str, target: Target, ring_pages: int, defines: Sequence[str] = ()
) -> Source:
    """
    The probe *text* of file *name* with the definitions that it needs before it.

    *ring_pages* is the size of its ring. *defines* are macros as ``NAME`` or ``NAME=VALUE``, for
    the probe alone. Messages of the compiler keep the line numbers of the file.

    Raises ProbeError for a text that cannot be a probe.
    """
    if len(text) > _MAX_SOURCE or "\0" in text:
        raise ProbeError(f"{name} is no C source of a probe")
    code = _COMMENT.sub(lambda found: found[1] or " ", text)
    pinned = _PINNED.search("\n".join((code, *defines)))
    if pinned:
        raise ProbeError(f"{name} pins a map ({pinned[0]}); maps of a probe end with its run")
    emitted, counts, histograms = (
        tuple(dict.fromkeys(found[1] for found in pattern.finditer(code)))
        for pattern in (_EVENT, _COUNT, _HISTOGRAM)
    )
    notes: list[str] = []
    counted: list[str] = []
    body = _ATOM.sub(_atoms(target, notes), text)
    body = _FUNCTION.sub(_counting(counted), body)
    body = _HISTOGRAM.sub(_OBSERVING, _COUNT.sub(_COUNTING, body))
    kinds = "".join(f"BEAM_KIND_{event}, " for event in emitted)
    parts = [
        f"#define BEAM_RING_PAGES {ring_pages}",
        f"enum {{ {kinds}BEAM_KINDS }};",
        f"#define BEAM_FUNCTIONS {len(counted)}",
        *_offsets(target, notes),
        header(),
        *(_define(text) for text in defines),
        f'#line 1 "{re.sub(r"[^ -~]", "?", name).translate({34: "?", 92: "?"})}"',
        body,
        "",
    ]
    return Source("\n".join(parts), emitted, counts, histograms, tuple(counted), tuple(notes))


def _define(text: str) -> str:
    name, _, value = text.partition("=")
    if not re.fullmatch(r"[A-Za-z_]\w*", name) or not value.isprintable():
        raise ProbeError(f"-D {text}: wanted is NAME or NAME=VALUE")
    return f"#define {name} {value or 1}"


def _offsets(target: Target, notes: list[str]) -> list[str]:
    try:
        structs = target.layout.structs
    except ReadRefusedError as error:
        notes.append(f"beam_field() is not there: {error}")
        return []
    return [
        f"#define BEAM_{struct}_{re.sub(r'[^a-zA-Z0-9_]', '_', field)} {offset}"
        for struct, fields in structs.items()
        for field, offset in fields.items()
        if offset >= 0
    ]


def _counting(counted: list[str]) -> Callable[[re.Match[str]], str]:
    """A replacement that lets each function count its runs, under its index in *counted*."""

    def begin(found: re.Match[str]) -> str:
        name = found[2]
        if name is None:
            return found[0]
        if name not in counted:
            counted.append(name)
        return f"{found[0]} beam_hit({counted.index(name)});"

    return begin


def _atoms(target: Target, notes: list[str]) -> Callable[[re.Match[str]], str]:
    """A replacement of an atom's name by its word."""

    def word(found: re.Match[str]) -> str:
        name = re.sub(r"\\(.)", r"\1", found[1])
        try:
            term = Atoms(target).term(name)
        except ReadRefusedError as error:
            notes.append(f"beam_atom() is always 0: {error}")
            term = 0
        if term is None:
            notes.append(f"the VM has no atom {name!r} yet; beam_atom() of it is 0")
        return f"beam_term({term or 0}ULL)"

    return word


def fields_of(leaf: type[ctypes.Structure]) -> list[tuple[str, Any, int]]:
    """Name, ctypes type and offset in bytes of each field of a struct of the probe."""
    return [(n, kind, getattr(leaf, n).offset) for n, kind, *_ in leaf._fields_]


def is_term(kind: Any) -> bool:
    """Whether a field's type is ``eterm``."""
    return isinstance(kind, type) and kind.__name__ == "eterm"


def vocabulary(kinds: Sequence[tuple[str, type[ctypes.Structure]]]) -> Vocabulary:
    """The kind and record type of each event of the probe, given by name and struct."""
    return [(_kind(n, name, leaf), _dtype(name, leaf)) for n, (name, leaf) in enumerate(kinds)]


def _kind(number: int, name: str, leaf: type[ctypes.Structure]) -> events.Kind:
    units = {}
    for field, kind, _ in fields_of(leaf):
        if is_term(kind):
            units[field] = "eterm"
        elif unit := next((u for end, u in _UNITS.items() if field.endswith(end)), None):
            units[field] = unit
    doc = f"Event {name} of a user's probe."
    return events.Kind(number, name, doc, ("all",), None, None, units, {})


def _dtype(name: str, leaf: type[ctypes.Structure]) -> np.dtype[np.void]:
    """The record with the probe's own fields in its body."""
    before = (RECORD.names or ())[:-1]
    names, formats, offsets = list(before), [], []
    for field in before:
        formats.append(RECORD[field])
        offsets.append(_offset(field))
    for field, kind, offset in fields_of(leaf):
        if field in before or field in _TAKEN:
            raise ProbeError(f"event {name} has a field {field}, which every event has already")
        names.append(field)
        formats.append(_format(name, field, kind))
        offsets.append(_offset("body") + offset)
    return np.dtype(
        {"names": names, "formats": formats, "offsets": offsets, "itemsize": RECORD.itemsize}
    )


def _offset(field: str) -> int:
    assert RECORD.fields is not None  # noqa: S101 - it is a structure
    return RECORD.fields[field][1]


def _format(name: str, field: str, kind: Any) -> np.dtype[Any]:
    if is_term(kind):
        return np.dtype("<u8")
    if issubclass(kind, ctypes.Array) and kind._type_ is ctypes.c_char:
        return np.dtype(f"S{kind._length_}")
    try:
        found: np.dtype[Any] = np.dtype(kind)
    except (TypeError, ValueError):
        found = np.dtype(object)
    if found.kind not in "iu":
        raise ProbeError(f"field {field} of {name} is of a type that cannot be shown")
    return found
