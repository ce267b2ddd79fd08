# SPDX-License-Identifier: Apache-2.0
"""Where the memory of a VM is, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.beam.held.memory import KINDS
from scope_ebpf.beam.processes.shapes import escaped
from scope_ebpf.sinks.plain import plain, refusals, short, spelled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scope_ebpf.results.documents.memory import MemoryDocument, MemoryHolder, TimerReceiver

_KIND = "{:<24} {:>9} {:>9}"
_ALLOCATOR = "{:<24} {:>9} {:>9} {:>7} {:>9}"
_TABLE = "{:<24} {:>9} {:>9} {:>7} {:>9}"
_HOLDER = "{:<46.46} {:>8} {:>8} {:>8} {:>8}"
#: Indented lines and what they are of.
_NAMES = {
    "ets_tables": "ETS tables",
    "processes_used": "processes (used)",
    "atom_used": "atom (used)",
}


def memory_lines(document: MemoryDocument) -> list[str]:
    """The lines of a document of ``memory``, without control characters."""
    target, total = document["target"], document["kinds"]["total"]
    looked = f"{document['duration_seconds']:.1f} s, " if document["duration_seconds"] else ""
    head = (
        f"{escaped(target['node'] or '?')}  pid {target['pid']}  OTP {target['otp_release']}  "
        f"{looked}{_bytes(total)} bytes in use, {_bytes(document['outside']['resident_bytes'])} "
        "resident"
    )
    lines = [head, *_cgroup(document), "", *_kinds(document), "", *_allocators(document)]
    lines += [*_outside(document), "", *_tables(document), *_others(document)]
    lines += _processes("PROCESSES WITH MOST MEMORY", document["processes"])
    lines += _beyond(document)
    lines += _processes("PROCESSES WITH MOST BINARIES", document["binaries"])
    lines += [*_ets(document), *_not_read(document)]
    return [plain(line) for line in lines]


def _cgroup(document: MemoryDocument) -> Iterator[str]:
    found = document["cgroup"]
    if found:
        yield (
            f"its cgroup uses {short(found['used_bytes'])} of {short(found['limit_bytes'])} bytes "
            f"({100 * found['used_share']:.0f} %); the kernel has killed {found['oom_kills']} "
            "processes in it"
        )


def _kinds(document: MemoryDocument) -> Iterator[str]:
    yield _KIND.format("KIND", "BYTES", "GROWTH/S")
    rates = document["kinds_per_second"]
    for kind in KINDS:
        size = document["kinds"][kind]  # type: ignore[literal-required]
        rate = rates[kind] if rates else None  # type: ignore[literal-required]
        yield _KIND.format(_NAMES.get(kind, kind), _bytes(size), _growth(rate))


def _allocators(document: MemoryDocument) -> Iterator[str]:
    if not document["allocators"]:
        return
    yield _ALLOCATOR.format("ALLOCATOR", "CARRIERS", "BLOCKS", "USED", "GROWTH/S")
    for one in document["allocators"]:
        yield _ALLOCATOR.format(
            one["what"],
            short(one["carriers_bytes"]),
            short(one["blocks_bytes"]),
            _share(one["used_share"]),
            _growth(one["carriers_bytes_per_second"]),
        )


def _outside(document: MemoryDocument) -> Iterator[str]:
    found = document["outside"]
    if found["beyond_carriers_bytes"] is not None:
        yield (
            f"carriers take {_bytes(found['carriers_bytes'])} bytes; of "
            f"{_bytes(found['anonymous_bytes'])} anonymous resident bytes at least "
            f"{_bytes(found['beyond_carriers_bytes'])} are not of them"
        )
    if found["swapped_bytes"]:
        yield f"{_bytes(found['swapped_bytes'])} bytes are swapped out"


def _tables(document: MemoryDocument) -> Iterator[str]:
    if not document["tables"]:
        return
    yield _TABLE.format("TABLE", "IN USE", "LIMIT", "USED", "GROWTH/S")
    for one in document["tables"]:
        yield _TABLE.format(
            _NAMES.get(one["what"], one["what"]),
            short(one["used"]),
            "-" if one["limit"] is None else short(one["limit"]),
            _share(one["used_share"]),
            _growth(one["per_second"]),
        )


def _others(document: MemoryDocument) -> Iterator[str]:
    terms, timers = document["persistent_terms"], document["timers"]
    if document["newest_atoms"]:
        texts = " ".join(escaped(spelled(text)) for text in document["newest_atoms"])
        yield f"newest atoms: {texts}"
    if terms:
        largest = ", ".join(
            f"{escaped(spelled(one['name'] or '?'))} {short(one['memory_bytes'])}"
            for one in terms["largest"]
        )
        yield (
            f"{terms['count']} persistent terms, {short(terms['memory_bytes'])} bytes"
            f"{', the largest ' + largest if largest else ''}"
        )
    if timers:
        yield (
            f"timers: {timers['receive']:,} of receive, {timers['bif']:,} of send_after and "
            "start_timer"
        )
    if receivers := document.get("timer_receivers"):
        texts = ", ".join(map(_receiver, receivers))
        yield f"timers of send_after and start_timer by receiver: {texts}"


def _receiver(one: TimerReceiver) -> str:
    who = escaped(spelled(one["name"] or one["initial_call"] or ""))
    return f"{one['pid']} {who} {one['timers']:,} (next in {one['next_due_seconds']:,.1f} s)"


def _processes(heading: str, holders: list[MemoryHolder]) -> Iterator[str]:
    if not holders:
        return
    yield ""
    yield _HOLDER.format(heading, "MEMORY", "BINARIES", "MAILBOX", "GROWTH/S")
    for one in holders:
        who = one["name"] or one["initial_call"] or ""
        rates = one["heap_bytes_per_second"], one["binary_bytes_per_second"]
        rate = None if rates[0] is None or rates[1] is None else rates[0] + rates[1]
        yield _HOLDER.format(
            f"{one['pid']} {escaped(spelled(who))}",
            f"{'~' if one['memory_estimated'] else ''}{short(one['memory_bytes'])}",
            short(one["binary_bytes"] + one.get("message_binary_bytes", 0)),
            short(one["messages"]),
            _growth(rate),
        )


def _beyond(document: MemoryDocument) -> Iterator[str]:
    rest, total = document["processes_beyond_rows_bytes"], document["kinds"]["processes"]
    if document["processes"] and rest is not None:
        yield f"of {_bytes(total)} bytes of processes {_bytes(rest)} are not of these rows"


def _ets(document: MemoryDocument) -> Iterator[str]:
    if not document["ets_tables"]:
        return
    yield ""
    yield _HOLDER.format("ETS TABLES WITH MOST MEMORY", "MEMORY", "OBJECTS", "", "GROWTH/S")
    for one in document["ets_tables"]:
        owner = one["owner_name"] or one["owner"]
        yield _HOLDER.format(
            f"{escaped(spelled(one['name']))} of {escaped(spelled(owner))}",
            short(one["memory_bytes"]),
            short(one["objects"]),
            "",
            _growth(one["bytes_per_second"]),
        )


def _not_read(document: MemoryDocument) -> Iterator[str]:
    if document["torn"]:
        yield f"{document['torn']:,} processes changed too fast to be read"
    for line in refusals((one["what"], one["reason"]) for one in document["not_read"]):
        yield f"not read: {line}"


def _bytes(size: int | None) -> str:
    return "?" if size is None else short(size)


def _share(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _growth(rate: float | None) -> str:
    return "-" if rate is None else f"{'-' * (rate < 0)}{short(abs(rate))}"
