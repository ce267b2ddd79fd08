# SPDX-License-Identifier: Apache-2.0
"""
Overview: is it the application, the VM or the host?
"""

from typing import Final

from boards.memory import COLLECTING, OF_LIMIT
from boards.processes import CRASHES
from boards.records import Board, Panel, Query, Row, firing
from boards.schedulers import STARVED, THROTTLED, UTILIZATION

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

_TILE: Final = 4

_HOST = Row(
    "Is it the host?",
    (
        Panel(
            "Schedulers that wait for a CPU",
            "percentunit",
            "Of the time in which normal schedulers wanted a CPU, the share in which the kernel gave "
            "it to others. Those that sleep are left out; who wants less than one CPU in all "
            "counts as wanting one.",
            "the VM gets too little CPU, whatever it does. See which other process takes it, and "
            "whether the cgroup's quota is too small; give it CPU, or fewer schedulers (+S).",
            (Query(STARVED),),
            "stat",
            warn=0.05,
            bad=0.1,
            width=6,
            height=_TILE,
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
            height=_TILE,
            more="schedulers",
        ),
        Panel(
            "Memory, of the cgroup's limit",
            "percentunit",
            "Memory of the VM's cgroup without file pages that can be dropped, as a share of its "
            "limit; 0 also without a limit.",
            "at the limit the kernel kills the VM, without a crash dump. See what grows, or raise "
            "the limit of the container.",
            (Query(OF_LIMIT),),
            "stat",
            warn=0.8,
            bad=0.9,
            width=6,
            height=_TILE,
            more="memory",
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
            height=_TILE,
            more="memory",
        ),
    ),
)

_VM = Row(
    "Is it the VM?",
    (
        Panel(
            "Scheduler utilization",
            "percentunit",
            "The share of the last minute in which the normal schedulers that are online worked; busy "
            "waiting is left out.",
            "the VM has all the work that it can do. See the run queue beside it: if nothing waits, "
            "it is merely busy; else the node needs more cores, or less work.",
            (Query(UTILIZATION),),
            "stat",
            warn=0.8,
            bad=0.95,
            width=6,
            height=_TILE,
            decimals=0,
            more="schedulers",
        ),
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
            height=_TILE,
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
            height=_TILE,
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
            height=_TILE,
            more="processes",
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
            "`top = 0`, the power of ten that they reach. The table below names the process.",
            "that process reads slower than others write. `scope-trace ps` shows what it does and "
            "what waits.",
            (Query(_MAILBOX),),
            "stat",
            warn=1000,
            bad=10000,
            width=6,
            height=_TILE,
            more="processes",
        ),
        Panel(
            "Crashes",
            "eps",
            "Processes that ended by an error, a second.",
            "the node's log has the reasons; `scope-trace --events exit` shows who they are as it "
            "happens.",
            (Query(CRASHES),),
            "stat",
            warn=0.1,
            bad=1,
            width=6,
            height=_TILE,
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
            width=6,
            height=_TILE,
            more="schedulers",
        ),
        Panel(
            "Writers suspended by a busy port or link",
            "eps",
            "Times a second that a process or port was suspended because a driver or the link to "
            "another node could take no more. A link that is stuck suspends each sender once: see "
            "the full links.",
            "what reads at the other end is too slow, or the network is. A larger buffer "
            "(+zdbbl) only hides it.",
            (Query(_BUSY),),
            "stat",
            warn=0.1,
            bad=1,
            width=6,
            height=_TILE,
            more="distribution",
        ),
    ),
)

ALL_NODES: Final = Panel(
    "All nodes",
    "none",
    "Each VM that is observed and how it is now; the owner is the process with the longest mailbox, "
    "by its registered name, else module, else initial call. Critical: kinds of findings of the last check.",
    "a node that is missing was not found or is refused: the daemon's page at / says why.",
    (
        Query("time() - max by (NODE) (beam_start_time_seconds{HERE})", "", column="up", unit="s"),
        Query(
            "sum by (NODE) (rate(beam_cpu_seconds_total{HERE}[RATE]))",
            "",
            column="CPUs used",
        ),
        Query(
            UTILIZATION,
            "",
            column="utilization",
            unit="percentunit",
            warn=0.8,
            bad=0.95,
        ),
        Query(
            "sum by (NODE) (beam_resident_memory_bytes{HERE})",
            "",
            column="memory",
            unit="bytes",
        ),
        Query(
            OF_LIMIT,
            "",
            column="of its limit",
            unit="percentunit",
            warn=0.8,
            bad=0.9,
        ),
        Query(
            """sum by (NODE) (beam_finding_kinds{HERE, severity="critical"})""",
            "",
            column="critical",
            bad=1,
        ),
        Query("sum by (NODE) (beam_processes{HERE})", "", column="processes"),
        Query("sum by (NODE) (beam_mailbox_messages{HERE})", "", column="waiting"),
        Query(
            """topk by (NODE) (1, max by (NODE, name)
                (beam_top_mailbox_messages{HERE, rank="1"}))""",
            "",
            column="longest mailbox",
            warn=1000,
            bad=10_000,
        ),
        Query("max by (NODE, otp_release) (beam_target_info{HERE})", ""),
    ),
    "table",
    width=24,
    height=6,
    low=None,
    columns=(
        ("node", "node"),
        ("instance", "host"),
    ),
    details=(
        ("name", "its owner"),
        ("otp_release", "OTP"),
    ),
)

_NODES = Row(
    "Nodes",
    (
        ALL_NODES,
        Panel(
            "CPU",
            "suffix: CPU",
            "CPUs that each VM used, work and busy waiting alike.",
            "compare with the number of its schedulers, and with their utilization above.",
            (Query("sum by (NODE) (rate(beam_cpu_seconds_total{HERE}[RATE]))"),),
            more="schedulers",
        ),
        Panel(
            "Reductions",
            "ops",
            "Work that each VM did, in its own measure: about one reduction per function call.",
            "CPU that grows while reductions do not is busy waiting, a NIF, or a CPU that became "
            "slower.",
            (Query("sum by (NODE) (rate(beam_reductions_total{HERE}[RATE]))"),),
            more="schedulers",
        ),
        Panel(
            "Messages received",
            "mps",
            "Messages that processes took out of their mailboxes; from windows where they are many.",
            "the mailboxes show what waits.",
            (Query("sum by (NODE) (rate(beam_messages_received_total{HERE}[RATE]))"),),
            more="processes",
        ),
        Panel(
            "Memory",
            "bytes",
            "Resident memory of each VM.",
            "the dashboard of memory says what grows: heaps of processes, binaries, ETS, code, or "
            "what the allocators keep.",
            (Query("sum by (NODE) (beam_resident_memory_bytes{HERE})"),),
            more="memory",
        ),
        Panel(
            "Processes",
            "short",
            "Erlang processes of each VM.",
            "a line that only rises is a leak: see who is spawned and does not end.",
            (Query("sum by (NODE) (beam_processes{HERE})"),),
            more="processes",
        ),
        firing(),
    ),
)

BOARD = Board(
    "overview",
    "Overview",
    "Is it the application, the VM or the host? Each row answers for one of them; red says where to "
    "look first, and each panel leads to the dashboard with more.",
    (_HOST, _VM, _APPLICATION, _NODES),
)
