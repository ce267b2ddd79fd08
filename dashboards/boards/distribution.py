# SPDX-License-Identifier: Apache-2.0
"""
Distribution and ports: does something outside keep the node's processes waiting?
"""

from boards.colours import GREEN, ORANGE, SKY
from boards.records import Board, Panel, Query, Row

_NOW = Row(
    "What waits now",
    (
        Panel(
            "Full links",
            "short",
            "Connections to other nodes whose buffer is full now.",
            "a node that does not read or a network that does not carry: every sender to it is "
            "suspended.",
            (Query("sum by (NODE) (beam_dist_busy_connections{HERE})"),),
            warn=1,
            bad=1,
            kind="stat",
            width=6,
            height=4,
        ),
        Panel(
            "Connected nodes",
            "short",
            "Nodes to which each node is connected, hidden ones (tools, mostly) too.",
            "fewer than the cluster has: see the node's log for net ticks that did not come.",
            (Query("sum by (NODE) (beam_connected_nodes{HERE})"),),
            kind="stat",
            width=6,
            height=4,
        ),
        Panel(
            "Ports, of what the table holds",
            "percentunit",
            "How full the port table is.",
            "at the limit no socket, pipe or program can be opened. Find what does not close, or "
            "raise +Q.",
            (Query("beam_ports{HERE} / beam_port_limit{HERE}"),),
            warn=0.7,
            bad=0.85,
            kind="stat",
            width=6,
            height=4,
        ),
        Panel(
            "Ports that say busy",
            "eps",
            "Times a second that a driver said that its port is busy, so that writers are "
            "suspended.",
            "what reads at the other end of a socket or pipe is too slow. The writers wait: "
            "see the mailboxes behind them.",
            (Query("sum by (NODE) (rate(beam_port_busy_total{HERE}[RATE]))"),),
            warn=0.1,
            bad=1,
            kind="stat",
            width=6,
            height=4,
        ),
    ),
)

_PORTS = Row(
    "Ports",
    (
        Panel(
            "Ports",
            "short",
            "Ports of each VM: sockets of gen_tcp, pipes, drivers.",
            "a line that only rises is something that does not close.",
            (Query("sum by (NODE) (beam_ports{HERE})"),),
            width=12,
        ),
        Panel(
            "Bytes through ports",
            "Bps",
            "Bytes that came in and went out through ports, distribution included; as "
            "erlang:statistics(io) counts them.",
            "compare with what the network carries. What goes out and is not taken in at the other "
            "end makes ports busy.",
            (
                Query(
                    "sum by (direction) (rate(beam_port_io_bytes_total{HERE}[RATE]))",
                    "{{direction}}",
                ),
            ),
            hues=(("^in", SKY), ("^out", ORANGE)),
            width=12,
        ),
    ),
)

_LINKS = Row(
    "Links to other nodes",
    (
        Panel(
            "Messages to other nodes",
            "mps",
            "Messages that processes sent to other nodes; from windows where they are many.",
            "much of it for little work is chatter: gather messages, or keep data where it is used.",
            (
                Query(
                    """sum by (NODE)
                        (rate(beam_messages_sent_total{HERE, scope="remote"}[RATE]))""",
                ),
            ),
            width=12,
        ),
        Panel(
            "Waiting to be sent",
            "bytes",
            "What waits in the buffers to other nodes, all together.",
            "the sum says little: each link may hold 1 MB, or what +zdbbl says (RabbitMQ: 128 MB), "
            "before its senders are suspended. Whether one is full say the full links beside.",
            (Query("sum by (NODE) (beam_dist_queue_bytes{HERE})"),),
            width=12,
        ),
        Panel(
            "Signals handed to links",
            "ops",
            "Times a second that buffered signals were handed to a connection, to its port or to "
            "its process (TLS).",
            "few with many remote messages are large batches: the link is at its limit.",
            (
                Query(
                    "sum by (via) (rate(beam_dist_outputs_total{HERE}[RATE]))",
                    "{{via}}",
                ),
            ),
            hues=(("^port", SKY), ("^process", ORANGE)),
            width=12,
        ),
        Panel(
            "Senders suspended by a full link",
            "eps",
            "Times a second that a process was suspended because the buffer to another node was "
            "full. A link that is stuck suspends each sender once: see the full links.",
            "the network or the other node is slower than the senders. Find who sends much "
            "(large messages above all); a larger +zdbbl only hides it.",
            (Query("sum by (NODE) (rate(beam_dist_busy_total{HERE}[RATE]))"),),
            warn=0.1,
            bad=1,
            width=12,
        ),
        Panel(
            "Time that senders are suspended",
            "percentunit",
            "For how long processes were suspended because the buffer to another node was full, over "
            "all senders: 200% is two of them all the time. Added up when each goes on.",
            "they do nothing else meanwhile, and their own mailboxes grow. See who sends much; the "
            "link or the other node is too slow.",
            (Query("sum by (NODE) (rate(beam_dist_suspended_seconds_total{HERE}[RATE]))"),),
            warn=0.01,
            bad=0.1,
            width=12,
        ),
    ),
    folded=True,
)

