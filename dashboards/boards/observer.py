# SPDX-License-Identifier: Apache-2.0
"""
The observer itself: what does looking cost, and how good are the figures?
"""

from boards.colours import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, YELLOW
from boards.records import Board, Panel, Query, Row

#: The daemon's own series have no node.
_DAEMON = 'instance=~"$host"'

_TRUST = Row(
    "Can the figures be trusted?",
    (
        Panel(
            "Budget spent",
            "percentunit",
            "The share of the budget that is spent.",
            "see the panel beside: more than all of it for minutes means that the daemon does not "
            "get the CPU to hold it.",
            (
                Query(
                    """sum by (NODE) (scope_ebpf_overhead_ratio{HERE})
                        / sum by (NODE) (scope_ebpf_budget_ratio{HERE})"""
                ),
            ),
            warn=1,
            bad=1.2,
            kind="stat",
            width=6,
            height=4,
        ),
        Panel(
            "Hooks that cannot be had",
            "short",
            "Events that cannot be observed in a VM.",
            "`scope-trace doctor PID` says why; often the VM's symbols are hidden (OTP 29).",
            (
                Query(
                    """count by (NODE) (scope_ebpf_sampling_ratio{HERE} == 0
                            unless on (NODE, hook) scope_ebpf_sampling_error_ratio{HERE})
                        or 0 * sum by (NODE) (scope_ebpf_sampling_ratio{HERE})"""
                ),
            ),
            warn=1,
            bad=5,
            kind="stat",
            width=6,
            height=4,
        ),
        Panel(
            "Unavailable parts",
            "short",
            "Parts of a VM that are unavailable: counters, dirty_collections, processes, "
            "allocators, connections, threads, samples. 0 if there is none.",
            "the daemon's log has the reason; often the VM's release is not known, or it ended "
            "meanwhile.",
            (
                Query(
                    "sum by (NODE) (scope_ebpf_refused{HERE})"
                    " or 0 * sum by (NODE) (scope_ebpf_budget_ratio{HERE})"
                ),
            ),
            warn=1,
            bad=1,
            kind="stat",
            width=6,
            height=4,
        ),
        Panel(
            "Age of the snapshot",
            "s",
            "How long ago the older of two was read: the process table (mailboxes and rankings), or "
            "allocators and connections.",
            "what is large is read rarely, more so beside many VMs. If it only rises, it "
            "cannot be read: `scope-trace doctor PID`.",
            (
                Query(
                    """time() - min by (NODE) (max by (NODE, what)
                        (scope_ebpf_snapshot_timestamp_seconds{HERE}))"""
                ),
            ),
            warn=300,
            bad=1800,
            kind="stat",
            width=6,
            height=4,
        ),
    ),
)

