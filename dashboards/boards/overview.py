# SPDX-License-Identifier: Apache-2.0
"""
Overview: is it the application, the VM or the host?
"""

from boards.colours import GREEN, ORANGE, SKY, VERMILLION
from boards.memory import COLLECTING
from boards.records import FIRING, Board, Panel, Query, Row
from boards.schedulers import STARVED, THROTTLED

_QUEUE = """
    sum by (NODE) (beam_run_queue_length{HERE, scheduler_type="normal"})
        / sum by (NODE) (beam_schedulers{HERE})"""
_LIMITS = """
    max by (NODE) (
        label_replace(beam_processes{HERE} / beam_process_limit{HERE}, "of", "processes", "", "")
        or label_replace(beam_ports{HERE} / beam_port_limit{HERE}, "of", "ports", "", "")
        or label_replace(beam_atoms{HERE} / beam_atom_limit{HERE}, "of", "atoms", "", ""))"""
#: Without a ranking, the highest of the steps 1, 10, 100 and so on that some mailbox reaches; or 0.
_MAILBOX = """
    max by (NODE) (beam_top_mailbox_messages{HERE, rank="1"})
        or floor(10 ^ (sum by (NODE) (beam_mailbox_processes{HERE} > bool 0) - 1))"""
#: The label keeps apart what has no other.
_LONG = """
    max by (NODE) (
        label_replace(sum by (NODE) (rate(beam_schedule_duration_seconds_count{HERE}[RATE]))
            - sum by (NODE) (rate(beam_schedule_duration_seconds_bucket{HERE,
                le="0.067108864"}[RATE])), "of", "schedules", "", "")
        or label_replace(sum by (NODE) (rate(beam_native_long_calls_total{HERE}[RATE]))
            unless on (NODE) scope_ebpf_sampling_ratio{HERE, hook="schedule"} == 1,
            "of", "native calls", "", ""))"""
_BUSY = """
    sum by (NODE) (
        label_replace(rate(beam_dist_busy_total{HERE}[RATE]), "of", "links", "", "")
        or label_replace(rate(beam_port_busy_total{HERE}[RATE]), "of", "ports", "", ""))"""

_HOST = Row(
    "Is it the host?",
    (
        Panel(
            "Schedulers that wait for a CPU",
            "percentunit",
            "Of the time in which normal schedulers wanted a CPU, the share in which the kernel gave "
            "it to somebody else. Those that sleep are left out; who wants less than one CPU in all "
            "counts as wanting one.",
            "the VM gets too little CPU, whatever it does. See which other process takes it, and "
            "whether the cgroup's quota is too small; give it CPU, or fewer schedulers (+S).",
            (Query(STARVED),),
            "stat",
            warn=0.05,
            bad=0.1,
            width=6,
            height=6,
            more="schedulers",
        ),
        Panel(
            "Throttled by the cgroup",
            "percentunit",
            "The share of the quota's periods in which the VM's cgroup had used it up; 0 also without "
            "a quota.",
            "the quota (of the container) is smaller than what the schedulers want at once. Raise "
            "it, or start as many schedulers as it has CPUs: +S.",
            (Query(THROTTLED),),
            "stat",
            warn=0.05,
            bad=0.25,
            width=6,
            height=6,
            more="schedulers",
        ),
        Panel(
            "Major page faults",
            "eps",
            "Page faults of the VM that had to wait for a disk.",
            "the host is short of memory and takes pages from the VM: every scheduler stops for "
            "milliseconds, wherever it is. Free memory, or give the VM less to hold.",
            (Query('sum by (NODE) (rate(beam_page_faults_total{HERE, type="major"}[RATE]))'),),
            "stat",
            warn=1,
            bad=10,
            width=6,
            height=6,
            more="memory",
        ),
        Panel(
            "CPU of the VM",
            "short",
            "CPUs that the VM used, work and busy waiting alike.",
            "compare with the number of schedulers. A VM that uses all of them and answers well is "
            "merely busy; look at the run queue beside it.",
            (Query("sum by (NODE) (rate(beam_cpu_seconds_total{HERE}[RATE]))"),),
            "stat",
            width=6,
            height=6,
            decimals=2,
            more="schedulers",
        ),
    ),
)

_VM = Row(
    "Is it the VM?",
    (
        Panel(
            "Run queue per scheduler",
            "short",
            "Erlang processes and ports that are ready and wait for a scheduler, per normal scheduler.",
            "there is more work than schedulers. If schedulers also wait for a CPU it is the host; "
            "if schedules are long, something does not yield; else the node needs more cores.",
            (Query(_QUEUE),),
            "stat",
            warn=2,
            bad=10,
            width=6,
            height=6,
            decimals=2,
            more="schedulers",
        ),
        Panel(
            "Time spent in garbage collection",
            "percentunit",
            "How long collections took, by the clock, as a share of the VM's CPU time; a VM that uses "
            "less than a tenth of a CPU counts as using that much.",
            "few large processes that collect often are the usual cause. Find them in the ranking "
            "by memory; fullsweep_after and hibernation help, a smaller state helps more.",
            (Query(COLLECTING),),
            "stat",
            warn=0.15,
            bad=0.3,
            width=6,
            height=6,
            more="memory",
        ),
        Panel(
            "Nearest limit",
            "percentunit",
            "How full the fullest of the tables of processes, ports and atoms is.",
            "at the limit spawns fail, sockets and pipes cannot be opened or, with atoms, the VM "
            "ends. See which table it is, and what fills it, before you raise +P, +Q or +t.",
            (Query(_LIMITS),),
            "stat",
            warn=0.7,
            bad=0.85,
            width=6,
            height=6,
            more="processes",
        ),
        Panel(
            "Time since the VM started",
            "s",
            "How long the VM's process has been running.",
            "a node that is younger than you expect was restarted: look for a crash dump, and for "
            "the kernel's OOM killer.",
            (Query("time() - max by (NODE) (beam_start_time_seconds{HERE})"),),
            "stat",
            width=6,
            height=6,
            decimals=0,
        ),
    ),
)

