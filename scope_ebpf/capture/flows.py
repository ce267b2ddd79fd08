# SPDX-License-Identifier: Apache-2.0
"""
Which receive belongs to which send.

Both have the address of the VM's ErtsMessage and the receiver, and records of one message are in
the ring in the order of their causes. So a receive belongs to the last send of its receiver with
that address. A collection of the receiver may replace a message that waits (OTP-25.2.3 erl_gc.c,
move_msgs_to_heap), and timers, ports and NIFs have no send: unpaired messages are counted,
never guessed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.beam.memory.terms import is_atom, is_port

if TYPE_CHECKING:
    from collections.abc import Collection

#: Sends that wait for their receives; then the oldest are given up.
_MOST = 1 << 20


class Flows:
    """
    Pairs the messages of one capture, given in the order of its records.

    *nodes* are the atoms that name other nodes: the VM gives such an atom as the sender of a
    message from that node (erl_message.c, erts_queue_dist_message).
    """

    def __init__(self, nodes: Collection[int] = ()) -> None:
        self._nodes = nodes
        self._open: dict[tuple[int, int], tuple[int, int]] = {}
        self._next = 1
        self.paired = self.sends = self.receives = 0
        #: Receives of what a port sent, of what came from other nodes, and of what the VM itself
        #: did: its timers above all.
        self.by_ports = self.by_nodes = self.by_vm = 0

    def send(self, sender: int, receiver: int, message: int) -> int:
        """The number of a message that is sent; 0 if it has no address."""
        self.sends += 1
        if not message or not receiver:
            return 0
        number = self._next
        self._next += 1
        self._open[receiver, message] = (number, sender)
        if len(self._open) > _MOST:
            del self._open[next(iter(self._open))]
        return number

    def receive(self, receiver: int, message: int, sender: int) -> int:
        """The number of the message that is received, 0 if its send was not seen."""
        self.receives += 1
        number, sent_by = self._open.pop((receiver, message), (0, 0))
        if not number or (sender and sent_by and sender != sent_by):
            self.by_ports += is_port(sender)
            self.by_nodes += sender in self._nodes
            self.by_vm += is_atom(sender) and sender not in self._nodes
            return 0
        self.paired += 1
        return number

    @property
    def unreceived(self) -> int:
        """Sends of which no receive was seen: still waiting, thrown away, or replaced."""
        return self.sends - self.paired

    @property
    def unsent(self) -> int:
        """Receives of which no send was seen."""
        return self.receives - self.paired