_COST = Row(
    "What it costs",
    (
        Panel(
            "CPU taken from the VM, and what it may be",
            "percentunit",
            "CPU that hooks took from each VM, as a share of what it used in the last minute, and "
            "the budget.",
            "the daemon comes too late to take hooks out: it needs CPU (a higher priority), or a "
            "smaller budget.",
            (
                Query("sum by (NODE) (scope_ebpf_overhead_ratio{HERE})"),
                Query("max(scope_ebpf_budget_ratio{HERE})", "budget", VERMILLION),
            ),
        ),
        Panel(
            "CPU of the hooks",
            "suffix: CPU",
            "CPUs that hits of hooks took from each VM: hits, times what a hit costs on this host.",
            "it follows the VM's CPU, by the budget.",
            (Query("sum by (NODE) (rate(scope_ebpf_hook_cpu_seconds_total{HERE}[RATE]))"),),
        ),
        Panel(
            "What observing costs in all",
            "percentunit",
            "CPU of the hooks and of the daemon together, as a share of what all VMs of the host "
            "used. It is meant for VMs that use at least some tenths of a CPU: the daemon takes a "
            "little beside idle ones as well. Less than a fifth of a CPU counts as that much.",
            "the panels below say which of the two it is. A smaller budget makes both less; "
            "`exclude_*` leaves VMs alone.",
            (
                Query(
                    f"""(sum by (instance) (rate(scope_ebpf_cpu_seconds_total{{{_DAEMON}}}[RATE]))
                        + sum by (instance) (rate(
                        scope_ebpf_hook_cpu_seconds_total{{{_DAEMON}}}[RATE])))
                        / clamp_min(sum by (instance) (rate(
                        beam_cpu_seconds_total{{{_DAEMON}}}[RATE])), 0.2)""",
                    "{{instance}}",
                ),
            ),
            warn=0.02,
            bad=0.04,
        ),
        Panel(
            "CPU of the daemon",
            "suffix: CPU",
            "CPUs that the daemon and the process that holds its breakpoints used, and of that what "
            "looking for VMs takes; of all chosen hosts together.",
            "many VMs, or many windows: a smaller budget makes windows rarer, `exclude_*` leaves VMs "
            "alone. Reading process tables is held to 0.4 % of a CPU whatever snapshot_interval is.",
            (
                Query(
                    f"sum(rate(scope_ebpf_cpu_seconds_total{{{_DAEMON}}}[RATE]))",
                    "all",
                ),
                Query(
                    f"sum(rate(scope_ebpf_scan_seconds_total{{{_DAEMON}}}[RATE]))",
                    "looking for VMs",
                    ORANGE,
                ),
            ),
            warn=0.1,
            bad=0.3,
        ),
        Panel(
            "Memory of the daemon",
            "bytes",
            "Resident memory of the daemon and of the process that holds its breakpoints; flat, "
            "however long they run.",
            "it grows: restart it, and say to its developers what kind of VMs it looked at.",
            (
                Query(
                    f"sum by (instance) (scope_ebpf_resident_memory_bytes{{{_DAEMON}}})",
                    "{{instance}}",
                    GREEN,
                ),
            ),
            warn=120 * 2**20,
            bad=250 * 2**20,
        ),
        Panel(
            "VMs",
            "short",
            "VMs that are observed, and those that were found and are refused.",
            "the daemon's page at / says why a VM is refused.",
            (
                Query(f"sum(scope_ebpf_targets{{{_DAEMON}}})", "observed"),
                Query(f"sum(scope_ebpf_targets_refused{{{_DAEMON}}})", "refused", VERMILLION),
            ),
        ),
    ),
)

_QUALITY = Row(
    "How good the figures are",
    (
        Panel(
            "Time in which each event was counted",
            "percentunit",
            "The share of the last minute in which the event's hooks were attached; 100 % means that "
            "the counts are exact, 0 that the event cannot be observed. The lowest of the chosen nodes.",
            "this event is frequent and counted in windows. Its rates are estimates; their error is "
            "beside.",
            (Query("min by (hook) (scope_ebpf_sampling_ratio{HERE})", "{{hook}}"),),
            "bars",
            high=1,
            warn=1,
            bad=0.001,
            falling=True,
            height=10,
        ),
        Panel(
            "Error of rates from windows",
            "percentunit",
            "Possible relative error of a rate, in 95 of 100 cases; 100 % means that too little was "
            "seen for an estimate. Empty if every event is always counted. The largest of the chosen "
            "nodes.",
            "take this event's rates as a hint only. A larger budget gives more windows.",
            (
                Query(
                    "max by (hook) (scope_ebpf_sampling_error_ratio{HERE})",
                    "{{hook}}",
                ),
            ),
            "bars",
            high=1,
            warn=0.1,
            bad=0.5,
            height=10,
        ),
        Panel(
            "Time in which threads were watched",
            "percentunit",
            "The share of the time in which the scheduler's tracepoints were attached; the rest is "
            "estimated from the rates in that time.",
            "it is low where threads of the VMs sleep and wake very often; times of threads are then "
            "estimates. A larger budget watches them for longer.",
            (
                Query(
                    f"clamp_max(rate(scope_ebpf_tracepoints_attached_seconds_total{{{_DAEMON}}}[RATE]), 1)",
                    "{{instance}}",
                ),
            ),
            high=1,
            height=10,
        ),
    ),
)

