# SPDX-License-Identifier: Apache-2.0
"""
Which well-known libraries a VM has loaded, and in which versions.

Loaded is what the module table says. The version is that of the directory from which the code
server loads the application: ``lib/phoenix-1.7.21/ebin``. The directories are in the state of
``code_server``, a tuple on its stack (OTP-25.2.3 and 27.3.4.1 lib/kernel/src/code_server.erl,
``#state.path``): a list of directories, since OTP 26 of pairs with a directory first. No file is
opened.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf.beam.code.modules import Modules
from scope_ebpf.beam.code.tables import CodeMap
from scope_ebpf.beam.memory.process_memory import column
from scope_ebpf.beam.memory.terms import BOXED, LIST, POINTER_MASK, PRIMARY_MASK, is_small
from scope_ebpf.beam.processes.names import Names
from scope_ebpf.beam.processes.table import IDENTITY, LOAD, ProcessTable
from scope_ebpf.errors import ReadRefusedError, ScopeError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from numpy.typing import NDArray

    from scope_ebpf.beam.processes.atoms import Atoms
    from scope_ebpf.beam.vm.target import Target

#: The library, its application, and a module that it loads when it starts.
LIBRARIES = (
    ("Elixir", "elixir", "Elixir.Kernel"),
    ("Phoenix", "phoenix", "Elixir.Phoenix.Endpoint.Supervisor"),
    ("LiveView", "phoenix_live_view", "Elixir.Phoenix.LiveView"),
    ("Plug", "plug", "Elixir.Plug.Conn"),
    ("Bandit", "bandit", "Elixir.Bandit"),
    ("Cowboy", "cowboy", "cowboy"),
    ("telemetry", "telemetry", "telemetry"),
    ("Ecto", "ecto", "Elixir.Ecto.Repo.Supervisor"),
    ("Postgrex", "postgrex", "Elixir.Postgrex.Protocol"),
    ("Oban", "oban", "Elixir.Oban"),
    ("Broadway", "broadway", "Elixir.Broadway"),
    ("Absinthe", "absinthe", "Elixir.Absinthe"),
    ("Finch", "finch", "Elixir.Finch"),
    ("RabbitMQ", "rabbit", "rabbit"),
    ("ejabberd", "ejabberd", "ejabberd_app"),
)
#: Directories, and characters of one, that are read: a forged list may be endless.
_MOST_DIRECTORIES, _MOST_CHARACTERS = 4096, 1024
#: Words of the server's stack in which its state is looked for, and elements of the state.
_MOST_STACK, _FIRST_ELEMENTS = 64, 4
_VERSIONED = re.compile(r"(?:.*/)?([a-z][A-Za-z0-9_]*)(?:-(\d[0-9A-Za-z.+~_-]{0,39}))?/ebin/?")
_PAIR, _WORD = 16, 8
_ATTEMPTS = 4


class Loaded(NamedTuple):
    """A library in a VM; *version* is None where no directory of the code path says it."""

    name: str
    version: str | None


def loaded(target: Target, atoms: Atoms) -> list[Loaded]:
    """
    Which of :data:`LIBRARIES` *target* has loaded, in that order.

    Raises ReadRefusedError where its modules are not found; a code path that cannot be read leaves
    versions None.
    """
    modules = Modules(target, atoms).names()
    there = [(name, application) for name, application, module in LIBRARIES if module in modules]
    if not there:
        return []
    found: dict[str, str | None] = {}
    try:
        found = versions(code_path(target, atoms), {application for _, application in there})
    except ScopeError:
        target.identity.check()
    return [Loaded(name, found.get(application)) for name, application in there]


def versions(directories: Iterable[str], wanted: Collection[str]) -> dict[str, str | None]:
    """
    The version of each *wanted* application by the first of *directories* that is its own.

    That is where the code server finds its modules. None where that has no version in its name.
    """
    found: dict[str, str | None] = {}
    for directory in directories:
        match = _VERSIONED.fullmatch(directory)
        if match and match[1] in wanted:
            found.setdefault(match[1], match[2])
    return found


def code_path(target: Target, atoms: Atoms) -> list[str]:
    """
    The directories of the code server, in their order.

    ReadRefusedError where it is not found, or changes each time it is read.
    """
    table = ProcessTable(target, (*LOAD, *IDENTITY))
    rows = table.snapshot().rows
    names = Names(target, atoms, CodeMap(target, atoms)).registered(rows)
    if "code_server" not in names:
        raise ReadRefusedError("the VM has no process code_server")
    pid = int(rows["id"][names.index("code_server")])
    state = atoms.term("state")
    for _ in range(_ATTEMPTS):
        before = table.one(pid)
        if not len(before):
            break
        found = _directories(target, before[0], state)
        after = table.one(pid)
        if found is not None and len(after) and all(after[0][k] == before[0][k] for k in _STANDS):
            return found
    raise ReadRefusedError("the state of code_server could not be read")


#: What must not change while terms of a process are read: it has not run.
_STANDS = ("heap", "htop", "stop", "hend", "old_heap", "minor_gcs", "reductions")


def _directories(target: Target, row: np.void, state: int | None) -> list[str] | None:
    """The directories in the state on the server's stack; None where there is no such state."""
    memory, stop = target.memory, int(row["stop"])
    words = memory.words(stop, min(_MOST_STACK, (int(row["hend"]) - stop) // _WORD))
    for word in words.tolist():
        if word & PRIMARY_MASK != BOXED:
            continue
        try:
            head, tag, *rest = memory.words(word & POINTER_MASK, 2 + _FIRST_ELEMENTS).tolist()
        except ReadRefusedError:
            continue
        # The supervisor, the root directory, the path.
        if state is not None and tag == state and head & 0x3F == 0 and head >> 6 > _FIRST_ELEMENTS:
            return _texts(target, list(_elements(target, rest[2])))
    return None


def _elements(target: Target, term: int) -> Iterator[int]:
    """The text of each directory of a path, a list of characters."""
    memory = target.memory
    for _ in range(_MOST_DIRECTORIES):
        if term & PRIMARY_MASK != LIST:
            return
        head, term = memory.words(term & POINTER_MASK, 2).tolist()
        if head & PRIMARY_MASK == BOXED:
            header, first = memory.words(head & POINTER_MASK, 2).tolist()
            head = first if header & 0x3F == 0 and header >> 6 else 0
        if head & PRIMARY_MASK == LIST:
            yield head


def _texts(target: Target, lists: list[int]) -> list[str]:
    """The characters of each list, one of each list at a time; empty where one is no text."""
    texts: list[list[str]] = [[] for _ in lists]
    left = list(enumerate(lists))
    for _ in range(_MOST_CHARACTERS):
        if not left:
            break
        addresses = np.array([term & POINTER_MASK for _, term in left], np.uint64)
        cells, read = target.memory.gather(addresses, _PAIR)
        heads, tails = column(cells, 0, np.uint64), column(cells, _WORD, np.uint64)
        left = list(_step(texts, left, heads, tails, read))
    return ["".join(text) for text in texts]


def _step(
    texts: list[list[str]],
    rows: list[tuple[int, int]],
    heads: NDArray[np.uint64],
    tails: NDArray[np.uint64],
    read: NDArray[np.bool_],
) -> Iterator[tuple[int, int]]:
    """Take one character of each list; those that go on."""
    for (row, _), head, tail, good in zip(
        rows, heads.tolist(), tails.tolist(), read.tolist(), strict=True
    ):
        character = head >> 4
        if not good or not is_small(head) or character > 0x10FFFF:
            texts[row] = []
            continue
        texts[row].append(chr(character))
        if tail & PRIMARY_MASK == LIST:
            yield row, tail
