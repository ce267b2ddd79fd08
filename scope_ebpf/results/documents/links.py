# SPDX-License-Identifier: Apache-2.0
"""The document of ``links``."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from scope_ebpf.results.documents.vms import Target

#: A count of each direction since the connection was made, from the peer and to it.
Directions = TypedDict("Directions", {"in": int, "out": int})
#: The same per second, between two looks.
Rates = TypedDict("Rates", {"in": float, "out": float})


class WaitingSender(TypedDict):
    """A process that waits until the link takes what it sends."""

    process: str
    #: Registered name, or initial call; null if neither was read.
    name: str | None
    #: Seconds, at least, for which it has waited: since the first look that saw it.
    seconds: float


class LinkSocket(TypedDict):
    """The TCP socket of a link, as the kernel sees it; null where an older kernel does not."""

    #: ``established`` and so on.
    state: str
    local: str
    remote: str
    #: Bytes that the VM has not read, and that the peer has not acknowledged.
    receive_queue_bytes: int
    send_queue_bytes: int
    #: Segments that were sent again since the connection was made.
    retransmits: int | None
    #: Times that the first unacknowledged segment was sent again; 0 when one is acknowledged.
    retransmitting: int | None
    unacked_packets: int | None
    rtt_seconds: float | None
    rtt_deviation_seconds: float | None
    #: Bytes that the peer takes now, and packets that the network is thought to take.
    send_window_bytes: int | None
    congestion_window_packets: int | None
    #: Time in which the peer's window kept data from being sent.
    window_limited_seconds: float | None
    bytes_acked: int | None
    bytes_received: int | None


class LinkRow(TypedDict):
    """The connection to one node; null for what is not known."""

    peer: str
    state: Literal["connected", "pending", "closing"]
    #: Null until it is connected.
    type: Literal["visible", "hidden"] | None
    #: What carries it: a port of the TCP driver, another port, a process, nothing yet.
    carrier: Literal["tcp", "port", "process"] | None
    #: Whether the process that carries it is one of TLS.
    tls: bool | None
    #: Incarnation of the peer; null while it is not known.
    creation: int | None
    #: As ``inet:getstat/1`` counts; null where no TCP port carries it.
    bytes: Directions | None
    #: As ``inet:getstat/1`` counts, or else packets that the carrier took and gave.
    packets: Directions
    bytes_per_second: Rates | None
    packets_per_second: Rates | None
    #: Bytes that wait in the VM, those of senders that never wait included.
    queued_bytes: int
    #: Change of that per second.
    queued_bytes_per_second: float | None
    #: Bytes that wait in the port's driver.
    driver_queued_bytes: int | None
    #: Whether it is full: senders are suspended.
    busy: bool
    #: Seconds, at least, for which it has been full: since the first look that saw it.
    full_seconds: float | None
    #: Seconds since the peer sent anything; it sends a tick at least every quarter of net_ticktime.
    silent_seconds: float | None
    #: Ticks in a row at which nothing had come from the peer; null where they were not read.
    ticks_missed: int | None
    #: With so many the VM ends the link (``net_tickintensity``).
    ticks_limit: int | None
    #: Processes that wait for it; null if they could not be read.
    suspended_total: int | None
    #: At most 100 of them.
    suspended: list[WaitingSender]
    tcp: LinkSocket | None


class LinksCost(TypedDict):
    """What the look cost."""

    own_cpu_seconds: float
    #: Always 0: nothing is attached.
    hooks: int


class LinksDocument(TypedDict):
    """The connections of one VM to other nodes."""

    schema: Literal[1]
    target: Target
    #: Seconds between the two looks that rates are of; null if there was one.
    interval_seconds: float | None
    links: list[LinkRow]
    #: What could not be read, and why.
    refused: dict[str, str]
    cost: LinksCost
