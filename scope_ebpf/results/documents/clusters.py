# SPDX-License-Identifier: Apache-2.0
"""Captures of several nodes, merged."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict


class MergedClock(TypedDict):
    """The clock of a host against that of the reference node."""

    offset_seconds: float
    drift_ppm: float
    #: The largest error that the packets allow.
    error_seconds: float


class MergedNode(TypedDict):
    """One capture."""

    node: str
    host: str | None
    capture: str
    events: int
    #: False if its packets do not show its clock.
    aligned: bool
    #: Null for the reference node, and if it is not aligned.
    clock: MergedClock | None


class Delay(TypedDict):
    """Seconds of packets from the connection of one node to that of the other."""

    mean: float
    p50: float
    p99: float
    max: float


# A key that is a word of Python needs the functional form.
_Ends = TypedDict("_Ends", {"from": str, "to": str})


class MergedLink(_Ends):
    """Packets of one connection in one direction."""

    #: Packets that the one capture has, and the other.
    sent: int
    received: int
    #: Packets that both have.
    paired: int
    #: Of the paired packets, as are the next two.
    bytes: int
    by_class: dict[str, int]
    #: Null where a clock is not aligned.
    delay_seconds: Delay | None
    #: Why packets are not paired.
    refused: str | None


class UnrecordedNode(TypedDict):
    """Packets between a node and one of which there is no capture: no BEAM, or not recorded."""

    node: str
    #: Null if its name is not in the capture.
    peer: str | None
    sent: int
    received: int


# So does this one.
_Class = TypedDict("_Class", {"class": str})


class PacketLine(_Class):
    """A paired packet: a line of scope-trace merge -o NAME.jsonl, and a row of its Parquet."""

    from_node: str
    from_host: str | None
    #: Null where the packet does not name its sender.
    from_pid: str | None
    from_who: str | None
    to_node: str
    to_host: str | None
    #: Pid or name on the other node; null where the packet does not name it, as with aliases.
    to: str | None
    to_who: str | None
    #: Its number within the connection, as the sender counts.
    packet: int
    bytes: int
    #: Of the distribution protocol; 0 if it is unknown.
    operation: int
    #: Since 1970 on the clock of the reference node; null where a clock is not aligned.
    sent_ns: int | None
    received_ns: int | None


_Flow = TypedDict("_Flow", {"from": str, "to": str})


class MessageFlow(_Flow):
    """Messages from one process to another on another node."""

    #: Label or pid; null where the packets do not name it.
    sender: str | None
    #: Label, name or pid; null for an alias, as of answers.
    receiver: str | None
    messages: int
    bytes: int


class Legs(TypedDict):
    """Seconds of a call from node to node, from the moment when it is sent until its end."""

    #: In the caller's node, until the request is given to the connection.
    to_link: float | None
    #: Until its first packet has come in.
    over_link: float | None
    #: Until the server takes it out of its mailbox.
    to_server: float | None
    #: Until the server sends the answer.
    in_server: float | None
    #: The same back, until the caller has taken the answer.
    reply_to_link: float | None
    reply_over_link: float | None
    to_caller: float | None


class ServerOfNode(_Flow):
    """Calls of one server by the processes of another node."""

    #: Label or pid; null where no node has seen it.
    server: str | None
    calls: int
    #: Calls that ended because the server has exited; they are in none of the times.
    down: int
    seconds: Delay | None
    #: Means of the calls of which all seven legs are known, and how many those are.
    legs: Legs | None
    legs_known: int


class SlowCall(_Flow):
    """One of the slowest calls."""

    caller: str | None
    server: str | None
    #: Since 1970 on the clock of the reference node.
    sent_ns: int
    seconds: float
    legs: Legs


class MergeDocument(TypedDict):
    """What scope-trace merge has found."""

    schema: Literal[1]
    nodes: list[MergedNode]
    links: list[MergedLink]
    #: Records of packets that were not paired, because more were waiting than are kept.
    given_up: int
    #: That with most packets first, at most 50.
    unrecorded: list[UnrecordedNode]
    #: Senders and receivers of most messages from node to node, at most 20.
    flows: list[MessageFlow]
    #: That with the most time of its callers first, at most 50.
    calls: list[ServerOfNode]
    #: At most 10, the slowest first.
    slowest_calls: list[SlowCall]
