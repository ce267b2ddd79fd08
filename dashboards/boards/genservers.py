# SPDX-License-Identifier: Apache-2.0
"""
GenServers: which server is the bottleneck, who waits for it, and what its module's servers do.
"""

from typing import Final

from boards.records import Board, Panel, Query, Row

#: The part of the time for which servers of a module were busy, on average of its servers. Looks at an
#: idle VM may be a minute apart, so rates are of ten minutes.
_BUSY: Final = """
    sum by (NODE, module) (rate(beam_server_busy_seconds_total{HERE}[10m]))
        / (sum by (NODE, module) (beam_server_processes{HERE}) > 0)"""
_OFF: Final = "Empty where the config has no `[genservers] series`."

_MODULES = Row(
    "Which server is the bottleneck?",
    (
        Panel(
            "Servers by module",
            "short",
            "Servers by callback module: those that are most waited for or busiest have a name, the others "
            f"are `other`. {_OFF}",
            "a module that is busy nearly all the time while callers wait is the bottleneck: "
            "`scope-trace genservers PID` says where it spends its time and for whom it waits itself.",
            (
                Query(
                    _BUSY,
                    "",
                    column="utilization",
                    unit="percentunit",
                    warn=0.7,
                    bad=0.9,
                ),
                Query(
                    "sum by (NODE, module) (beam_server_waiting_callers{HERE})",
                    "",
                    column="callers that wait",
                    warn=1,
                    bad=10,
                ),
                Query(
                    "sum by (NODE, module) (beam_server_processes{HERE})",
                    "",
                    column="processes",
                ),
                Query(
                    "max by (NODE, module) (beam_server_mailbox_messages{HERE})",
                    "",
                    column="longest mailbox",
                    warn=1000,
                    bad=10_000,
                ),
            ),
            "table",
            width=24,
            height=10,
            low=None,
            columns=(("node", "node"), ("instance", "host"), ("module", "module")),
        ),
        Panel(
            "Time that callers wait, by modules",
            "percentunit",
            "For how long processes of one module waited for the replies of another, all together: 300% is "
            f"three callers all the time. On average of ten minutes. {_OFF}",
            "shorten what the called module does for each call, spread it over several servers, or let "
            "callers cast where they need no reply.",
            (
                Query(
                    """topk by (NODE) (10, sum by (NODE, caller, callee)
                        (rate(beam_server_blocked_seconds_total{HERE}[10m])))""",
                    "{{caller}} waits for {{callee}} NODE",
                    ranked=True,
                ),
            ),
            "bars",
            warn=1,
            bad=5,
            width=24,
        ),
    ),
)

_NODES = Row(
    "Servers of each node",
    (
        Panel(
            "Callers that wait",
            "short",
            f"Processes that waited for the reply of a server at the last look. {_OFF}",
            "see above for whom. A look at a large VM reads a part of it, so that this is an estimate.",
            (Query("sum by (NODE) (beam_server_waiting_callers{HERE})"),),
            width=12,
        ),
        Panel(
            "Busy servers",
            "short",
            f"How many servers were busy on average of ten minutes: in a callback, or waiting within one. {_OFF}",
            "compare with the schedulers' utilization: servers that are busy while schedulers idle wait "
            "for something, such as another server, a port or a timer.",
            (Query("sum by (NODE) (rate(beam_server_busy_seconds_total{HERE}[10m]))"),),
            width=12,
        ),
        Panel(
            "Calls whose callers gave up",
            "short",
            "Of the calls that looks found in the longest mailboxes in ten minutes, those whose caller had given up, "
            f"or had ended: a sample, there are more. {_OFF}",
            "`scope-trace genservers PID --budget none` counts every timeout (FAIL) and every call that was "
            "taken too late (LATE), by module.",
            (Query("sum by (NODE) (increase(beam_server_abandoned_requests_total{HERE}[10m]))"),),
            width=12,
        ),
        Panel(
            "Calls that were seen waiting",
            "short",
            f"Calls that looks found in the longest mailboxes in ten minutes, each once. {_OFF}",
            "compare with those whose callers gave up: of these the servers do work for nobody.",
            (Query("sum by (NODE) (increase(beam_server_seen_requests_total{HERE}[10m]))"),),
            width=12,
        ),
    ),
    folded=True,
)

_MARKS_OFF: Final = "Empty where the config has no `[marks] series`, and for VMs without code that scope-mark has marked."
#: Windows of marks are some seconds apart.
_MARKED: Final = "sum by (NODE, function) (rate(beam_marked_{}_total{{HERE}}[10m]))"


def _per(above: str, below: str) -> str:
    """What the counter *above* rises by for one of *below*."""
    return f"{_MARKED.format(above)} / ({_MARKED.format(below)} > 0)"


_CALLBACKS = Row(
    "Which marked callback is slow or fails?",
    (
        Panel(
            "Marked callbacks",
            "short",
            "Calls of callbacks, the part of them that an exception ended, and the mean duration of calls within "
            f"a window of 0.1 s; estimates of ten minutes. {_MARKS_OFF}",
            "`scope-trace marks PID` has the distribution of the durations, callers, and the messages' tags.",
            (
                Query(_MARKED.format("calls"), "", column="a second", unit="cps"),
                Query(
                    _per("failures", "calls"),
                    "",
                    column="failed",
                    unit="percentunit",
                    warn=0.01,
                    bad=0.05,
                ),
                Query(_per("duration_seconds", "timed_calls"), "", column="mean", unit="s"),
            ),
            "table",
            width=24,
            height=10,
            low=None,
            columns=(("node", "node"), ("instance", "host"), ("function", "function")),
        ),
        Panel(
            "Possible error of the calls",
            "percentunit",
            f"Standard error of the number of calls in the last twelve windows, as a part of it. {_MARKS_OFF}",
            "raise the budget, or mark fewer modules.",
            (Query("max by (NODE) (scope_ebpf_marks_error_ratio{HERE})"),),
            width=12,
            warn=0.2,
            bad=0.5,
        ),
        Panel(
            "Time in which callbacks were counted",
            "percentunit",
            f"Part of the time in which hooks of marks were attached. {_MARKS_OFF}",
            "callbacks that are called more often leave less time within the budget.",
            (Query("min by (NODE) (scope_ebpf_marks_sampling_ratio{HERE})"),),
            width=12,
            high=1,
        ),
    ),
    folded=True,
)

BOARD = Board(
    "genservers",
    "GenServers",
    "Servers by callback module: how busy they are, who waits for whom. It needs `[genservers] series` in "
    "the daemon's config; marked callbacks need `[marks] series`.",
    (_MODULES, _NODES, _CALLBACKS),
)
