# SPDX-License-Identifier: Apache-2.0
"""
Schedulers of an image, their run queues and ETS tables, and what they count.
"""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import TYPE_CHECKING

from space import BASE, SECTIONS, packed
from vm_base import KINDS, pid_text

if TYPE_CHECKING:
    from vm_base import Image

#: Flags of sleep infos: one that runs, one that sleeps, one that is not online.
_RUNS, _SLEEPS, _OFFLINE = 0, 1 << 1 | 1 << 3, 1 << 4


def schedulers(image: Image) -> None:
    """
    Schedulers of three kinds with their sleep infos, run queues and rings of ETS tables.
    """
    space, release = image.space, image.release
    stride = release.size("ErtsAlignedSchedulerData")
    starts = {
        kind: space.reserve(stride * count, 64)
        for kind, count in zip(KINDS, image.schedulers, strict=True)
    }
    first_queue = space.reserve(release.size("ErtsAlignedRunQueue") * (image.schedulers[0] + 2), 64)
    image.truth["counters"] = {}
    image.truth["schedulers"] = {}
    image.truth["run_queues"] = []
    before = 0
    for number, (kind, count) in enumerate(zip(KINDS, image.schedulers, strict=True)):
        for index in range(count):
            queue = index if kind == "normal" else image.schedulers[0] + number - 1
            place = SimpleNamespace(
                kind=kind, number=number, index=index, before=before, queue=queue,
                at=starts[kind] + stride * index,
                queue_at=first_queue + queue * release.size("ErtsAlignedRunQueue"),
            )  # fmt: skip
            _scheduler(image, place)
            if kind == "normal" or index == 0:
                _run_queue(image, place)
        before += count
        names = {
            "normal": ("erts_aligned_scheduler_data", "erts_no_schedulers"),
            "dirty_cpu": ("erts_aligned_dirty_cpu_scheduler_data", "erts_no_dirty_cpu_schedulers"),
            "dirty_io": ("erts_aligned_dirty_io_scheduler_data", "erts_no_dirty_io_schedulers"),
        }[kind]
        image.variable(names[0], packed(starts[kind]))
        image.variable(names[1], struct.pack("<I", count))


def _scheduler(image: Image, place: SimpleNamespace) -> None:
    normal, index = place.kind == "normal", place.index
    flags = _RUNS if normal and index == 0 else _OFFLINE if index == 2 else _SLEEPS
    ssi = image.space.reserve(image.release.size("ErtsSchedulerSleepInfo"), 64)
    image.space.write(
        ssi, image.struct("ErtsSchedulerSleepInfo", esdp=(place.at, "Q"), flags=(flags, "I"))
    )
    running = list(image.truth["rows"]["erts_proc"])[2] if flags == _RUNS else None
    values = {
        "gc_info.garbage_cols": 3166 + 101 * index,
        "gc_info.reclaimed": 8_640_554 + 1_009 * index,
        "io.in": 7_000_003 + 97 * index,
        "io.out": 243 + 11 * index,
        "ets_tables.count": 23 if index == 0 else 0 if index == 1 else 7,
    }
    tables = _ring(image, values["ets_tables.count"]) if normal else 0
    if not normal:
        # Dirty schedulers have others of their own, which count elsewhere or nowhere.
        values = dict.fromkeys(values, 0)
    fields = {
        "ssi": ssi,
        "current_process": image.truth["rows"]["erts_proc"][running] if running else 0,
        "current_port": 0,
        "current_nif": 0,
        "no": index + 1 if normal else 0,
        "dirty_no": 0 if normal else index + 1,
        "run_queue": place.queue_at,
        "aux_work_data.esdp": place.at if normal else 0,
        "aux_work_data.ssi": ssi if normal else 0,
        "last_monotonic_time": 576_460_752_303 + index,
        "last_os_monotonic_time": 41_003_166_000 + index,
        "unique": 7 + index,
        "ref": 263 + 5 * index,
        "reductions": 5_003 + index,
        "rand_state": 0x5DEECE66D + index,
        "sched_wall_time.start": 0,
        "sched_wall_time.working.total": 0,
        "sched_wall_time.working.start": 0,
        "nosuspend_port_task_handle": 0,
        "pending_signal.sig": 0,
        "pending_signal.to": 0,
        "ets_tables.clist": tables,
        **values,
    }
    made = {name.replace(".", "__"): (value, "Q") for name, value in fields.items()
            if image.release.has("ErtsSchedulerData", name)}  # fmt: skip
    made |= {
        "type": (place.number, "I"),
        "thr_id": (index + 1 + (0 if normal else place.before), "I"),
        "check_time_reds": (10, "i"),
        "sched_wall_time__enabled": (0, "i"),
    }
    image.space.write(place.at, image.struct("ErtsSchedulerData", **made))
    _expect_scheduler(image, place, flags, running, values)


