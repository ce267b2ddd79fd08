# SPDX-License-Identifier: Apache-2.0
"""
Processes: who has a long mailbox, who is large, who comes and goes?
"""

from boards.colours import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION
from boards.records import Board, Panel, Query, Row

_NORMAL = (
    ("^normal", SKY),
    ("^shutdown", BLUE),
    ("^killed", PURPLE),
    ("^error", VERMILLION),
    ("^other", ORANGE),
    ("^unknown", GREY),
)
#: Steps of sizes: the value of the label, what it is called, and its colour.
_STEPS = (
    ("1", "1 message or more", GREY),
    ("10", "10 or more", SKY),
    ("100", "100 or more", BLUE),
    ("1000", "1,000 or more", GREEN),
    ("10000", "10,000 or more", ORANGE),
    ("100000", "100,000 or more", VERMILLION),
)
_SIZES = (
    ("65536", "64 KiB or more", GREY),
    ("1048576", "1 MiB or more", SKY),
    ("16777216", "16 MiB or more", ORANGE),
    ("268435456", "256 MiB or more", VERMILLION),
)


def _steps(series: str, steps: tuple[tuple[str, str, str], ...]) -> tuple[Query, ...]:
    """The processes at each step or above."""
    return tuple(
        Query(f'sum({series}{{HERE, at_least="{step}"}})', name, hue) for step, name, hue in steps
    )


#: Processes that ended by an error, a second.
CRASHES = 'sum by (NODE) (rate(beam_process_exits_total{HERE, reason="error"}[RATE]))'

_NOW = Row(
    "Now",
    (
        Panel(
            "Messages that wait",
            "short",
            "Messages in all mailboxes of each VM.",
            "some process reads slower than others write to it. The ranking below names it; "
            "`scope-trace ps` shows what it does.",
            (Query("sum by (NODE) (beam_mailbox_messages{HERE})"),),
            warn=10_000,
            bad=100_000,
            kind="stat",
            height=4,
        ),
        Panel(
            "Crashes",
            "ops",
            "Processes that ended by an error, a second.",
            "read the node's log; a supervisor that restarts without end comes to its own end "
            "after a while.",
            (Query(CRASHES),),
            warn=0.1,
            bad=1,
            kind="stat",
            height=4,
        ),
        Panel(
            "Processes, of what the table holds",
            "percentunit",
            "How full the process table is.",
            "at the limit every spawn fails. Find who spawns and does not end; only then raise +P.",
            (Query("beam_processes{HERE} / beam_process_limit{HERE}"),),
            warn=0.7,
            bad=0.85,
            kind="stat",
            height=4,
        ),
    ),
)

_MAILBOXES = Row(
    "Mailboxes",
    (
        Panel(
            "Longest mailboxes",
            "short",
            "The processes with most messages waiting: registered name, else module, else initial "
            "call. Empty while nothing waits, and where the config has `top = 0`.",
            "look at what it does (`scope-trace ps --pid PID --stack`), then at who sends to it. "
            "Calls with a time-out make it worse: they are sent again.",
            (
                Query(
                    'beam_top_mailbox_messages{HERE, rank!="other"}', "{{name}} NODE", ranked=True
                ),
            ),
            "bars",
            warn=1000,
            bad=10_000,
            width=12,
        ),
        Panel(
            "Processes by length of their mailbox",
            "short",
            "In how many processes' mailboxes at least so many messages wait.",
            "one process far up is a bottleneck; many processes a little up are a node that has "
            "too little CPU.",
            _steps("beam_mailbox_processes", _STEPS),
            width=12,
        ),
    ),
)

_LIFE = Row(
    "Coming and going",
    (
        Panel(
            "Processes",
            "short",
            "Erlang processes of each VM.",
            "a line that only rises is a leak: the ranking by memory and the exits beside help to "
            "find what does not end.",
            (Query("sum by (NODE) (beam_processes{HERE})"),),
        ),
        Panel(
            "Spawns",
            "ops",
            "Processes that were made, a second.",
            "thousands a second are fine for the VM; each costs about as much as a small "
            "collection, so a change by ten times is worth a look.",
            (Query("sum by (NODE) (rate(beam_process_spawns_total{HERE}[RATE]))"),),
        ),
        Panel(
            "Exits by reason",
            "ops",
            "Processes that ended, by the class of their reason.",
            "processes crash. The node's log has the reasons; `scope-trace --events exit` shows "
            "who they are as it happens.",
            (
                Query(
                    "sum by (reason) (rate(beam_process_exits_total{HERE}[RATE]))",
                    "{{reason}}",
                ),
            ),
            hues=_NORMAL,
        ),
    ),
)

