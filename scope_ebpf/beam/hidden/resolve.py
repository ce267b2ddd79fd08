# SPDX-License-Identifier: Apache-2.0
"""
Gives a binary the functions that it hides, from what is remembered or by the nearest reference.

A place is used only if call frame information describes a function of that start and size, and its
score and margin suffice. Whether it is the right function the VM's counters decide, where they
count what it does (:data:`JUDGED`); a function that no counter shows must be of a reference of the
same major release, and with a higher score.
"""

from __future__ import annotations

import math
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from scope_ebpf import events
from scope_ebpf.beam.elf.binary import Symbol
from scope_ebpf.beam.hidden import memory
from scope_ebpf.beam.hidden.memory import DEBUG_FILE, Functions, Place
from scope_ebpf.beam.hidden.reference import WANTED, BadReferenceError
from scope_ebpf.beam.hidden.shelf import entries, nearest
from scope_ebpf.errors import ReadRefusedError, RefusedFileError
from scope_ebpf.sandbox import answers, limits
from scope_ebpf.sandbox.client import Parser, UnreadableFileError
from scope_ebpf.sandbox.refusals import Refusals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from scope_ebpf.beam.elf.binary import Binary
    from scope_ebpf.beam.hidden.reference import Reference
    from scope_ebpf.beam.hidden.shelf import Entry
    from scope_ebpf.beam.vm.target import Target

#: Events that the VM counts, one by one: ``budget.judge`` compares.
JUDGED = frozenset(("spawn", "exit", "gc", "schedule", "port_open", "port_close"))
#: Score and margin of a function: that a counter judges, and of any other.
_JUDGED_LEAST, _OTHER_LEAST = (0.6, 0.1), (0.75, 0.2)
#: CPU seconds of one matching, and seconds until its answer is late.
MATCHING, _PATIENCE = 6.0, 60.0
#: CPU seconds of a digest in the daemon, where a look that takes long is abandoned.
_DIGEST = 1.0
#: In the daemon: matchings whose results are remembered, seconds that earn one more, and how many
#: may follow each other: a host has VMs of some builds when the daemon starts.
_REMEMBERED, _BETWEEN, _BURST = 64, 300.0, 8
#: Seconds for which an owner waits for its turn after it has asked, and owners that are remembered.
_WAITS, _OWNERS = 150.0, 4096
_HOOKS = [
    (variant.event, name)
    for variant in events.VARIANTS
    if variant.via == "symbol"
    for hook in variant.hooks
    for name in (hook.name, hook.call)
    if name and not hook.copy_of  # copies are known only where functions have names
]
#: Functions of no event that are recognized by what they do (``beam.memory.search``).
_CONFIRMED = ("erts_init_gc", "ethr_mutex_init")
_EVENTS_OF = {name: {event for event, own in _HOOKS if own == name} for name in WANTED}


class SoughtError(ReadRefusedError):
    """A program's functions are still looked for: another look in a few seconds may know them."""


@dataclass(slots=True)
class Hidden:
    """
    What is known of the functions that a binary hides.

    *found* is where they are, None if nothing is known; *source* says where their addresses come
    from. *reasons* say of functions why they are not known; *why* says it of all. *proven* are the
    events that have agreed with the counters of a VM of the program.
    """

    found: Functions | None = None
    source: str = ""
    reasons: dict[str, str] = field(default_factory=dict)
    why: str = ""
    proven: frozenset[str] = frozenset()


