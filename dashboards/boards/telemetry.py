# SPDX-License-Identifier: Apache-2.0
"""
What Elixir's libraries report: requests by route, LiveView callbacks, queries, jobs.
"""

from typing import Final

from boards.colours import BLUE, GREEN, ORANGE, SKY, VERMILLION
from boards.records import Board, Panel, Query, Row, bound

_OFF: Final = (
    "Empty where the config has no `[telemetry] series`, and for VMs without the library telemetry."
)
_ESTIMATE: Final = (
    "Figures are of five minutes, because they come some seconds apart, and estimates where "
    "hooks count in windows: see *How good are these figures?* of the board HTTP."
)
_FAILED: Final = 'status=~"5xx|exception"'


def _rate(series: str, labels: str, where: str = "", ending: str = "_count") -> str:
    return f"sum by ({labels}) (rate({series}{ending}{{HERE{where}}}[5m]))"


def _mean(series: str, labels: str) -> str:
    """The mean of a histogram."""
    return f"{_rate(series, labels, ending='_sum')} / ({_rate(series, labels)} > 0)"


def _part(series: str, labels: str, where: str) -> str:
    """The part of the events that have the labels *where*; 0 where none has."""
    every = f"({_rate(series, labels)} > 0)"
    return f"({_rate(series, labels, where)} or 0 * {every}) / {every}"


def _table(title: str, shows: str, act: str, queries: tuple[Query, ...], labels: str) -> Panel:
    names = (("node", "node"), ("instance", "host"), *((name, name) for name in labels.split(", ")))
    return Panel(
        title,
        "short",
        f"{shows} {_ESTIMATE} {_OFF}",
        act,
        queries,
        "table",
        width=24,
        height=10,
        low=None,
        columns=names,
    )


def _red(series: str, labels: str, where: str, slow: tuple[float, float]) -> tuple[Query, ...]:
    """Columns: rate, part that failed, mean duration."""
    by = f"NODE, {labels}"
    return (
        Query(_rate(series, by), "", column="a second", unit="cps"),
        Query(
            _part(series, by, where), "", column="failed", unit="percentunit", warn=0.01, bad=0.05
        ),
        Query(_mean(series, by), "", column="mean", unit="s", warn=slow[0], bad=slow[1]),
    )


def _p99(title: str, what: str, series: str, exponents: tuple[int, int], act: str) -> Panel:
    buckets = f"sum by (NODE, le) (rate({series}_bucket{{HERE}}[5m]))"
    return Panel(
        title,
        "s",
        f"The duration that 99 of 100 {what} do not exceed. A quantile may be off by a factor of 8, the "
        f"width of a bucket. {_OFF}",
        act,
        (Query(f"histogram_quantile(0.99, {buckets}) >= 0"),),
        warn=bound(exponents[0]),
        bad=bound(exponents[1]),
    )


def _each(title: str, what: str, series: str, act: str) -> Panel:
    return Panel(
        title, "cps", f"{what} a second. {_OFF}", act, (Query(_rate(series, "NODE")),), width=8
    )


def _ranking(title: str, shows: str, act: str, expr: str, legend: str) -> Panel:
    return Panel(
        title,
        "cps",
        f"{shows} {_OFF}",
        act,
        (Query(expr, legend, ranked=True),),
        "bars",
        width=24,
    )


_HTTP: Final = "beam_http_request_duration_seconds"
_STATUSES: Final = (("2xx", GREEN), ("3xx", SKY), ("4xx", ORANGE), ("5xx", VERMILLION))