_APPLICATION = Row(
    "Is it the application?",
    (
        Panel(
            "Longest mailbox",
            "short",
            "Messages that wait for the process that has most of them; where the config has "
            "`top = 0`, the power of ten that they reach.",
            "that process reads slower than others write. The ranking names it; "
            "`scope-trace ps` shows what it does and what waits.",
            (Query(_MAILBOX),),
            "stat",
            warn=1000,
            bad=10000,
            height=6,
            more="processes",
        ),
        Panel(
            "Long schedules",
            "eps",
            "Times a second that a process kept its scheduler for more than 67 ms; one should take "
            "about one. Where schedules are counted in windows, what is longer than a window (3 to "
            "100 ms) cannot be timed: there it is also native calls of 21 ms or longer, dirty ones "
            "too.",
            "a NIF or a BIF does not yield, and everything else on that scheduler waits. The long "
            "native calls and `scope-trace --events long_call` name it; a dirty one does no harm.",
            (Query(_LONG),),
            "stat",
            warn=0.01,
            bad=0.1,
            height=6,
            more="schedulers",
        ),
        Panel(
            "Writers suspended by a busy port or link",
            "eps",
            "Times a second that a process or port was suspended because a driver or the link to "
            "another node could take no more. A link that is stuck suspends each sender once: see "
            "the full links.",
            "whoever reads at the other end is too slow, or the network is. A larger buffer "
            "(+zdbbl) only hides it.",
            (Query(_BUSY),),
            "stat",
            warn=0.1,
            bad=1,
            height=6,
            more="distribution",
        ),
    ),
)

_NODES = Row(
    "Nodes",
    (
        Panel(
            "All nodes",
            "none",
            "Each VM that is observed, its release and what it holds now.",
            "a node that is missing was not found or is refused: the daemon's page at / says why.",
            (
                Query(
                    """max by (NODE, otp_release, erts_version, flavor, pid)
                        (beam_target_info{HERE})"""
                ),
                Query(
                    "sum by (NODE) (rate(beam_cpu_seconds_total{HERE}[RATE]))",
                    column="CPUs",
                ),
                Query(
                    "sum by (NODE) (beam_resident_memory_bytes{HERE})",
                    column="memory",
                    unit="bytes",
                ),
                Query("sum by (NODE) (beam_processes{HERE})", column="processes"),
                Query("sum by (NODE) (beam_ports{HERE})", column="ports"),
                Query("sum by (NODE) (beam_mailbox_messages{HERE})", column="messages waiting"),
            ),
            "table",
            width=24,
            height=6,
            low=None,
        ),
        Panel(
            "CPU",
            "short",
            "CPUs that each VM used.",
            "see the row of the host above.",
            (Query("sum by (NODE) (rate(beam_cpu_seconds_total{HERE}[RATE]))"),),
            more="schedulers",
        ),
        Panel(
            "Reductions",
            "ops",
            "Work that each VM did, in its own measure: about one reduction per function call.",
            "CPU that grows while reductions do not is busy waiting, a NIF, or a CPU that became "
            "slower.",
            (Query("sum by (NODE) (rate(beam_reductions_total{HERE}[RATE]))", hue=GREEN),),
            more="schedulers",
        ),
        Panel(
            "Messages",
            "mps",
            "Messages sent and taken out of mailboxes; from windows where they are many.",
            "their difference is not what waits: messages of ports, timers and NIFs are received "
            "only. See the mailboxes.",
            (
                Query("sum by (NODE) (rate(beam_messages_sent_total{HERE}[RATE]))", "sent NODE"),
                Query(
                    "sum by (NODE) (rate(beam_messages_received_total{HERE}[RATE]))",
                    "received NODE",
                    ORANGE,
                ),
            ),
            more="processes",
        ),
        Panel(
            "Memory",
            "bytes",
            "Resident memory of each VM, and the heaps of its Erlang processes in it.",
            "where the first grows and the second does not it is binaries, ETS, code or the "
            "allocators.",
            (
                Query("sum by (NODE) (beam_resident_memory_bytes{HERE})", "resident NODE"),
                Query(
                    "sum by (NODE) (beam_processes_memory_bytes{HERE})",
                    "processes NODE",
                    ORANGE,
                ),
            ),
            more="memory",
        ),
        Panel(
            "Processes",
            "short",
            "Erlang processes of each VM.",
            "a line that only rises is a leak: see who is spawned and does not end.",
            (Query("sum by (NODE) (beam_processes{HERE})", hue=SKY),),
            more="processes",
        ),
        Panel(
            "Alerts that fire",
            "short",
            "Alerts of dashboards/rules.yml that fire now; 0 also where Prometheus has no such rules.",
            "each alert says what to do in its description.",
            (Query(f"count({FIRING}) or vector(0)", "firing", VERMILLION),),
            warn=1,
            bad=1,
            decimals=0,
        ),
    ),
)

BOARD = Board(
    "overview",
    "Overview",
    "Is it the application, the VM or the host? Each row answers for one of them; red says where to "
    "look first, and each panel leads to the dashboard with more.",
    (_HOST, _VM, _APPLICATION, _NODES),
)
