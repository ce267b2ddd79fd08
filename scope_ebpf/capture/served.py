# SPDX-License-Identifier: Apache-2.0
"""
Calls of processes of other nodes, as the node of the server alone sees them.

The VM gives the name of the node as the sender of a message from another node (erl_message.c,
erts_queue_dist_message), and the reference of the call is in the request and in the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

#: Requests without an answer that are kept; then the oldest are given up.
_MOST = 1 << 16
_FORM_SHIFT, _REFERENCE = np.uint64(56), np.uint64((1 << 50) - 1)
_SEND, _RECEIVE = events.KINDS["send"], events.KINDS["receive"]
_REMOTE = _SEND.classes.index("remote")


@dataclass(frozen=True, slots=True)
class ServedCall:
    """One call that was answered; times in ns as records have them."""

    #: Name of the caller's node, and the low bits of the reference.
    node: str
    reference: int
    #: Term of the server.
    server: int
    taken_ns: int
    replied_ns: int


class Served:
    """Finds the calls of other nodes; *nodes* are their names by the terms of these."""

    def __init__(self, nodes: Mapping[int, str]) -> None:
        self._nodes = nodes
        #: By server and reference: the node and the time.
        self._open: dict[tuple[int, int], tuple[str, int]] = {}

    def records(self, batch: NDArray[np.void]) -> Iterator[ServedCall]:
        """Take a batch of ``events.RECORD``; the calls that are answered in it."""
        words = batch["body"][:, 3]
        forms = words >> _FORM_SHIFT
        asked = (batch["kind"] == _RECEIVE.id) & (forms == events.FORM_CALL)
        answered = (batch["kind"] == _SEND.id) & (forms == events.FORM_REPLY)
        answered &= batch["class"] == _REMOTE
        chosen = (asked | answered) & (batch["flags"] & events.FLAG_TEXT_PID == 0)
        rows = batch[chosen]
        columns = (
            *(rows[name].tolist() for name in ("kind", "time_ns", "process")),
            (rows["body"][:, 3] & _REFERENCE).tolist(),
            rows["body"][:, 2].tolist(),
        )
        for kind, time, process, reference, sender in zip(*columns, strict=True):
            if kind == _RECEIVE.id:
                if node := self._nodes.get(sender):
                    self._open[process, reference] = node, time
                    if len(self._open) > _MOST:
                        del self._open[next(iter(self._open))]
            elif found := self._open.pop((process, reference), None):
                yield ServedCall(found[0], reference, process, found[1], time)