HTTP = Board(
    "http",
    "HTTP",
    "Requests of Phoenix and Plug by route. It needs `[telemetry] series` in the daemon's config.",
    (
        Row(
            "Which route is slow or fails?",
            (
                _table(
                    "Requests by route",
                    "Requests by route and method, the part that failed (a status of 500 or more, or an "
                    "exception) and the mean duration; `other` are routes, and ways to end, without a name of "
                    "their own.",
                    "`scope-trace requests PID --route ROUTE` shows the slowest ones as trees, down to the "
                    "queries.",
                    _red(_HTTP, "route, method", f", {_FAILED}", (0.5, 1)),
                    "route, method",
                ),
                _ranking(
                    "Exceptions by route",
                    "Requests a second that ended in an exception, by what names it.",
                    "`scope-trace requests PID` has every failed request with its exception.",
                    """topk by (NODE) (10,
                        sum by (NODE, route, exception) (rate(beam_http_exceptions_total{HERE}[5m])))""",
                    "{{exception}} in {{route}} NODE",
                ),
                Panel(
                    "CPU by route",
                    "percentunit",
                    "CPU of Erlang processes by the request, callback or job that they work on, as parts of one CPU: "
                    f"samples, without what a request has done by other processes. {_ESTIMATE} {_OFF}",
                    "`scope-trace profile PID --by route` has the functions of each.",
                    (
                        Query(
                            """topk by (NODE) (10, sum by (NODE, kind, route, callback)
                                (rate(beam_route_cpu_seconds_total{HERE}[5m])))""",
                            "{{kind}} {{route}} {{callback}} NODE",
                            ranked=True,
                        ),
                    ),
                    "bars",
                    width=24,
                ),
            ),
        ),
        Row(
            "Requests of each node",
            (
                _each(
                    "Requests",
                    "Requests that have a route,",
                    _HTTP,
                    "compare with the responses beside: what has no route is in them alone.",
                ),
                _p99(
                    "99 of 100 requests",
                    "requests",
                    _HTTP,
                    (29, 32),
                    "the table above has the route; the boards Database and Schedulers say whether it "
                    "waits for queries or for a CPU.",
                ),
                Panel(
                    "Responses by status",
                    "cps",
                    "Responses a second by class of status, as the endpoint or the server reports them: a node "
                    f"of both counts each response twice. {_OFF}",
                    "4xx are the clients' mistakes, 5xx are ours: the table above has their routes.",
                    tuple(
                        Query(
                            f"""sum(rate(beam_http_responses_total{{HERE, status="{status}"}}[5m]))
                                or 0 * sum(rate(beam_http_responses_total{{HERE}}[5m]))""",
                            status,
                            hue,
                        )
                        for status, hue in _STATUSES
                    ),
                    stack=True,
                ),
            ),
        ),
        Row(
            "How good are these figures?",
            (
                Panel(
                    "Possible error of counts",
                    "percentunit",
                    "Error, with 95% confidence, of the counts of the last minute: the worst of requests, "
                    f"callbacks, queries, jobs and other events. {_OFF}",
                    "raise the budget, or live with estimates: they are right on average.",
                    (Query("max by (NODE) (scope_ebpf_telemetry_error_ratio{HERE})"),),
                    warn=0.2,
                    bad=0.5,
                ),
                Panel(
                    "Time in which events were counted",
                    "percentunit",
                    f"Part of the last minute in which hooks were attached. {_OFF}",
                    "the node emits more events, or looks up more in ETS tables, than the budget pays for.",
                    (Query("min by (NODE) (scope_ebpf_telemetry_sampling_ratio{HERE})"),),
                    high=1,
                ),
                Panel(
                    "Events that were not read in full",
                    "cps",
                    "Events a second without a label, a measurement or a row of their own. "
                    f"`scope-trace telemetry PID` has the reasons. {_OFF}",
                    "large_map: metadata of more than 32 keys is not read; overflow: too many labels.",
                    (Query(_rate("scope_ebpf_telemetry_undecoded_total", "NODE", ending="")),),
                ),
                _ranking(
                    "Events by name",
                    "The most frequent events of telemetry.",
                    "an event that nobody needs, emitted often, costs the node its CPU.",
                    """topk by (NODE) (10,
                        sum by (NODE, event) (rate(beam_telemetry_events_total{HERE}[5m])))""",
                    "{{event}} NODE",
                ),
            ),
            folded=True,
        ),
    ),
)

_VIEWS: Final = "beam_live_view_duration_seconds"
_BY_CALLBACK: Final = "NODE, view, callback, event"

