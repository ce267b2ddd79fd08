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

from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from scope_ebpf.beam.processes.table import ProcessTable
    from scope_ebpf.kernel.observers.server_watch import ServerWatch

#: Seconds between two looks; nanoseconds after which a message is on its way no longer.
_INTERVAL, _SETTLED = 2.0, 1_000_000_000


class Leftovers:
    """Removes entries of *watch* whose messages are in no mailbox of *table*."""

    def __init__(self, table: ProcessTable, watch: ServerWatch) -> None:
        self._table, self._watch = table, watch
        self._next = 0.0

    def look(self, now: float) -> None:
        """Look now and then; *now* is monotonic, seconds."""
        if now < self._next:
            return
        self._next = now + _INTERVAL
        addresses, messages = self._watch.waiting_messages()
        settled = messages["sent_ns"] < int(now * 1e9) - _SETTLED
        if not settled.any():
            return
        receivers = np.array(sorted(set(messages["receiver"].tolist())), np.uint64)
        # Read after the entries: a message that is sent meanwhile is in the mailbox, not in them.
        with suppress(ReadRefusedError):
            seen = self._table.at(self._table.slots_of(receivers))
            if seen.torn or seen.unreadable:
                return  # it is not known which of them have ended
            waits = dict(zip(seen.rows["id"].tolist(), seen.rows["mailbox"].tolist(), strict=True))
            self._watch.forget_messages(addresses[left_over(messages, waits) & settled])


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
