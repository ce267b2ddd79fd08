# SPDX-License-Identifier: Apache-2.0
"""
Specifications of telemetry events: which measurements are added up, and which labels are taken.

They are tables ``[[event]]`` of ``events.toml`` beside this file, and ``[[telemetry.event]]`` of a
user's config. Pure: atoms are names here.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

from scope_ebpf import events
from scope_ebpf.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: A key of the table ``[telemetry]`` that is for the daemon alone.
SERIES = "series"
#: In the name of an event: anything before its last atom.
ANY = "*"
#: A step of a path to what names an exception.
CLASS = "@"
#: Specifications in one config, characters of one atom.
MOST_SPECS, _MOST_CHARACTERS = 256, 255
_MOST_BYTES = 1 << 20
_KEYS = {"event", "durations", "numbers", "labels", "classes", "where", "level", "root", "work"}
#: Levels of nesting; that of an event that has none.
_LEVELS, _INNER = range(1, 10), 6
#: The highest level of events that contain others.
_OUTER = 5
#: Last atoms of an event that begins something, and of those that end it.
BEGIN, ENDS = "start", ("stop", "exception")
_LABEL = re.compile(r"[a-z][a-z0-9_]{0,62}")


class SpecError(UsageError):
    """A specification is wrong; the text says which, and what is expected."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What is taken of one event."""

    #: The atoms of its name; ``("*", "query")`` for each name that ends with that atom.
    event: tuple[str, ...]
    #: Measurements that are times in the VM's native unit, which is ns on Linux.
    durations: tuple[str, ...] = ("duration",)
    #: Measurements that are numbers.
    numbers: tuple[str, ...] = ()
    #: The path of each label through the metadata: names of keys, numbers of elements, CLASS.
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    #: Labels that are HTTP statuses, of which the class is taken.
    classes: frozenset[str] = frozenset()
    #: A key of the metadata and the atom that it must have; None for all events of the name.
    where: tuple[str, str] | None = None
    #: Of two events of a process at the same time the one with the lower level contains the other.
    level: int = _INNER
    #: Whether it is a request of its own if nothing contains it.
    root: bool = False
    #: Labels that the event at the beginning has, too: they say what the process works on.
    work: tuple[str, ...] = ()

    @property
    def family(self) -> tuple[str, ...]:
        """What its name has in common with the events at the beginning and at the other end."""
        return self.event[:-1]

    @property
    def start(self) -> tuple[str, ...] | None:
        """The event at the beginning of what this one ends; None if it contains no other."""
        if self.level > _OUTER or self.event[-1] not in ENDS:
            return None
        return (*self.family, BEGIN)

    @property
    def name(self) -> str:
        """The name as it is shown."""
        return ".".join(self.event)

    @property
    def measurements(self) -> tuple[str, ...]:
        """All measurements; a histogram is made of the first, if that is a duration."""
        return self.durations + self.numbers

    def atoms(self) -> set[str]:
        """The text of every atom that it names."""
        steps = {step for path in self.labels.values() for step in path}
        steps = {step for step in steps if step != CLASS and not step.isdigit()}
        return {*self.event, *self.measurements, *steps, *(self.where or ())} - {ANY}


#: Of each event that has no specification: its name and its duration.
UNKNOWN = Spec((), ("duration",))


def shipped() -> list[Spec]:
    """The specifications of the package."""
    return _of_package("events.toml")


def of_series() -> list[Spec]:
    """The specifications of the daemon's series."""
    return _of_package("series.toml")


def _of_package(name: str) -> list[Spec]:
    data = resources.files("scope_ebpf.telemetry").joinpath(name).read_bytes()
    return parse(tomllib.loads(data.decode())["event"], name)


def of_config(path: Path) -> list[Spec]:
    """The specifications in a user's config, none if it has none; SpecError."""
    try:
        if not path.is_file():
            raise SpecError(
                f"cannot read the config {path}: there is no such file, or it is not a regular file"
            )
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise SpecError(f"cannot read the config {path}: {error.strerror}") from None
    if len(data) > _MOST_BYTES:
        raise SpecError(f"the config {path} is larger than {_MOST_BYTES:,} bytes")
    try:
        table = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path} is no TOML: {error}") from None
    return of_table(table.get("telemetry", {}), str(path))


def of_table(table: object, source: str) -> list[Spec]:
    """The specifications in the table ``[telemetry]`` of a config; SpecError names *source*."""
    if not isinstance(table, dict) or set(table) - {"event", SERIES}:
        raise SpecError(
            f"{source}: [telemetry] has tables [[telemetry.event]] and the key {SERIES}, and "
            "nothing else"
        )
    return parse(table.get("event", []), source)