LIVE_VIEW = Board(
    "liveview",
    "LiveView",
    "Callbacks of LiveViews and components. It needs `[telemetry] series` in the daemon's config.",
    (
        Row(
            "Which callback is slow or fails?",
            (
                _table(
                    "Callbacks by view",
                    "Callbacks of each view or component, by the event that a browser sent.",
                    "a view handles one message after the other: what a callback takes, all its user's events "
                    "wait. Move work to a task, or assign less.",
                    (
                        Query(_rate(_VIEWS, _BY_CALLBACK), "", column="a second", unit="cps"),
                        Query(
                            _mean(_VIEWS, _BY_CALLBACK),
                            "",
                            column="mean",
                            unit="s",
                            warn=0.1,
                            bad=0.5,
                        ),
                    ),
                    "view, callback, event",
                ),
                _ranking(
                    "Exceptions by callback",
                    "Callbacks a second that ended in an exception, which also ends the view.",
                    "`scope-trace requests PID` has every failed callback with its exception.",
                    """topk by (NODE) (10, sum by (NODE, view, callback, exception)
                        (rate(beam_live_view_exceptions_total{HERE}[5m])))""",
                    "{{exception}} in {{view}} {{callback}} NODE",
                ),
            ),
        ),
        Row(
            "Callbacks of each node",
            (
                _each(
                    "Callbacks",
                    "Callbacks of all views",
                    _VIEWS,
                    "renders that no user asked for come from messages to the view.",
                ),
                _p99(
                    "99 of 100 callbacks",
                    "callbacks",
                    _VIEWS,
                    (26, 29),
                    "the table above has the view and the event.",
                ),
            ),
        ),
    ),
)

_QUERIES: Final = "beam_db_query_duration_seconds"
_WAITED: Final = """
    sum by (NODE) (rate(beam_db_queue_seconds_total{HERE}[5m]))
        / (sum by (NODE) (rate(beam_db_queue_waits_total{HERE}[5m])) > 0)"""

DATABASE = Board(
    "database",
    "Database",
    "Queries of Ecto. It needs `[telemetry] series` in the daemon's config.",
    (
        Row(
            "Which query is slow?",
            (
                _table(
                    "Queries by table",
                    "Queries by repository and source, with the time in the queue of the pool.",
                    "`scope-trace requests PID` shows which requests make the slow queries.",
                    _red(_QUERIES, "repo, source", ', result="error"', (0.1, 0.5)),
                    "repo, source",
                ),
            ),
        ),
        Row(
            "Queries of each node",
            (
                Panel(
                    "Wait for a connection",
                    "s",
                    f"How long a query waits for a connection of the pool, on average. {_OFF}",
                    "the pool is too small for the load, or connections are held too long: by slow queries, "
                    "or by transactions that do other work.",
                    (Query(_WAITED),),
                    warn=0.02,
                    bad=0.1,
                ),
                _p99(
                    "99 of 100 queries",
                    "queries",
                    _QUERIES,
                    (26, 29),
                    "the table above has the source; if it is the wait, see the panel beside.",
                ),
                _each(
                    "Queries",
                    "Queries of all repositories",
                    _QUERIES,
                    "many more than requests: a list is read one by one; preload it.",
                ),
            ),
        ),
    ),
)

_JOBS: Final = "beam_job_duration_seconds"

JOBS = Board(
    "jobs",
    "Jobs",
    "Jobs of Oban. It needs `[telemetry] series` in the daemon's config.",
    (
        Row(
            "Which worker is slow or fails?",
            (
                _table(
                    "Jobs by worker",
                    "Jobs by worker and queue, the part that failed or was discarded, and the mean duration.",
                    "`scope-trace requests PID` has every failed job with its exception.",
                    _red(_JOBS, "worker, queue", ', state=~"failure|discard.*"', (10, 60)),
                    "worker, queue",
                ),
            ),
        ),
        Row(
            "Queues of jobs",
            (
                Panel(
                    "Wait of jobs until they are begun",
                    "s",
                    f"From the time for which a job was scheduled, on average. It grows with the queue. {_OFF}",
                    "more jobs come than are done: raise the queue's limit, add a node, or make the worker "
                    "of the table above faster.",
                    (
                        Query(
                            """sum by (NODE) (rate(beam_job_queue_seconds_total{HERE}[5m]))
                                / (sum by (NODE) (rate(beam_job_queue_waits_total{HERE}[5m])) > 0)""",
                        ),
                    ),
                    warn=10,
                    bad=60,
                    width=12,
                ),
                Panel(
                    "Jobs by state",
                    "cps",
                    "Jobs a second by state, without `other`: those whose labels the kernel had no room for, and "
                    f"rare states of workers without a name. {_OFF}",
                    "failures are tried again, which is more work: the table above has their workers.",
                    (
                        Query(
                            f'sum(rate({_JOBS}_count{{HERE, state="success"}}[5m]))',
                            "success",
                            BLUE,
                        ),
                        Query(
                            f'sum(rate({_JOBS}_count{{HERE, state!~"success|other"}}[5m]))',
                            "others",
                            VERMILLION,
                        ),
                    ),
                    width=12,
                    stack=True,
                ),
            ),
        ),
    ),
)
