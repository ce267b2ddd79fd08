# SPDX-License-Identifier: Apache-2.0
"""``scope-trace schedulers``: what each thread of a VM does now, and for how long."""

from __future__ import annotations

import json
import secrets
import sys
import time
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, cast

from scope_ebpf.beam.processes.shapes import escaped
from scope_ebpf.beam.processes.table import IDENTITY
from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.beam.vm.split import STATES, Split
from scope_ebpf.cli.options import add_count, add_format, add_interval, add_once
from scope_ebpf.cli.target import add_target, target_of
from scope_ebpf.cli.trouble import Troubles
from scope_ebpf.errors import NoSuchProcessError
from scope_ebpf.runs.loop import target_ended
from scope_ebpf.sinks.plain import plain, say, short, spelled

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from scope_ebpf.beam.vm.schedulers import Scheduler
    from scope_ebpf.beam.vm.split import Shares
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.results.documents.vms import SchedulerLook, SchedulersDocument, SchedulerSplit

_HEADINGS = ("THREAD", "DOING", "CPU%", "SWITCH/S", "REDS/S", "QUEUE", "PROCESS AND FUNCTION")
_PLAIN = "{:<12} {:<12} {:>5} {:>8} {:>7} {:>9} {}"
_SPLIT = "{:<12}" + " {:>9}" * (len(STATES) + 2)
#: Seconds between two samples of what schedulers are at, on average.
_PAUSE = 0.01


@dataclass(frozen=True, slots=True)
class Look:
    """One thread at two instants. A rate is None if the VM keeps no count of it."""

    #: What the thread does at the second instant.
    scheduler: Scheduler
    #: CPU seconds per second.
    cpu_share: float | None
    switches_per_second: float | None
    reductions_per_second: float | None
    #: Seconds, at least, for which it has been at the same work.
    unchanged_seconds: float
    #: None where nothing was sampled.
    split: Shares | None = None

    def as_json(self) -> SchedulerLook:
        """The fields of one thread; a rate is null if the VM keeps no count of it."""
        return {
            **self.scheduler.as_json(),
            "cpu_share": self.cpu_share,
            "context_switches_per_second": self.switches_per_second,
            "reductions_per_second": self.reductions_per_second,
            "unchanged_seconds": round(self.unchanged_seconds, 3),
            "split": _split_json(self.split),
        }


