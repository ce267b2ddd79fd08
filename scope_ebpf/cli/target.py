# SPDX-License-Identifier: Apache-2.0
"""
TARGET: the VM that a command looks at, as a person names it.

It is a pid, a node name, a node name without its host, a container id, or the beginning of one; it
may be left out when one VM runs. It is the first word behind the command, or the value of
``--pid``. A command that takes other words takes them behind TARGET, and the words that it cannot
do without come first: ``ps Shop.Cart`` is a process of the only VM, ``ps shop Shop.Cart`` one of
the VM ``shop``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from scope_ebpf.errors import NoSuchProcessError, UsageError
from scope_ebpf.suggestions import close, did_you_mean

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Sequence

    from scope_ebpf.beam.vm.discover import Beam, Refusal
    from scope_ebpf.errors import ScopeError

#: VMs that an error lists.
_LISTED = 20
#: The largest pid of Linux has seven digits (include/linux/threads.h, PID_MAX_LIMIT); a longer
#: number can only be the beginning of a container id.
_PID = re.compile(r"\d{1,7}", re.ASCII)
#: Fewer characters name no container.
_CONTAINER = re.compile(r"[0-9a-f]{4,64}")
_WHICH = ": say which one, by its pid, its node name or its container id"
_NONE = "no Erlang or Elixir VM runs on this host, or none that you may see: try with sudo"


class UnknownVmError(NoSuchProcessError):
    """No VM is called *word*; the names in *near* are like it."""

    def __init__(self, word: str, near: list[str]) -> None:
        super().__init__(f"no VM is called {word!r}{did_you_mean(near)}")
        self.word, self.near = word, near


class WordsError(UsageError):
    """There are more or fewer words than the command takes."""


class Vm(NamedTuple):
    """A VM by what it may be called."""

    pid: int
    node: str | None
    #: Id of its container, 64 hexadecimal digits; None outside of one.
    container: str | None
    #: The effective user id of its process.
    uid: int = 0

    @property
    def name(self) -> str:
        """The node name up to its host; empty without one."""
        return (self.node or "").partition("@")[0]

    def line(self) -> str:
        """Describe it in a list of VMs to choose from."""
        where = f"  container {self.container[:12]}" if self.container else ""
        return f"{self.pid:>7}  {self.node or '-'}{where}"


def add_target(parser: argparse.ArgumentParser, own: str = "") -> None:
    """``TARGET`` and ``--pid``; *own* is how the command's other words are written, if it has."""
    parser.usage = f"%(prog)s [TARGET] {own}{' ' * bool(own)}[OPTIONS]"
    parser.add_argument(
        "words",
        nargs="*",
        metavar="TARGET",
        help="the VM: its pid, its node name, its container id, or the beginning of one; left out "
        "when one VM runs",
    )
    parser.add_argument("-p", "--pid", metavar="TARGET", help="the same as an option")


def words_of(
    arguments: argparse.Namespace,
    usage: str = "",
    *,
    least: int = 0,
    most: int = 0,
    is_own: Callable[[str], bool] = lambda _: False,
) -> tuple[str | None, list[str]]:
    """
    TARGET, None where it is left out, and the command's own words.

    The command takes *least* to *most* words, which errors call *usage*. A first word for which
    *is_own* is true is never TARGET.
    """
    words: list[str] = arguments.words
    target: str | None = arguments.pid
    if target is None and len(words) > least and not is_own(words[0]):
        target, *words = words
    if target is None and len(words) > 1 and _PID.fullmatch(words[-1]):
        raise _first(words[-1], words[:-1])
    if words and not most:
        given = " ".join(filter(None, [target, *words]))
        raise WordsError(f"one TARGET is wanted, not several: {given}")
    if not least <= len(words) <= most:
        given = f"not: {' '.join(words)}" if words else "and nothing is given"
        raise WordsError(f"wanted is [TARGET] {usage}, {given}")
    return target, words


def target_of(arguments: argparse.Namespace) -> Beam:
    """The VM that a command without words of its own is asked to look at; see :func:`find_vm`."""
    return find_vm(words_of(arguments)[0])


def _first(target: str, words: Sequence[str]) -> WordsError:
    return WordsError(f"TARGET comes first: {' '.join((target, *words))}")