class _Background:
    """
    Matchings in a thread of their own, one at a time: a look of the daemon may not take seconds.

    Programs come from anybody, so all together take 2 % of a core at most, but for the first ones,
    and of the owners who wait it is the turn of the one whose last turn was longest ago.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock, self._clock = threading.Lock(), clock
        self._busy, self._left, self._earned = False, float(_BURST), clock()
        #: When each owner asked last, and when its last turn was.
        self._asked: dict[str, float] = {}
        self._served: dict[str, float] = {}

    def start(self, target: Target, file: str, reference: Reference, owner: str) -> None:
        """Begin a matching, unless one runs, was begun a moment ago, or it is another's turn."""
        with self._lock:
            if not self._is_turn_of(owner):
                return
        work = partial(self._run, target.binary, target.otp_release, file, reference)
        try:
            threading.Thread(target=work, name="functions", daemon=True).start()
        except RuntimeError:  # the host allows no more threads
            self._busy = False

    def _is_turn_of(self, owner: str) -> bool:
        """Take the turn of *owner*, if it is; otherwise let it wait for the next one."""
        now = self._clock()
        self._asked[owner] = now
        self._asked = {one: at for one, at in self._asked.items() if now - at < _WAITS}
        first = min(self._asked, key=lambda one: self._served.get(one, -math.inf))
        self._left = min(_BURST, self._left + (now - self._earned) / _BETWEEN)
        self._earned = now
        if self._busy or self._left < 1 or owner != first:
            return False
        self._busy, self._left = True, self._left - 1
        del self._asked[owner]
        self._served.pop(owner, None)
        self._served[owner] = now
        if len(self._served) > _OWNERS:
            del self._served[next(iter(self._served))]
        return True

    def _run(self, binary: Binary, release: str, file: str, reference: Reference) -> None:
        parser = binary.apart(MATCHING, _PATIENCE)
        try:
            _matched(parser, release, file, reference)
        except RefusedFileError as error:
            _given_up.add(binary.key, error)
        except UnreadableFileError as error:
            _given_up.add(binary.key, RefusedFileError(str(error)))
        finally:
            parser.close()
            self._busy = False


_background = _Background()
#: What this process has matched, by the digests of file and reference.
_done: dict[tuple[str, str], Functions] = {}
#: Programs whose matching was given up, for an hour.
_given_up = Refusals()
_known: WeakKeyDictionary[Binary, Hidden] = WeakKeyDictionary()
_NOTHING = Hidden()


def hidden_of(binary: Binary) -> Hidden:
    """What is known of the functions that *binary* hides, without looking for any."""
    return _known.get(binary, _NOTHING)


def resolve(target: Target, owner: str = "") -> Hidden:
    """
    Reveal the functions that the program of *target* hides, once; nothing for other programs.

    In the daemon, SoughtError for a program whose functions are still looked for; owners of
    programs take turns there.
    """
    binary = target.binary
    if binary not in _known:
        _known[binary] = _resolved(target, owner) if hides(binary) else Hidden()
    return _known[binary]


def prove(hidden: Hidden, agreed: set[str]) -> None:
    """Know, now and at the next start, that events have *agreed* with the VM's counters."""
    if hidden.found and not agreed <= hidden.proven:
        hidden.proven |= agreed
        memory.add_proven(hidden.found, agreed)


def hides(binary: Binary) -> bool:
    """Whether *binary* hides its functions, of a processor for which they can be found."""
    return binary.machine == "x64" and binary.symbol("erts_schedule") is None


def _resolved(target: Target, owner: str) -> Hidden:
    binary = target.binary
    parser = binary.apart(MATCHING, _PATIENCE) if binary.patient else binary.apart(_DIGEST)
    try:
        _given_up.check(binary.key)
        file = parser.ask("digest", partial(answers.text, most=64))
        kept = memory.recall(file)
        if kept and kept.reference == DEBUG_FILE:
            return reveal(binary, kept)
        return _by_reference(target, parser, file, kept, owner)
    except RefusedFileError as error:
        if not error.lasting:
            raise
        _given_up.add(binary.key, error)
        return Hidden(why=str(error))
    except UnreadableFileError as error:
        return Hidden(why=str(error))
    finally:
        parser.close()