def parse(tables: object, source: str) -> list[Spec]:
    """The specifications in *tables*; SpecError names *source* and what is wrong there."""
    if not isinstance(tables, list) or len(tables) > MOST_SPECS:
        raise SpecError(
            f"{source}: events must be tables [[telemetry.event]], {MOST_SPECS} at most"
        )
    found = [_parse(table, f"{source}: event {n}") for n, table in enumerate(tables, 1)]
    names = [spec.event for spec in found]
    for spec in found:
        if names.count(spec.event) > 1:
            raise SpecError(f"{source}: {spec.name!r} is there twice")
    return found


def merged(own: Sequence[Spec], base: Sequence[Spec]) -> list[Spec]:
    """All of *own*, and those of *base* for other events."""
    names = {spec.event for spec in own}
    return [*own, *(spec for spec in base if spec.event not in names)]


def _parse(table: object, where: str) -> Spec:
    if not isinstance(table, dict):
        raise SpecError(f"{where} is no table")
    if unknown := sorted(set(table) - _KEYS):
        keys = ", ".join(sorted(_KEYS))
        raise SpecError(f"{where}: there is no key {unknown[0]!r}; the keys are {keys}")
    name = _event(table.get("event"), where)
    where = f"{where} ({'.'.join(name)})"
    durations = _texts(table.get("durations", ["duration"]), f"{where}: durations")
    numbers = _texts(table.get("numbers", []), f"{where}: numbers")
    if len(durations + numbers) > events.TELEMETRY_MEASURES:
        raise SpecError(f"{where}: {events.TELEMETRY_MEASURES} measurements at most")
    labels = _labels(table.get("labels", {}), where)
    classes = frozenset(_texts(table.get("classes", []), f"{where}: classes"))
    if strange := sorted(classes - labels.keys()):
        raise SpecError(f"{where}: classes: {strange[0]!r} is none of its labels")
    level, root = table.get("level", _INNER), table.get("root", False)
    if type(level) is not int or level not in _LEVELS or type(root) is not bool:
        raise SpecError(f"{where}: level is a number from 1 to 9, and root is true or false")
    guard = _guard(table.get("where"), where)
    work = _texts(table.get("work", []), f"{where}: work")
    if strange := sorted({*work} - labels.keys()):
        raise SpecError(f"{where}: work: {strange[0]!r} is none of its labels")
    if work and name[-1] != ENDS[0]:
        raise SpecError(f"{where}: work ends with an event whose last atom is {ENDS[0]}")
    return Spec(name, durations, numbers, labels, classes, guard, level, root, work)


def _event(found: object, where: str) -> tuple[str, ...]:
    atoms = tuple(found.split(".")) if isinstance(found, str) else ()
    most = events.TELEMETRY_ATOMS
    if not 1 <= len(atoms) <= most or not all(map(_is_atom, atoms)):
        raise SpecError(f"{where}: event must be 1 to {most} atoms, such as 'app.job.stop'")
    if ANY in atoms and (len(atoms) != 2 or atoms[0] != ANY or atoms[1] == ANY):
        raise SpecError(f"{where}: * stands for all atoms but the last: '*.query'")
    return atoms


def _labels(found: object, where: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(found, dict) or len(found) > events.TELEMETRY_LABELS:
        most = events.TELEMETRY_LABELS
        raise SpecError(f"{where}: labels must be a table of {most} at most: name = 'path'")
    labels = {}
    for label, path in found.items():
        if not _LABEL.fullmatch(label):
            raise SpecError(f"{where}: label {label!r} must be of a-z, 0-9 and _, a letter first")
        labels[label] = _path(path, f"{where}: label {label}")
    return labels


def _path(found: object, where: str) -> tuple[str, ...]:
    steps = tuple(found.split(".")) if isinstance(found, str) else ()
    most = events.TELEMETRY_STEPS
    if not 1 <= len(steps) <= most or not all(map(_is_atom, steps)):
        raise SpecError(f"{where}: wanted is a path of 1 to {most} keys, such as 'conn.status'")
    if CLASS in steps[:-1] or any(step.isdigit() and len(step) > 3 for step in steps):
        raise SpecError(f"{where}: {CLASS} is the last step, and a number an element of a tuple")
    return steps


def _guard(found: object, where: str) -> tuple[str, str] | None:
    if found is None:
        return None
    if isinstance(found, dict) and len(found) == 1:
        ((key, value),) = found.items()
        if _is_atom(key) and _is_atom(value):
            return key, value
    raise SpecError(f"{where}: where must be one key and its atom: {{ type = 'ecto_sql_query' }}")


def _texts(found: object, where: str) -> tuple[str, ...]:
    if isinstance(found, list) and all(map(_is_atom, found)):
        return tuple(found)
    raise SpecError(f"{where} must be a list of names")


def _is_atom(text: Any) -> bool:
    return isinstance(text, str) and 1 <= len(text) <= _MOST_CHARACTERS