def find_vm(word: str | None, others: Sequence[str] = ()) -> Beam:
    """
    Inspect the VM that *word* names, None for the only one.

    *others* are words behind it: where one of them names a VM and *word* none, the error says so.
    NoSuchProcessError if there is none, UsageError if there are several; both list what there is.
    A pid is inspected whatever it is, with the errors of ``beam.vm.discover.inspect``.
    """
    from scope_ebpf.beam.vm.discover import Beam, beams, inspect

    if word is not None and _PID.fullmatch(word):
        return inspect(int(word))
    found = beams()
    by_pid = {one.pid: one for one in found if isinstance(one, Beam)}
    vms = list(map(vm_of, by_pid.values()))
    refused = [one for one in found if not isinstance(one, Beam)]
    if word is not None and not matching(word, vms):
        for other in others:
            if not matching(other, vms) and other not in map(str, by_pid):
                continue
            raise _first(other, [word, *(one for one in others if one != other)])
    chosen = choose(word, vms, refused)
    for pid, beam in by_pid.items():
        if pid != chosen.pid:
            beam.identity.close()
    return by_pid[chosen.pid]


def vm_of(beam: Beam) -> Vm:
    """What *beam* may be called."""
    from scope_ebpf.cgroups import container_of

    return Vm(beam.pid, beam.node, container_of(beam.pid), beam.identity.uids[1])


def choose(word: str | None, vms: Sequence[Vm], refused: Sequence[Refusal] = ()) -> Vm:
    """The one of *vms* that *word* names, of all if it is None; errors as of :func:`find_vm`."""
    if word is None:
        return _only(vms, refused)
    fits = matching(word, vms)
    if len(fits) == 1:
        return fits[0]
    if fits:
        users = " of different users" if _are_of_several(fits) else ""
        raise _listing(UsageError(f"{word!r} fits {len(fits)} VMs{users}{_WHICH}"), fits)
    if word.isdecimal():
        raise NoSuchProcessError(f"there is no process {word}")
    raise _listing(UnknownVmError(word, near(word, vms)), vms, refused)


def _only(vms: Sequence[Vm], refused: Sequence[Refusal]) -> Vm:
    # One that cannot be looked at counts: the other is not the only one, and not the one meant.
    if len(vms) + len(refused) > 1:
        raise _listing(UsageError(f"{len(vms) + len(refused)} VMs run here{_WHICH}"), vms, refused)
    if refused:
        raise refused[0].reason
    if not vms:
        raise NoSuchProcessError(_NONE)
    return vms[0]


def matching(word: str, vms: Sequence[Vm]) -> list[Vm]:
    """
    Those of *vms* that *word* names: as a whole name, else up to the host, else by beginning.

    All of these if they are of several users: a user chooses the names of his nodes, and must not
    put his VM in the place of another's.
    """
    ways = [[vm for vm in vms if fits(word, vm)] for fits in (_is_whole, _is_name, _is_beginning)]
    every = [vm for vm in vms if any(vm in way for way in ways)]
    return every if _are_of_several(every) else next(filter(None, ways), [])


def _are_of_several(vms: Iterable[Vm]) -> bool:
    return len({vm.uid for vm in vms}) > 1


def _is_whole(word: str, vm: Vm) -> bool:
    return word in (vm.node, vm.container)


def _is_name(word: str, vm: Vm) -> bool:
    return word != "" and word == vm.name


def _is_beginning(word: str, vm: Vm) -> bool:
    if not word:
        return False
    contained = _CONTAINER.fullmatch(word) and (vm.container or "").startswith(word)
    return bool(contained) or (vm.node or "").startswith(word)


def near(word: str, vms: Iterable[Vm]) -> list[str]:
    """The nodes of *vms* whose names are much like *word*."""
    names: dict[str, list[str]] = {}
    for vm in vms:
        for name in filter(None, (vm.node, vm.name)):
            names.setdefault(name, []).append(vm.node or "")
    return list(dict.fromkeys(node for name in close(word, names) for node in names[name]))


def _listing(error: ScopeError, vms: Sequence[Vm], refused: Sequence[Refusal] = ()) -> ScopeError:
    """*error* with a line for each of the VMs."""
    if not vms and not refused:
        error.details = (_NONE,)
        return error
    lines = [vm.line() for vm in vms] + [f"{one.pid:>7}  {one.reason}" for one in refused]
    more = [f"and {len(lines) - _LISTED} more: see `scope-trace list`"][: len(lines) > _LISTED]
    error.details = (*lines[:_LISTED], *more)
    return error