def _by_reference(
    target: Target,
    parser: Parser,
    file: str,
    kept: Functions | None,
    owner: str,
) -> Hidden:
    """What the nearest usable reference shows."""
    machine = target.binary.machine
    shelf = nearest(target.otp_release, target.erts_version, target.flavor, machine, entries())
    with suppress(BadReferenceError):
        if kept and shelf and kept.reference == shelf[0].digest():
            return reveal(target.binary, kept)
    reference, trouble = _first(shelf)
    if reference is None:
        why = trouble or f"there is no reference of {target.flavor} emulators of any OTP release"
        return Hidden(why=f"{why}; `scope-trace learn` makes one")
    if kept and kept.reference == reference.digest:
        return reveal(target.binary, kept)
    if found := _done.get((file, reference.digest)):
        return reveal(target.binary, found)
    if target.binary.patient:
        return reveal(target.binary, _matched(parser, target.otp_release, file, reference))
    _background.start(target, file, reference, owner)
    raise SoughtError(f"the functions that the program of process {target.pid} hides are sought")


def _matched(parser: Parser, release: str, file: str, reference: Reference) -> Functions:
    """Match, and keep what was found. Raises UnreadableFileError and RefusedFileError."""
    places = match(parser, file, reference)
    near = reference.build.major == release
    found = Functions(file, reference.digest, f"reference {reference.build}", near, places)
    _done[file, reference.digest] = found
    while len(_done) > _REMEMBERED:
        _done.pop(next(iter(_done)), None)
    memory.keep(found)
    return found


def _first(shelf: Iterable[Entry]) -> tuple[Reference | None, str]:
    trouble = ""
    for entry in shelf:
        try:
            return entry.load(), ""
        except BadReferenceError as error:
            trouble = trouble or str(error)
    return None, trouble


def match(parser: Parser, file: str, reference: Reference) -> dict[str, Place]:
    """
    Where *reference*'s functions are in the file of *parser*, whose digest is *file*.

    Raises UnreadableFileError, also if it has another digest by now, and RefusedFileError.
    """
    wanted = list(reference.wanted)
    return parser.ask(
        "match",
        lambda a: answers.table(a, _place, len(wanted)),
        file,
        wanted,
        reference.rows,
        reference.called,
        reference.unique,
    )


def _place(found: Any) -> Place:
    start, size, score, margin = answers.row(
        found,
        answers.integer,
        lambda n: answers.integer(n, limits.SECTION, 1),
        lambda n: answers.integer(n, 1001),
        lambda n: answers.integer(n, 1001),
    )
    return Place(start, size, score / 1000, margin / 1000)


def reveal(binary: Binary, found: Functions) -> Hidden:
    """Let *binary* know the functions of *found* that may be used."""
    reasons: dict[str, str] = {}
    symbols = []
    taken: dict[int, str] = {}
    whys = {name: _why_not(name, found.places.get(name), found) for name in WANTED}
    likely = [found.places[name] for name, why in whys.items() if not why]
    binary.are_starts([(place.start, place.size) for place in likely])  # all by one question
    for name, why in whys.items():
        place, reason = found.places.get(name), why
        if not reason and place and place.start in taken:
            reason = f"{taken[place.start]} was found at the same place"
        if not reason and place and not binary.is_start(place.start, place.size):
            reason = "no function begins where it was found"
        if reason or place is None:
            reasons[name] = reason
            continue
        taken[place.start] = name
        symbols.append(Symbol(name, place.start, place.size, True, found.source))
    binary.reveal(symbols)
    hidden = Hidden(found, found.source, reasons, "", frozenset(found.proven))
    _known[binary] = hidden
    return hidden


def _why_not(name: str, place: Place | None, found: Functions) -> str:
    """Why a function may not be used; "" if it may."""
    if place is None:
        return "it was not found in this build"
    judged = name in _CONFIRMED or (bool(_EVENTS_OF[name]) and _EVENTS_OF[name] <= JUDGED)
    if not judged and not found.near:
        return "only a reference of another OTP release is there, and no counter proves it"
    score, margin = _JUDGED_LEAST if judged else _OTHER_LEAST
    if place.score < score or place.margin < margin:
        return f"what was found is not like enough (score {place.score:g}, {place.margin:g} ahead)"
    return ""