_LOST = Row(
    "Seldom: lost, refused, held back",
    (
        Panel(
            "Lost and refused",
            "eps",
            "Hits at which the kernel did not run the BPF program, since another was running on that "
            "CPU; and readings of the VM's memory that failed (in a probe: kernel, by the sampling "
            "timer: clock, in the daemon: user), per second.",
            "counts are too low by what is lost: see which other tools use BPF on this host. Reads "
            "fail where pages of the VM are away (see major page faults), or where it is not what "
            "we take it for (`scope-trace doctor PID`).",
            (
                Query(
                    "sum(rate(scope_ebpf_events_lost_total{HERE}[RATE]))",
                    "lost",
                    VERMILLION,
                ),
                Query(
                    "sum by (where) (rate(scope_ebpf_reads_refused_total{HERE}[RATE]))",
                    "refused ({{where}})",
                    ORANGE,
                ),
            ),
            warn=0.01,
            bad=1,
            hues=(("^lost", VERMILLION), ("kernel", ORANGE), ("user", YELLOW), ("clock", SKY)),
        ),
        Panel(
            "Which parts are unavailable",
            "none",
            "Parts of a VM that are unavailable, by node: counters, dirty_collections, processes, "
            "allocators, connections, threads, samples, or an event.",
            "the daemon's log has the reason; often the VM's release is not known.",
            (
                Query(
                    """sum by (NODE, what) (scope_ebpf_refused{HERE})
                        or on () label_replace(vector(0), "what", "none", "", "")""",
                    "",
                ),
            ),
            kind="table",
            low=None,
            columns=(("node", "node"), ("instance", "host"), ("what", "part")),
        ),
        Panel(
            "Errors and refused configurations",
            "short",
            "Things that went wrong in the daemon and were logged, and configurations that it "
            "would not take, in the last ten minutes.",
            "the daemon's log has the cause: `journalctl -u scope-ebpfd`.",
            (
                Query(
                    f"sum by (where) (increase(scope_ebpf_errors_total{{{_DAEMON}}}[10m]))",
                    "{{where}}",
                    ORANGE,
                ),
                Query(
                    f"""sum(increase(
                        scope_ebpf_config_reloads_total{{{_DAEMON}, result="refused"}}[10m]))""",
                    "config",
                    VERMILLION,
                ),
            ),
            warn=1,
            bad=5,
            hues=(
                ("^http", YELLOW),
                ("^watch", ORANGE),
                ("^snapshot", SKY),
                ("^config", VERMILLION),
            ),
        ),
        Panel(
            "Runs that the kernel left out",
            "ops",
            "Times a second that the kernel did not run a BPF program, since another was under way on "
            "that CPU; the largest ten.",
            "what it counts is too low by so many. See which other tools use BPF on this host.",
            (
                Query(
                    f"""topk(10, sum by (program)
                        (rate(scope_ebpf_program_misses_total{{{_DAEMON}}}[RATE])))""",
                    "{{program}}",
                    ranked=True,
                ),
            ),
            "bars",
        ),
        Panel(
            "Processes that could not be read",
            "short",
            "Processes that changed faster than they could be read, in the last snapshot.",
            "a few are normal on a busy node. Many are a VM that spawns as fast as it can.",
            (Query("sum by (NODE) (scope_ebpf_snapshot_torn_processes{HERE})"),),
        ),
        Panel(
            "Held back",
            "short",
            "What VMs may not take more of, in the last hour: new names of nodes, new names in "
            "rankings, lines of the log; and VMs that a scrape leaves out, and looks that hang, now.",
            "a node that is renamed all the time, or processes with ever new names, would be new "
            "series each time. max_series is how many a scrape may have.",
            (
                Query(
                    f"sum(increase(scope_ebpf_renames_held_total{{{_DAEMON}}}[1h]))",
                    "renames",
                ),
                Query(
                    f"sum(increase(scope_ebpf_top_names_held_total{{{_DAEMON}}}[1h]))",
                    "in rankings",
                    SKY,
                ),
                Query(
                    f"sum(increase(scope_ebpf_log_lines_held_total{{{_DAEMON}}}[1h]))",
                    "log lines",
                    YELLOW,
                ),
                Query(
                    f"sum(scope_ebpf_targets_left_out{{{_DAEMON}}})",
                    "left out",
                    VERMILLION,
                ),
                Query(f"sum(scope_ebpf_looks_hanging{{{_DAEMON}}})", "looks", PURPLE),
            ),
        ),
    ),
    folded=True,
)

