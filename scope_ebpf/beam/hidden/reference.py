# SPDX-License-Identifier: Apache-2.0
"""
A reference: the marks of the wanted functions of one build of OTP, and of those around them.

A file is JSON, packed by gzip. It may come from anybody, so its form is checked before use: what
passes can at worst lead to a wrong function, which the VM's counters then show
(``budget.judge``).
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from functools import partial
from typing import Any, NamedTuple

from scope_ebpf import events
from scope_ebpf.errors import RefusedFileError
from scope_ebpf.sandbox import answers, limits

_HOOKS = [hook for variant in events.VARIANTS if variant.via == "symbol" for hook in variant.hooks]
#: The functions that are looked for: hooks, what they call, and what leads to data.
WANTED = tuple(
    dict.fromkeys(
        (
            *(hook.name for hook in _HOOKS),
            *(hook.call for hook in _HOOKS if hook.call),
            *("erts_dsig_send", "erts_init_gc", "ethr_mutex_init"),
        )
    )
)
_FORMAT = 1
#: Bytes of a file, packed and unpacked.
MAX_PACKED, _MAX_UNPACKED = 1 << 20, 8 << 20
#: Bytes of a function, instructions, and occurrences of a mark.
_MOST = 1 << 24
_RELEASE = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,5}){0,5}")
_TEXT = re.compile(r"[\x20-\x7e]*")


class BadReferenceError(RefusedFileError):
    """The file is no reference, or not one that can be used."""


class Build(NamedTuple):
    """The build that a reference was made of."""

    #: The release as OTP_VERSION has it ("29.1.2"), or the major one, and the version of ERTS.
    otp: str
    erts: str
    flavor: str
    #: The processor, as ``Binary.machine``.
    machine: str
    #: What the compiler wrote into the file; "" if it is not known.
    compiler: str

    @property
    def major(self) -> str:
        """The major release."""
        return self.otp.partition(".")[0]

    def __str__(self) -> str:
        compiler = f", {self.compiler}" if self.compiler else ""
        return f"OTP {self.otp} (erts {self.erts}, {self.flavor}, {self.machine}{compiler})"


class Reference(NamedTuple):
    """
    One reference.

    *rows*, *called* and *unique* are as ``sandbox.learning`` makes them, and checked; *wanted* are
    the functions that it knows.
    """

    build: Build
    wanted: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    called: list[str]
    unique: list[int]
    #: SHA-256 of the file's bytes.
    digest: str = ""


def learned(build: Build, found: Any) -> Reference:
    """
    The reference of *build*, as a confined process has *found* it.

    Raises ValueError for an answer of another form.
    """
    called = answers.many(found["called"], _name, 1 << 14)
    count = len(answers.many(found["rows"], lambda row: row, limits.ROWS_LEARNED))
    rows = answers.many(found["rows"], partial(_row, count, len(called)), limits.ROWS_LEARNED)
    unique = answers.many(found["unique"], _mark, 1 << 16)
    wanted = answers.many(found["wanted"], _name, len(WANTED))
    return Reference(build, tuple(name for name in wanted if name in WANTED), rows, called, unique)


def packed(reference: Reference) -> bytes:
    """The file of a reference."""
    build = reference.build
    document = {
        "scope_ebpf_reference": _FORMAT,
        "otp": build.otp,
        "erts": build.erts,
        "flavor": build.flavor,
        "machine": build.machine,
        "compiler": build.compiler,
        "wanted": list(reference.wanted),
        "called": reference.called,
        "unique": reference.unique,
        "rows": reference.rows,
    }
    text = json.dumps(document, separators=(",", ":"))
    return gzip.compress(text.encode(), 9, mtime=0)


def parse(data: bytes, name: str) -> Reference:
    """The reference in a file's *data*; BadReferenceError that says what is wrong with *name*."""
    try:
        document = json.loads(_unpacked(data))
        found = learned(_build(document), document)
    except (ValueError, TypeError, KeyError, RecursionError, zlib.error) as error:
        reason = str(error) if isinstance(error, ValueError) else type(error).__name__
        raise BadReferenceError(
            f"{name} cannot be used: {reason or 'it is no reference'}"
        ) from None
    return Reference(
        found.build, found.wanted, found.rows, found.called, found.unique, digest(data)
    )


def digest(data: bytes) -> str:
    """SHA-256 of a file's *data*, in hex."""
    from hashlib import sha256  # slow to load, and most programs hide no functions

    return sha256(data).hexdigest()


def _unpacked(data: bytes) -> bytes:
    if len(data) > MAX_PACKED:
        raise ValueError(f"it has more than {MAX_PACKED:,} bytes")
    unpacker = zlib.decompressobj(wbits=31)
    try:
        text = unpacker.decompress(data, _MAX_UNPACKED)
    except zlib.error:
        raise ValueError("it is no reference") from None
    if not unpacker.eof:
        raise ValueError("it is cut short or too large")
    return text


def _build(document: Any) -> Build:
    if not isinstance(document, dict) or "scope_ebpf_reference" not in document:
        raise ValueError("it is no reference")
    if document["scope_ebpf_reference"] != _FORMAT:
        raise ValueError("it is a reference of another version of scope-ebpf: learn it anew")
    texts = {
        key: answers.text(document[key], limits.CALLED)
        for key in ("otp", "erts", "flavor", "machine", "compiler")
    }
    if not all(_TEXT.fullmatch(text) for text in texts.values()):
        raise ValueError("its head has control characters")
    if not (_RELEASE.fullmatch(texts["otp"]) and _RELEASE.fullmatch(texts["erts"])):
        raise ValueError("it is of no release of OTP")
    if texts["flavor"] not in ("jit", "emu"):
        raise ValueError("it is of no flavour of emulator")
    return Build(**texts)


def _row(rows: int, called: int, found: Any) -> tuple[Any, ...]:
    name, size, count, texts, calls, constants, fields = answers.row(
        found,
        _name,
        lambda n: answers.integer(n, _MOST),
        lambda n: answers.integer(n, _MOST),
        lambda m: answers.many(m, _mark, limits.LEARNED_MARKS),
        lambda c: answers.many(
            c, lambda n: answers.integer(n, rows, -1 - called), limits.LEARNED_CALLS
        ),
        lambda p: answers.many(p, _pair, limits.LEARNED_MARKS),
        lambda p: answers.many(p, _pair, limits.LEARNED_MARKS),
    )
    return name, size, count, texts, calls, constants, fields


def _pair(found: Any) -> list[int]:
    value, count = answers.row(found, _mark, lambda n: answers.integer(n, _MOST, 1))
    return [value, count]


def _mark(found: Any) -> int:
    return answers.integer(found, 1 << 32)


def _name(found: Any) -> str:
    name = answers.text(found, limits.CALLED)
    if not _TEXT.fullmatch(name):
        raise ValueError("a name has control characters")
    return name