def _expect_scheduler(
    image: Image, place: SimpleNamespace, flags: int, running: int | None, values: dict[str, int]
) -> None:
    truth = image.truth["counters"]
    for name in ("online", "working"):
        truth.setdefault(name, [0, 0, 0])
    truth["online"][place.number] += flags != _OFFLINE
    truth["working"][place.number] += flags == _RUNS
    for name, of in (
        ("collections", "gc_info.garbage_cols"),
        ("reclaimed_words", "gc_info.reclaimed"),
        ("bytes_in", "io.in"),
        ("bytes_out", "io.out"),
        ("ets_tables", "ets_tables.count"),
    ):
        truth[name] = truth.get(name, 0) + values[of]
    doing = {_RUNS: "running", _OFFLINE: "suspended", _SLEEPS: "sleeping"}[flags]
    process = pid_text(image, running) if running else None
    row = image.truth["processes"][process] if process else None
    collecting = bool(row and row["status"] == "garbage_collecting")
    image.truth["schedulers"][place.kind, place.index + 1] = {
        "doing": doing,
        "process": process,
        "function": row["current_function"] if row and not collecting else None,
        "collecting": collecting,
        "queue": place.queue if place.kind == "normal" or place.index == 0 else None,
    }


def _ring(image: Image, count: int) -> int:
    """
    ETS tables of one scheduler, each of which leads to the next and the one before; the first.
    """
    space, release = image.space, image.release
    tables = [space.reserve(release.size("DbTable")) for _ in range(count)]
    for number, table in enumerate(tables):
        common = image.struct(
            "DbTableCommon",
            all__next=(tables[(number + 1) % count], "Q"),
            all__prev=(tables[number - 1], "Q"),
            type=(16, "I"),
            keypos=(1, "i"),
        )
        space.write(table, common[: release.size("DbTable")])
    return tables[0] if tables else 0


def _run_queue(image: Image, place: SimpleNamespace) -> None:
    lengths = [1, 0, 2 + place.queue, 1]
    ports = 1 if place.kind == "normal" else 0
    # A flag for each priority of which some wait, and one for ports (1 << ERTS_PORT_PRIO_LEVEL).
    flags = sum(1 << part for part, length in enumerate([*lengths, ports]) if length)
    switches, reductions = 30_011 + 17 * place.queue, 5_000_011 + 1_013 * place.queue
    data = bytearray(
        image.struct(
            "ErtsRunQueue",
            ix=(place.queue, "i"),
            scheduler=(place.at if place.kind == "normal" else 0, "Q"),
            len=(sum(lengths) + ports, "i"),
            max_len=(sum(lengths) + ports + 9, "i"),
            flags=(flags | 3 << 20, "I"),
            waiting=(0, "i"),
            woken=(0, "i"),
            procs__context_switches=(switches, "Q"),
            procs__reductions=(reductions, "Q"),
            ports__info__len=(ports, "i"),
            ports__info__max_len=(ports + 4, "i"),
        )
    )
    first = image.release.offset("ErtsRunQueue", "procs.prio_info")
    for priority, length in enumerate(lengths):
        struct.pack_into("<3i", data, first + 12 * priority, length, length + 2, 4_000 + length)
    image.space.write(place.queue_at, bytes(data))
    truth = image.truth["counters"]
    truth["context_switches"] = truth.get("context_switches", 0) + switches
    truth["reductions"] = truth.get("reductions", 0) + reductions
    names = ("max", "high", "normal", "low")
    image.truth["run_queues"].append(
        (dict(zip(names, lengths, strict=True)), ports, reductions, switches)
    )


def counters(image: Image) -> None:
    """
    What dirty schedulers have collected: a static behind its lock, which erts_init_gc names.
    """
    truth, tables = image.truth["counters"], image.truth
    lengths = [sum(found.values()) + ports for found, ports, *_ in tables["run_queues"]]
    dirty = {"collections": 13, "reclaimed_words": 997}
    first = image.release.offset("ErtsSchedulerData", "gc_info.reclaimed")
    second = image.release.offset("ErtsSchedulerData", "gc_info.garbage_cols")
    pair = (997, 13) if first < second else (13, 997)
    lock = image.static("dirty_gc", bytes(40) + packed(*pair))
    _init_gc(image, lock - BASE)
    if not image.hidden:
        for name, value in dirty.items():
            truth[name] += value
    image.truth["counters"] = truth | {
        "online": tuple(truth["online"]),
        "working": tuple(truth["working"]),
        "dirty_collections": None if image.hidden else 13,
        "run_queues": lengths,
        "schedulers": image.schedulers,
        "spawned": tables["erts_proc"]["taken"],
        "processes": tables["erts_proc"]["count"],
        "ports": tables["erts_port"]["count"],
        "atoms": tables["atoms"]["atoms"],
        "limits": (
            tables["erts_proc"]["limit"],
            tables["erts_port"]["limit"],
            tables["atoms"]["limit"],
        ),
    }


def _init_gc(image: Image, lock: int) -> None:
    """
    ``erts_init_gc`` as a compiler makes it: initialise the lock, then set the two words to 0.
    """
    start = SECTIONS[".text"][0] + 0x100
    init = start + 0x400
    code = b"\x48\x8d\x3d" + struct.pack("<i", lock - (start + 7))
    code += b"\xe8" + struct.pack("<i", init - (start + 12))
    code += b"\x66\x0f\xef\xc0"
    code += b"\x0f\x11\x05" + struct.pack("<i", lock + 40 - (start + len(code) + 7)) + b"\xc3"
    if not image.hidden:
        image.file.symbols["erts_init_gc"] = (start, len(code))
        image.file.symbols["ethr_mutex_init"] = (init, 16)
        image.file.code |= {start: code, init: bytes(16)}