def _split_json(split: Shares | None) -> SchedulerSplit | None:
    if split is None:
        return None
    shares = {state: round(share, 4) for state, share in split.shares.items()}
    whole = {"samples": split.samples, "error": round(split.error, 4), **shares}
    return cast("SchedulerSplit", whole)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``schedulers``."""
    add_target(parser)
    add_interval(parser, None, "time between two looks (default: 1s; with --once 300ms)")
    add_count(parser, "tables")
    add_once(parser)
    parser.add_argument(
        "--split", action="store_true", help="sample what schedulers spend the interval on"
    )
    add_format(parser, "text", "json", "jsonl", text="json and jsonl: a document a line, each turn")


def run(arguments: argparse.Namespace) -> int:
    """Show the threads; raises ScopeError."""
    interval: float = arguments.interval or (0.3 if arguments.count == 1 else 1.0)
    target = target_of(arguments)
    try:
        turns = _looks(target, interval, Split(target) if arguments.split else None)
        for looks, trouble, refused in islice(turns, arguments.count):
            _show(target, looks, trouble, refused, arguments.format)
    except NoSuchProcessError as error:
        raise target_ended(target.pid, error, "watched") from error
    return 0


def _looks(
    target: Target, interval: float, split: Split | None
) -> Iterator[tuple[list[Look], str | None, dict[str, str]]]:
    """Look again and again; the first two looks make the first result."""
    troubles = Troubles(target, Viewer(target, IDENTITY))
    before: dict[int, Scheduler] = {}
    last = 0.0
    while True:
        found, now = troubles.look(), time.monotonic()
        if before:
            looks = [
                _look(item, before.get(item.thread.tid), now - last, troubles.seconds(item))
                for item in found
            ]
            if split:
                shares = split.take()
                keys = [(item.thread.role, item.thread.number) for item in found]
                looks = [
                    replace(look, split=shares.get(key))
                    for look, key in zip(looks, keys, strict=True)
                ]
            trouble = troubles.describe(found)
            target.identity.check()
            yield looks, trouble, troubles.refused
        before, last = {item.thread.tid: item for item in found}, now
        if split:
            _sampled(target, split, interval)
        else:
            target.identity.wait(interval)


def _sampled(target: Target, split: Split, interval: float) -> None:
    """Sample for the time of an interval, at times that no rhythm of the VM can meet."""
    until = time.monotonic() + interval
    while time.monotonic() < until:
        split.sample()
        target.identity.wait(_PAUSE * (0.5 + secrets.randbelow(1000) / 1000))


def _look(item: Scheduler, before: Scheduler | None, seconds: float, unchanged: float) -> Look:
    if before is None:
        return Look(item, None, None, None, unchanged)
    cpu = (item.thread.cpu_seconds - before.thread.cpu_seconds) / seconds
    switches = reductions = None
    if item.queue and before.queue:
        switches = max(0, item.queue.switches - before.queue.switches) / seconds
        reductions = max(0, item.queue.reductions - before.queue.reductions) / seconds
    return Look(item, max(0.0, cpu), switches, reductions, unchanged)


def _show(
    target: Target, looks: list[Look], trouble: str | None, refused: dict[str, str], form: str
) -> None:
    if form != "text":
        document: SchedulersDocument = {
            "schema": 1,
            "target": target.as_json(),
            "trouble": trouble,
            "refused": refused,
            "threads": [look.as_json() for look in looks],
        }
        print(json.dumps(document))
        sys.stdout.flush()
        return
    if sys.stdout.isatty():
        print("\x1b[H\x1b[2J", end="")
    release = f"OTP {target.otp_release} ({target.flavor})"
    lines = [
        f"{escaped(target.node or '?')}  pid {target.pid}  {release}",
        *(line for line in (trouble, *refused.values()) if line),
        _PLAIN.format(*_HEADINGS),
        *(_PLAIN.format(*_cells(look)).rstrip() for look in looks),
        *_split_lines(looks),
    ]
    say("\n".join(map(plain, lines)), sys.stdout)


def _split_lines(looks: list[Look]) -> Iterator[str]:
    """A table of what the schedulers were at, where that was sampled."""
    found = [(look.scheduler.thread, look.split) for look in looks if look.split]
    if found:
        yield ""
        heads = (f"{state.upper().replace('_', '-')}%" for state in STATES)
        yield _SPLIT.format("SCHEDULER", *heads, "SAMPLES", "ERROR")
    for thread, split in found:
        shares = (f"{100 * share:.0f}" for share in split.shares.values())
        error = f"+-{100 * split.error:.0f}"
        yield _SPLIT.format(f"{thread.role} {thread.number}", *shares, split.samples, error)


def _cells(look: Look) -> tuple[str, ...]:
    item = look.scheduler
    queue = item.queue
    lengths = "-"
    if queue:
        lengths = "/".join(str(length) for length in (*queue.lengths.values(), queue.ports))
    rates = (look.switches_per_second, look.reductions_per_second)
    return (
        f"{item.thread.role} {item.thread.number}",
        item.doing,
        "-" if look.cpu_share is None else f"{100 * look.cpu_share:.0f}",
        *("-" if rate is None else short(rate) for rate in rates),
        lengths,
        _what(item, look.unchanged_seconds),
    )


def _what(item: Scheduler, seconds: float) -> str:
    parts = [part for part in (item.process, item.name, item.port) if part]
    if item.nif:
        symbol = f" ({item.nif.symbol})" if item.nif.symbol else ""
        parts.append(f"in NIF {item.nif.function}{symbol} of {item.nif.library}")
    elif item.collecting:
        parts.append("collecting garbage")
    elif item.function:
        parts.append(f"in {item.function}")
    if parts and seconds > 0:
        parts.append(f"for {seconds:.1f} s or longer")
    return escaped(spelled(" ".join(parts)))
