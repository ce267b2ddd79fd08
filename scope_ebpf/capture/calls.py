# SPDX-License-Identifier: Apache-2.0
"""
Calls of a capture: request, taking, reply and its receipt, joined by the call's reference.

The reference of a call is in its request and in its reply (OTP's gen.erl), and no two calls have
the same low 50 bits of it. So nothing is paired by order. A reply to an alias has no form when it is
sent; its receive has, and the ErtsMessage of both is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scope_ebpf import events

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

#: Calls without an answer, and replies under way, that are kept; then the oldest are given up.
_MOST = 1 << 18
_FORM_SHIFT, _REFERENCE = 56, (1 << 50) - 1
_SEND, _RECEIVE = events.KINDS["send"].id, events.KINDS["receive"].id
_REMOTE = events.KINDS["send"].classes.index("remote")
_EVENTS = (_SEND, _RECEIVE)


@dataclass(slots=True)
class Call:
    """One call; times in ns as records have them, 0 for what was not seen."""

    reference: int
    #: Terms; 0 where they are not known: the caller is on another node, or the server is.
    caller: int = 0
    server: int = 0
    #: The request was sent, taken out of the mailbox of the server, answered; the answer was taken.
    sent_ns: int = 0
    taken_ns: int = 0
    replied_ns: int = 0
    ended_ns: int = 0
    #: The answer is that the server has exited.
    down: bool = False
    #: The server is on another node.
    remote: bool = False


class Calls:
    """Pairs calls out of records that are given in their order."""

    def __init__(self) -> None:
        self._open: dict[int, Call] = {}
        #: Messages of an unknown form under way, by receiver and address: when and by whom.
        self._sent: dict[tuple[int, int], tuple[int, int]] = {}
        #: Calls that were given up, because more were open than are kept.
        self.given_up = 0

    def records(self, batch: NDArray[np.void]) -> Iterator[Call]:
        """Take a batch of ``events.RECORD``; the calls that end in it."""
        chosen = (batch["kind"] == _SEND) | (batch["kind"] == _RECEIVE)
        rows = batch[chosen & (batch["flags"] & events.FLAG_TEXT_PID == 0)]
        columns = (rows[name].tolist() for name in ("kind", "time_ns", "class", "process", "body"))
        for kind, time, cls, process, words in zip(*columns, strict=True):
            if kind == _SEND:
                self._send(time, cls, process, words)
            elif ended := self._receive(time, process, words):
                yield ended

    def open(self) -> list[Call]:
        """The calls whose answer was not seen, in the order in which they began."""
        return list(self._open.values())

    def _send(self, time: int, cls: int, process: int, words: list[int]) -> None:
        receiver, _, message, form = words
        what, reference = form >> _FORM_SHIFT, form & _REFERENCE
        if what == events.FORM_CALL:
            remote = cls == _REMOTE
            self._open[reference] = Call(reference, process, receiver, time, remote=remote)
            if len(self._open) > _MOST:
                del self._open[next(iter(self._open))]
                self.given_up += 1
        elif what == events.FORM_REPLY and (call := self._open.get(reference)):
            call.replied_ns = time
        elif what == events.FORM_UNKNOWN and message:
            self._sent.pop((receiver, message), None)
            self._sent[receiver, message] = (time, process)
            if len(self._sent) > _MOST:
                del self._sent[next(iter(self._sent))]

    def _receive(self, time: int, process: int, words: list[int]) -> Call | None:
        message, _, _, form = words
        what, reference = form >> _FORM_SHIFT, form & _REFERENCE
        replied, _ = self._sent.pop((process, message), (0, 0))
        if what == events.FORM_CALL and (call := self._open.get(reference)):
            call.server, call.taken_ns = process, time
        if what not in (events.FORM_REPLY, events.FORM_DOWN):
            return None
        call = self._open.get(reference)
        if call is None or call.caller != process:
            return None
        del self._open[reference]
        call.down = what == events.FORM_DOWN
        call.ended_ns = time
        if not call.down:
            call.replied_ns = call.replied_ns or replied
        return call
