# SPDX-License-Identifier: Apache-2.0
"""
What the package reads of an image, beside what was planted in it.

Every figure of :func:`answers` is right, or None for a reason that :func:`answers` gives.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest import mock

from space import BASE, Reader

from scope_ebpf import relations
from scope_ebpf.beam.code.functions import Functions, parse
from scope_ebpf.beam.code.modules import Modules
from scope_ebpf.beam.code.tables import CodeMap
from scope_ebpf.beam.layouts import checks
from scope_ebpf.beam.memory import process_memory
from scope_ebpf.beam.memory.process_memory import Memory
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.beam.processes.table import IDENTITY
from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.beam.vm import schedulers
from scope_ebpf.beam.vm.allocators import AllocatorReader
from scope_ebpf.beam.vm.connections import ConnectionReader
from scope_ebpf.beam.vm.counters import CounterReader
from scope_ebpf.beam.vm.discover import Beam
from scope_ebpf.beam.vm.node import NodeName
from scope_ebpf.beam.vm.schedulers import Schedulers
from scope_ebpf.beam.vm.threads import Thread
from scope_ebpf.errors import ReadRefusedError, ScopeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vm_base import Image

#: A process number that no process has (the kernel's limit is 2^22).
NOBODY = 1 << 23
_ROLES = ("normal", "dirty_cpu", "dirty_io")


@dataclass
class Answers:
    """
    Figures by their names, and why others are refused.
    """

    figures: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


@contextmanager
def running(image: Image, erts: str, otp: str | None = None) -> Iterator[Beam]:
    """
    A target whose memory is the image, and which says that it is version *erts*.
    """
    build = image.release.build
    with ExitStack() as stack:
        reader = Reader(image.space)
        stack.enter_context(mock.patch.object(process_memory._Current, "reader", reader))
        for module in (schedulers, checks):
            stack.enter_context(mock.patch.object(module, "threads", return_value=_threads(image)))
        yield Beam(
            pid=NOBODY, exe="/usr/lib/erlang/beam.smp", node=None,
            otp_release=otp or str(image.release.otp), erts_version=erts,
            flavor="emu" if build == "emu" else "jit", schedulers=image.schedulers[0],
            usdt=build == "usdt", started=0.0, base=BASE, binary=image.file,
            memory=Memory(NOBODY), identity=mock.Mock(),
        )  # fmt: skip


def _threads(image: Image) -> list[Thread]:
    return [
        Thread(3166 + 100 * kind + number, role, number, "S", 0.23, 23)
        for kind, (role, count) in enumerate(zip(_ROLES, image.schedulers, strict=True))
        for number in range(1, count + 1)
    ]


def answers(target: Beam) -> Answers:
    """
    All that the package can say of a target by reading its memory.
    """
    found = Answers()
    for reader in (_counters, _allocators, _connections, _processes, _schedulers, _code, _node):
        name = reader.__name__[1:]
        try:
            found.figures |= {f"{name}.{key}": value for key, value in reader(target).items()}
        except ScopeError as error:
            found.refused[name] = str(error)
    return found


def _counters(target: Beam) -> dict[str, Any]:
    reader = CounterReader(target)
    read, limits = reader.read(), reader.limits()
    if why := relations.of_counters(read, limits):
        raise ReadRefusedError(str(why))
    figures = {name: getattr(read, name) for name in read._fields}
    figures["run_queues"] = read.run_queues.tolist()
    return figures | {"limits": (limits.processes, limits.ports, limits.atoms)}


def _allocators(target: Beam) -> dict[str, Any]:
    read = AllocatorReader(target).read()
    use = read.memory
    if why := relations.of_allocators(read.allocators) + (relations.of_use(use) if use else []):
        raise ReadRefusedError(str(why))
    figures: dict[str, Any] = {f"use.{name}": getattr(use, name) for name in use._fields}
    for one in read.allocators:
        figures[one.name] = (one.carriers, one.blocks, one.kinds)
    return figures


def _connections(target: Beam) -> dict[str, Any]:
    read = ConnectionReader(target).read()
    if why := relations.of_connections(read):
        raise ReadRefusedError(str(why))
    return {name: getattr(read, name) for name in read._fields}


def _processes(target: Beam) -> dict[str, Any]:
    viewer = Viewer(target)
    snapshot = viewer.table.snapshot()
    figures: dict[str, Any] = {"total": snapshot.total, "read": len(snapshot)}
    for row in viewer.describe(snapshot.rows):
        if row.pop("memory_estimated", False):
            del row["memory_bytes"]
        figures |= {f"{row['pid']}.{name}": value for name, value in row.items()}
    return figures


def _schedulers(target: Beam) -> dict[str, Any]:
    reader = Schedulers(target, Viewer(target, IDENTITY))
    read = reader.read()
    if reader.refused:
        raise ReadRefusedError(str(reader.refused))
    return {
        f"{one.thread.role} {one.thread.number}": (
            one.doing, one.process, one.function, one.collecting,
            one.queue and (one.queue.lengths, one.queue.ports, one.queue.reductions,
                           one.queue.switches),
        )
        for one in read
    }  # fmt: skip


def _code(target: Beam) -> dict[str, Any]:
    atoms = Atoms(target)
    code = CodeMap(target, atoms)
    figures: dict[str, Any] = {"modules": len(code)}
    functions = Functions(target, atoms, Modules(target, atoms))
    for module in ("erlang", "gen_server", "shop"):
        for one in functions.find(parse(f"{module}:*")):
            where = code.location(one.address)
            figures[str(one)] = (one.address, where and where.file, where and where.line)
    return figures


def _node(target: Beam) -> dict[str, Any]:
    name = NodeName(target).read()
    if name is None:
        raise ReadRefusedError("the name of the node is not found")
    return {"name": name}


def truth(image: Image) -> dict[str, Any]:
    """
    What was planted, by the names of :func:`answers`.
    """
    reported = image.truth
    figures = {f"counters.{name}": value for name, value in reported["counters"].items()}
    figures |= {f"allocators.use.{name}": value for name, value in reported["use"].items()}
    for name, kinds in reported["allocators"].items():
        by_kind = {kind: tuple(pair) for kind, pair in kinds.items()}
        carriers = sum(size for size, _ in by_kind.values())
        figures[f"allocators.{name}"] = (carriers, reported["blocks"][name], by_kind)
    figures |= {f"connections.{name}": value for name, value in reported["connections"].items()}
    rows = reported["processes"]
    figures |= {"processes.total": len(rows), "processes.read": len(rows)}
    for pid, row in rows.items():
        figures |= {f"processes.{pid}.{name}": value for name, value in row.items()}
    for (role, number), one in reported["schedulers"].items():
        queue = None if one["queue"] is None else reported["run_queues"][one["queue"]]
        figures[f"schedulers.{role} {number}"] = (
            one["doing"], one["process"], one["function"], one["collecting"], queue,
        )  # fmt: skip
    figures |= {f"code.{name}": value for name, value in reported["code"].items()}
    return figures | {"code.modules": 3, "node.name": "nonode@nohost"}


def wrong(read: dict[str, Any], planted: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """
    What was read and was not planted, with the two values; None says nothing.
    """
    return {
        name: (value, planted.get(name, "not there"))
        for name, value in read.items()
        if value is not None and (name not in planted or value != planted[name])
    }
