# SPDX-License-Identifier: Apache-2.0
"""
Entries of messages that wait no longer, though nobody was seen to take them.

Their server has ended, or a garbage collection has moved them to another ErtsMessage
(erl_gc.c, erl_message.c: erts_move_messages_off_heap and others).
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.errors import ScopeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from scope_ebpf.beam.processes.table import ProcessTable
    from scope_ebpf.kernel.observers.server_watch import ServerWatch

#: Seconds between two looks; nanoseconds after which a message is on its way no longer, while
#: messages are counted and when they are counted no longer.
_INTERVAL, _SETTLED, _SETTLED_LAST = 2.0, 1_000_000_000, 100_000_000


class Leftovers:
    """
    Finds entries of *watch* whose messages are in no mailbox of *table*.

    ``moved`` are those of servers that live, by slot: their messages were moved, so nobody knows
    how long they wait.
    """

    def __init__(self, table: ProcessTable, watch: ServerWatch) -> None:
        self._table, self._watch = table, watch
        self._next = 0.0
        self.moved = np.zeros(events.SERVER_SLOTS, np.int64)

    def look(self, now: float) -> None:
        """Remove them now and then; *now* is monotonic, seconds."""
        if now >= self._next:
            self._next = now + _INTERVAL
            self._remove(int(now * 1e9) - _SETTLED)

    def last(self, ended: int) -> None:
        """Remove them when counting has *ended*, ns."""
        self._remove(ended - _SETTLED_LAST)

    def _remove(self, sent_before: int) -> None:
        addresses, messages = self._watch.waiting_messages()
        settled = messages["sent_ns"] < sent_before
        if not settled.any():
            return
        # Read after the entries: a message that is sent meanwhile is in the mailbox, not in them.
        mailboxes = self._mailboxes(messages)
        if mailboxes is None:
            return  # it is not known which of them have ended
        left = left_over(messages, mailboxes) & settled
        self._add_moved(messages[left & _are_of(messages, mailboxes)])
        self._watch.forget_messages(addresses[left])

    def waiting(self) -> NDArray[np.void]:
        """
        The messages that wait when a window is over, shape ``(n,)`` of SERVER_MESSAGE.

        Where mailboxes cannot be read, all count as moved.
        """
        _, messages = self._watch.waiting_messages()
        mailboxes = self._mailboxes(messages)
        if mailboxes is None:
            self._add_moved(messages)
            return messages[:0]
        left = left_over(messages, mailboxes)
        self._add_moved(messages[left & _are_of(messages, mailboxes)])
        found: NDArray[np.void] = messages[~left]
        return found

    def _add_moved(self, messages: NDArray[np.void]) -> None:
        np.add.at(self.moved, messages["slot"].astype(np.int64), 1)

    def _mailboxes(self, messages: NDArray[np.void]) -> dict[int, int] | None:
        """By pid, how many messages wait for receivers that live; None if that is not known."""
        receivers = np.array(sorted(set(messages["receiver"].tolist())), np.uint64)
        with suppress(ScopeError):  # the VM may have ended
            seen = self._table.at(self._table.slots_of(receivers))
            if not seen.torn and not seen.unreadable:
                rows = seen.rows
                return dict(zip(rows["id"].tolist(), rows["mailbox"].tolist(), strict=True))
        return None


def _are_of(messages: NDArray[np.void], mailboxes: Mapping[int, int]) -> NDArray[np.bool_]:
    """Tell which of *messages* are to one who has one of *mailboxes*."""
    return np.isin(messages["receiver"], np.array([*mailboxes], np.uint64))


def left_over(messages: NDArray[np.void], mailboxes: Mapping[int, int]) -> NDArray[np.bool_]:
    """
    Tell which of *messages*, of SERVER_MESSAGE, are in no mailbox.

    *mailboxes* has by pid how many messages wait, of processes that live. Those of one receiver
    that are more than wait are the oldest, since messages are mostly taken in turn.
    """
    found = np.zeros(len(messages), np.bool_)
    seen: dict[int, int] = {}
    newest_first = np.argsort(messages["sent_ns"])[::-1].tolist()
    receivers = messages["receiver"].tolist()
    for index in newest_first:
        receiver = receivers[index]
        seen[receiver] = seen.get(receiver, 0) + 1
        found[index] = seen[receiver] > mailboxes.get(receiver, 0)
    return found