_WORK = Row(
    "What they do",
    (
        Panel(
            "Busiest processes",
            "ops",
            "The processes that did most reductions a second between the last two snapshots.",
            "one process can use one scheduler at most. One that is always first and has a long "
            "mailbox is the bottleneck: split what it does.",
            (
                Query(
                    'beam_top_reductions_per_second{HERE, rank!="other"}',
                    "{{name}} NODE",
                    ranked=True,
                ),
            ),
            "bars",
        ),
        Panel(
            "Messages sent",
            "mps",
            "Messages that processes sent, to their own node or another; from windows where they are "
            "many.",
            "much of it for little work is chatter: send less, or more at once.",
            (Query("sum by (NODE) (rate(beam_messages_sent_total{HERE}[RATE]))"),),
        ),
        Panel(
            "Messages received",
            "mps",
            "Messages that processes took out of their mailboxes; from windows where they are many.",
            "it is more than what processes sent by the messages of ports, timers and NIFs. What "
            "waits is shown by the mailboxes, not by the difference.",
            (Query("sum by (NODE) (rate(beam_messages_received_total{HERE}[RATE]))"),),
        ),
    ),
)

_SIZE = Row(
    "Who is large",
    (
        Panel(
            "Largest processes",
            "bytes",
            "The processes with most memory in struct and heaps.",
            "a heap this large makes each full collection long. Look at the state it keeps and at "
            "its mailbox (`scope-trace ps`).",
            (Query('beam_top_memory_bytes{HERE, rank!="other"}', "{{name}} NODE", ranked=True),),
            "bars",
            warn=100 * 2**20,
            bad=2**30,
            width=12,
        ),
        Panel(
            "Processes by size",
            "short",
            "How many processes have at least so many bytes in struct and heaps.",
            "more in the upper steps is state that grows; see the ranking.",
            _steps("beam_memory_processes", _SIZES),
            width=12,
        ),
    ),
)

_SELDOM = Row(
    "Seldom: crashes, lifetimes, hibernation",
    (
        Panel(
            "Crashes by module and reason",
            "ops",
            "Processes that ended by an error, a kill or another reason than normal and shutdown, a second.",
            "one module crashes more than others. `scope-trace --events exit --exact` has "
            "function, line and registered name.",
            (
                Query(
                    "topk(10, sum by (module, reason) (rate(beam_crashes_total{HERE}[RATE])))",
                    "{{module}} {{reason}}",
                ),
            ),
            width=24,
        ),
        Panel(
            "Lifetimes",
            "s",
            "How long processes lived that ended, half of them and 99 of 100; those that live on are "
            "not in it. Empty while spawns or exits are counted in windows. A quantile may be off by "
            "a factor of 16, the width of a bucket.",
            "processes that live for less than a ms cost more to make than they do; a request that "
            "lives longer than its client waits is work for nobody.",
            tuple(
                Query(
                    f"""histogram_quantile({q}, sum by (le)
                        (rate(beam_process_lifetime_seconds_bucket{{HERE}}[RATE]))) >= 0""",
                    name,
                    hue,
                )
                for q, name, hue in ((0.5, "p50", SKY), (0.99, "p99", ORANGE))
            ),
            width=12,
        ),
        Panel(
            "Hibernations",
            "ops",
            "Processes that hibernated, a second; each is a full collection.",
            "a busy process that hibernates collects its whole heap each time: give it a time-out "
            "before it does.",
            (Query("sum by (NODE) (rate(beam_hibernations_total{HERE}[RATE]))"),),
            width=12,
        ),
    ),
    folded=True,
)

BOARD = Board(
    "processes",
    "Processes",
    "Mailboxes and who they belong to, processes that come, go and crash, messages, and who is large.",
    (_NOW, _MAILBOXES, _LIFE, _WORK, _SIZE, _SELDOM),
)