_PEERS = Row(
    "Links, by peer",
    (
        Panel(
            "Links, the worst first",
            "short",
            "Each link with a name: full ones, long queues, most traffic. The rest of a node's links "
            "are `other`; a node without any is here, too.",
            "`scope-trace links` shows all of them, who waits, and the socket.",
            (
                Query(
                    """sum by (NODE, peer) (beam_dist_link_queue_bytes{HERE})
                        or label_replace(sum by (NODE) (beam_connected_nodes{HERE}) == 0,
                            "peer", "(no peers)", "", "")""",
                    "",
                    column="waiting",
                    unit="bytes",
                    warn=1e6,
                    bad=1e7,
                ),
                Query(
                    "sum by (NODE, peer) (beam_dist_link_suspended_processes{HERE})",
                    "",
                    column="suspended",
                    unit="short",
                    warn=1,
                    bad=10,
                ),
                Query(
                    """sum by (NODE, peer)
                        (rate(beam_dist_link_bytes_total{HERE, direction="out"}[RATE]))""",
                    "",
                    column="out",
                    unit="Bps",
                ),
                Query(
                    """sum by (NODE, peer)
                        (rate(beam_dist_link_bytes_total{HERE, direction="in"}[RATE]))""",
                    "",
                    column="in",
                    unit="Bps",
                ),
            ),
            kind="table",
            low=None,
            width=24,
            columns=(("node", "node"), ("instance", "host"), ("peer", "peer")),
        ),
    ),
)

_LOST = Row(
    "Connections that were lost",
    (
        Panel(
            "Connections lost, by peer and reason",
            "short",
            "Connections that ended, with the reason that the node itself gives; ten pairs of a node "
            "have a name, the rest is `other`.",
            "net_tick_timeout: nothing came for net_ticktime, so the network was cut, or the other "
            "VM did not run. connection_closed: the other node ended, or closed it.",
            (
                Query(
                    """clamp_min(sum by (peer, reason) (beam_node_down_total{HERE})
                        - (sum by (peer, reason) (beam_node_down_total{HERE} offset RATE)
                            or 0 * sum by (peer, reason) (beam_node_down_total{HERE})), 0)""",
                    "{{peer}} {{reason}}",
                ),
            ),
            width=24,
        ),
    ),
    folded=True,
)

_WAITING = Row(
    "Links that wait",
    (
        Panel(
            "Waiting to be sent, by link",
            "bytes",
            "The longest queue of a link of each node, in the VM and its driver.",
            "one that grows while no link is full is of senders that never wait (async_dist): only "
            "the memory bounds it.",
            (Query("max by (NODE) (beam_dist_link_queue_bytes{HERE})"),),
            width=8,
        ),
        Panel(
            "Longest wait for a link",
            "s",
            "For how long the same process was seen suspended by a full link, the longest of each "
            "node.",
            "it does nothing else meanwhile. `scope-trace links` names it.",
            (Query("max by (NODE) (beam_dist_link_suspended_seconds{HERE})"),),
            warn=5,
            bad=30,
            width=8,
        ),
        Panel(
            "Nodes that are being connected",
            "short",
            "Connections whose handshake is under way.",
            "one that stays is a node that accepts connections and does not answer: stopped, or "
            "behind a firewall. Who sends to it is suspended.",
            (Query("sum by (NODE) (beam_pending_nodes{HERE})"),),
            width=8,
        ),
    ),
    folded=True,
)

_BUSY = Row(
    "Ports that are busy, opened, closed",
    (
        Panel(
            "Time that ports are busy",
            "percentunit",
            "For how long ports were busy, over all ports: 200% is two of them all the time. Added "
            "up when each no longer is.",
            "their writers stand still. See who writes to what: `scope-trace --events port_busy`.",
            (Query("sum by (NODE) (rate(beam_port_busy_seconds_total{HERE}[RATE]))"),),
            warn=0.1,
            bad=0.5,
            width=12,
        ),
        Panel(
            "Ports opened and closed",
            "ops",
            "Ports that were opened and closed, a second.",
            "many of both are connections that live short: let clients keep theirs.",
            (
                Query(
                    "sum(rate(beam_ports_opened_total{HERE}[RATE]))",
                    "opened",
                    GREEN,
                ),
                Query(
                    "sum(rate(beam_ports_closed_total{HERE}[RATE]))",
                    "closed",
                    ORANGE,
                ),
            ),
            width=12,
        ),
    ),
    folded=True,
)

BOARD = Board(
    "distribution",
    "Distribution and ports",
    "Links to other nodes and ports: what is busy, who is suspended for it, and how full the table is.",
    (_NOW, _PORTS, _PEERS, _LOST, _WAITING, _LINKS, _BUSY),
)
