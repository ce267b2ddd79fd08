# SPDX-License-Identifier: Apache-2.0
"""Tracks of samples and losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.sinks.perfetto.tracks import LOST, MAILBOX, PROCESS, QUEUE, VM

if TYPE_CHECKING:
    from scope_ebpf.capture.reader import Contents
    from scope_ebpf.sinks.perfetto.tracks import Tracks


def counters(tracks: Tracks, contents: Contents) -> None:
    """Draw the lengths of run queues, and of the mailboxes of processes that have tracks."""
    _run_queues(tracks, contents)
    _mailboxes(tracks, contents)


def _run_queues(tracks: Tracks, contents: Contents) -> None:
    queues = contents.run_queues
    names = _queue_names(max((len(lengths) for _, lengths in queues), default=0))
    for number, name in enumerate(names):
        tracks.counter(QUEUE + number, f"run queue {name}")
    for time, lengths in queues:
        for number, length in enumerate(lengths):
            tracks.file.counter(QUEUE + number, time + tracks.to_boot, length)


def _mailboxes(tracks: Tracks, contents: Contents) -> None:
    shown: set[int] = set()
    for time, mailboxes in contents.mailboxes:
        for pid, messages in mailboxes.items():
            own = tracks.process(pid)
            if own is None:
                continue
            track = own - PROCESS + MAILBOX
            if pid not in shown:
                shown.add(pid)
                tracks.counter(track, f"mailbox of {' '.join(tracks.name(pid))}")
            tracks.file.counter(track, time + tracks.to_boot, messages)


def losses(tracks: Tracks, contents: Contents) -> None:
    """Draw when records were lost, and how many."""
    file, boot = tracks.file, tracks.to_boot
    before, since = 0, contents.head.clocks.monotonic
    for time, by_kind in contents.losses:
        total = sum(by_kind.values())
        if total > before:
            if not before:
                file.describe(file.track(LOST, VM, "LOST RECORDS"))
            name = f"{total - before:,} records lost"
            file.slice(LOST, since + boot, time + boot, name, facts=by_kind)
        before, since = total, time


def _queue_names(count: int) -> list[str]:
    """One for each normal scheduler, then those of the dirty ones."""
    normal = [str(number) for number in range(1, count - 1)]
    return [*normal, "dirty CPU", "dirty IO"] if count > 2 else [str(n + 1) for n in range(count)]