_HOW = Row(
    "Programs, readings and looks",
    (
        Panel(
            "Run time of BPF programs",
            "suffix: CPU",
            "CPUs that each BPF program took, without the trap that leads to it; the largest ten.",
            "which event costs most. The trap of a hook in the VM is more than its program.",
            (
                Query(
                    f"""topk(10, sum by (program)
                        (rate(scope_ebpf_program_run_seconds_total{{{_DAEMON}}}[RATE])))""",
                    "{{program}}",
                    ranked=True,
                ),
            ),
            "bars",
            width=12,
            height=10,
        ),
        Panel(
            "Runs of BPF programs",
            "ops",
            "Runs of each BPF program, a second; the largest ten.",
            "which event comes most often.",
            (
                Query(
                    f"""topk(10, sum by (program)
                        (rate(scope_ebpf_program_runs_total{{{_DAEMON}}}[RATE])))""",
                    "{{program}}",
                    ranked=True,
                ),
            ),
            "bars",
            width=12,
            height=10,
        ),
        Panel(
            "Error of busy waiting",
            "percentunit",
            "By how much the share of busy waiting in the CPU time of the last minute may be off, in "
            "95 of 100 cases. It is large where a VM uses little CPU, and that is no fault.",
            "the clock found the VM seldom on a CPU: look at a longer time.",
            (Query("max by (NODE) (scope_ebpf_busy_wait_error_ratio{HERE})"),),
            "stat",
            height=6,
        ),
        Panel(
            "Cost of a hit",
            "s",
            "CPU that one hit takes from a VM on this host, at the entry of a function or its "
            "return; measured when the daemon starts.",
            "some virtual machines make breakpoints dear. The budget holds all the same, with "
            "fewer windows.",
            (
                Query(
                    f"max by (at) (scope_ebpf_hit_cost_seconds{{{_DAEMON}}})",
                    "{{at}}",
                    SKY,
                ),
            ),
            warn=5e-6,
            bad=2e-5,
            hues=(("^entry", SKY), ("^return", GREEN)),
            height=6,
        ),
        Panel(
            "Reading a process table",
            "s",
            "CPU time of the last reading of each VM's process table.",
            "see how many processes the VM has. The longer it takes, the rarer it is done; "
            "`exclude_*` leaves a VM alone.",
            (Query("sum by (NODE) (scope_ebpf_snapshot_cpu_seconds{HERE})"),),
            height=6,
        ),
        Panel(
            "Looks into processes",
            "cps",
            "Looks into processes that call a thread as a VM does its first scheduler, by what came "
            "out. Those of a program that was refused before are spared.",
            "many of no_beam, refused or spared: something on this host calls itself a VM. Each user "
            "has 2 % of a core for it.",
            (
                Query(
                    f"sum by (result) (rate(scope_ebpf_looks_total{{{_DAEMON}}}[RATE]))",
                    "{{result}}",
                ),
            ),
            width=16,
            height=6,
        ),
        Panel(
            "VMs that came",
            "short",
            "VMs whose observation began, in the last hour.",
            "more than are deployed: a VM starts again and again.",
            (
                Query(
                    f"increase(scope_ebpf_targets_seen_total{{{_DAEMON}}}[1h])",
                    "{{instance}}",
                    BLUE,
                ),
            ),
            height=6,
        ),
        Panel(
            "Windows and trips",
            "ops",
            "Windows in which the hooks of frequent events were attached, and times an event used up "
            "its quota and its hooks were detached, per second.",
            "many trips are a load that jumps. The counts of such a second are estimates.",
            (
                Query("sum(rate(scope_ebpf_windows_total{HERE}[RATE]))", "windows"),
                Query(
                    "sum(rate(scope_ebpf_trips_total{HERE}[RATE]))",
                    "trips",
                    ORANGE,
                ),
            ),
            width=24,
            height=6,
        ),
    ),
    folded=True,
)

BOARD = Board(
    "observer",
    "The observer itself",
    "What looking costs the VMs and the host, how good the figures are, and what was lost or refused.",
    (_TRUST, _COST, _QUALITY, _LOST, _HOW),
)
