# SPDX-License-Identifier: Apache-2.0
"""
One scene for all tests here: the daemon watches RabbitMQ under load, Prometheus scrapes both.

What was answered is kept: the tests ask the answers, not the machine.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import asked
import beams_run
import witness
from prometheus import prometheus

sys.path.insert(0, str(Path(__file__).parents[1] / "kernel"))

import test_daemon
import test_daemon_threads
from apps.rabbitmq import rabbitmq

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from apps.app import App
    from prometheus import Prometheus

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
#: Seconds of load before the dashboards are looked at: what they show of it.
SHOWN = 25
#: How many points of a panel there are at least, a second apart.
LEAST_SHOWN = 8
#: A budget that leaves many windows in a short time; that it holds is shown elsewhere.
CONFIG = """
scan_interval = "200ms"
min_age = 0
snapshot_interval = "1s"
findings_interval = "5s"
genservers = {series = 60}
marks = {series = 60}
telemetry = {series = 500}
budget = "30%"
include_nodes = ["^rabbit@localhost$"]
compat = ["erlang-vm"]
"""
#: CPUs that RabbitMQ may use: a quota has series of its own, and this one is hardly ever used up.
QUOTA = 4.0
#: Bytes of memory that it may use: a limit has series of its own, and this one is never near.
LIMIT = 8 << 30
#: A process that reads nothing, and what waits for it; one whose children end at once; and one that
#: holds a binary of 32 MB and a table of 16 MB, so that neither kind of memory is next to nothing.
#: And a node that it is connected to, which ends with it. And two that wait for each other's reply.
DEAF, WAITING = "scope_deaf", 2300
PLANT = f"""
    begin
        register({DEAF}, spawn(fun() -> receive never -> ok end end)),
        [{DEAF} ! planted || _ <- lists:seq(1, {WAITING})],
        spawn(fun Spawn() -> spawn(fun() -> ok end), receive after 100 -> Spawn() end end),
        spawn(fun() ->
            Held = {{ets:new(scope_held, []), binary:copy(<<0>>, 32 bsl 20)}},
            [ets:insert(element(1, Held), {{I, lists:seq(1, 100)}}) || I <- lists:seq(1, 10000)],
            receive never -> Held end
        end),
        Calls = fun() -> receive {{call, Other}} -> gen_server:call(Other, ask, infinity) end end,
        {{One, Two}} = {{spawn(Calls), spawn(Calls)}},
        One ! {{call, Two}},
        Two ! {{call, One}},
        Loopback = ["-kernel", "inet_dist_use_interface", "{{127,0,0,1}}"],
        {{ok, _, _}} = peer:start(#{{name => scope_peer, args => Loopback}}),
        done
    end"""
#: What applications report to telemetry, twenty times a second, and with failures among it.
TELLING = """
    begin
        true = code:add_patha("PATH"),
        telemetry:start(),
        Module = fun(Name) -> list_to_atom("Elixir." ++ Name) end,
        Socket = #{view => Module("ShopWeb.CartLive")},
        Conn = fun(Status) -> #{status => Status, method => <<"GET">>} end,
        Job = #{worker => <<"Shop.Mailer">>, queue => <<"default">>},
        Error = #{'__struct__' => Module("KeyError"), '__exception__' => true},
        Query = #{type => ecto_sql_query, repo => Module("Shop.Repo"), source => <<"carts">>},
        Shown = [
            {[phoenix, router_dispatch, stop], #{route => <<"/carts">>, conn => Conn(200)}},
            {[phoenix, router_dispatch, stop], #{route => <<"/carts">>, conn => Conn(503)}},
            {[phoenix, router_dispatch, exception],
                #{route => <<"/carts">>, conn => Conn(nil), reason => Error}},
            {[phoenix, live_view, handle_event, stop], #{socket => Socket, event => <<"add">>}},
            {[phoenix, live_view, mount, exception], #{socket => Socket, reason => Error}},
            {[shop, repo, query], Query#{result => {ok, 1}}},
            {[shop, repo, query], Query#{result => {error, 1}}},
            {[oban, job, stop], #{job => Job, state => success}},
            {[oban, job, exception], #{job => Job, state => failure}}
            | [{[phoenix, endpoint, stop], #{conn => Conn(S)}} || S <- [200, 302, 404, 500]]
        ],
        Times = #{duration => 5000000, total_time => 3000000, queue_time => 1000000},
        spawn(fun Tell() ->
            [telemetry:execute(Name, Times, Metadata) || {Name, Metadata} <- Shown],
            receive after 50 -> Tell() end
        end),
        done
    end"""
#: A server whose callbacks are marked, called two hundred times a second.
CALLING = """
    begin
        true = code:add_patha("PATH"),
        {ok, Server} = gen_server:start(counted, [], []),
        spawn(fun Call() ->
            gen_server:call(Server, {planted, x}),
            receive after 5 -> Call() end
        end),
        done
    end"""
#: Rates and the deaf one's mailbox are in the second look at the processes that we take; a check
#: that was begun after they were planted has found them; and callers were seen waiting for a while.
LOOKED_TWICE = f"""
    max by (instance, node) (beam_top_reductions_per_second{{rank="1"}})
    and on (instance, node) instance_node_name:beam_mailbox_messages:max{{name="{DEAF}"}}
    and on (instance, node) beam_finding{{kind="mailbox"}}
    and on (instance, node) beam_finding{{kind="deadlock"}}
    and on (instance, node) rate(beam_server_blocked_seconds_total{{callee!="other"}}[1m]) > 0
    and on (instance, node) rate(beam_job_queue_waits_total{{queue!="other"}}[1m]) > 0
    and on (instance, node) rate(beam_live_view_exceptions_total{{view!="other"}}[1m]) > 0
    and on (instance, node) rate(beam_marked_timed_calls_total{{function!="other"}}[1m]) > 0"""
#: What RabbitMQ has of its client, which ends with the connection: until then it does not rest.
AT_REST = "rabbit_amqqueue:count() =:= 0 andalso rabbit_networking:connections() =:= []"
#: As many processes that want a scheduler all the time, until a deadline; and what the VM says.
#: Compiled: a fun of the shell makes garbage, and would wait for a dirty scheduler to collect it.
BUSY = 23
PLANT_BUSY = f"""
    begin
        Form = fun(Text) ->
            {{ok, Tokens, _}} = erl_scan:string(Text),
            {{ok, Parsed}} = erl_parse:parse_form(Tokens),
            Parsed
        end,
        {{ok, Module, Code}} = compile:forms([Form(Text) || Text <- [
            "-module(scope_spin).",
            "-export([until/1]).",
            "until(End) -> erlang:monotonic_time(millisecond) < End andalso until(End)."
        ]]),
        {{module, Module}} = code:load_binary(Module, "scope_spin", Code),
        End = erlang:monotonic_time(millisecond) + 120000,
        [spawn(Module, until, [End]) || _ <- lists:seq(1, {BUSY})],
        erlang:yield(),
        erlang:statistics(total_run_queue_lengths)
    end"""


#: Beginnings of series that are there a while after the load has begun.
LATE = (
    "beam_process_lifetime",
    "beam_http_",
    "beam_live_view_",
    "beam_db_",
    "beam_job_",
    "scope_ebpf_marks_",
)


@dataclass(frozen=True)
class Scene:
    """
    What Prometheus answered: of each expression its samples now, and its series over the load.
    """

    now: dict[str, list[dict]]
    over: dict[str, list[dict]]
    rule_groups: list[dict]
    start: float
    end: float
    #: Between two looks of RabbitMQ at itself: under load, at rest.
    loaded: witness.Between
    resting: witness.Between
    #: With a full run queue: what the VM says of its length, and what we say.
    queued: int
    crowded: witness.Samples


def play(folder: Path) -> Scene:
    """
    Play it, with its files in *folder*; it takes less than a minute.
    """
    beams_run.require(os.geteuid() == 0, "attaching BPF programs takes root")
    file = asked.FOLDER / "rules.yml"
    with (
        rabbitmq() as app,
        test_daemon_threads.quota(app.pid, QUOTA) as cgroup,
        memory_limit(app.pid, cgroup),
        telling(app),
        marked(app, folder),
        test_daemon.daemon(CONFIG, folder) as daemon,
    ):
        ports = {"scope-ebpf": daemon.port, "rabbitmq": app.ports["prometheus"]}
        daemon.until(app.pid, lambda n: ("scope_ebpf_snapshot_cpu_seconds",) in n)
        assert app.eval(PLANT) == "done"
        with prometheus(folder, file, **ports) as server:
            with load(app):
                server.wait_for(f"count_over_time(beam_processes[{SHOWN + 5}s]) >= {SHOWN}")
                server.wait_for(LOOKED_TWICE)
                # Lifetimes are empty until spawns and exits were always counted for a while, and
                # figures of telemetry come every few seconds.
                for one in asked.panels():
                    if not one.instant and any(name in one.expression for name in LATE):
                        known = f"({one.expression} >= 0)[{SHOWN}s:1s]"
                        server.wait_for(f"count_over_time({known}) >= {LEAST_SHOWN}")
                loaded = between(app, daemon, of_memory=False)
                # Nothing is there at the time of a scrape that failed, so the end is another's.
                (scraped,) = server.wait_for('timestamp(up{job="scope-ebpf"} == 1)')
                end = float(scraped["value"][1])
                start = end - SHOWN
                over = answers(server, start, end)
                now = {text: server.now(text, end) for text in every()}
            groups = server.ask("rules")["groups"]
        app.wait_until(AT_REST)
        resting = between(app, daemon)
        queued = int(app.eval(PLANT_BUSY))
        crowded = counted_anew(daemon)
    return Scene(now, over, groups, start, end, loaded, resting, queued, crowded)


@contextmanager
def telling(app: App) -> Iterator[None]:
    """
    Let RabbitMQ emit events as an application in Elixir does; the daemon finds the library.
    """
    path = beams_run.compiled_part("stock25", "telemetry-1.3")
    assert app.eval(TELLING.replace("PATH", str(path))) == "done"
    yield


@contextmanager
def marked(app: App, folder: Path) -> Iterator[None]:
    """
    Let RabbitMQ have code that is marked, compiled in *folder*.
    """
    modules, command = folder / "marked", folder / "scope-mark"
    modules.mkdir()
    source, escript = TESTS / "mark/counted.erl", ROOT / "scope_mark/tools/escript.escript"
    for words in (
        ["erlc", "-o", modules, source],
        ["escript", escript, command],
        [command, modules / "counted.beam", "--profile", "callbacks"],
    ):
        subprocess.run(words, check=True, capture_output=True)
    assert app.eval(CALLING.replace("PATH", str(modules))) == "done"
    yield


@contextmanager
def memory_limit(pid: int, cgroup: Path) -> Iterator[None]:
    """
    Limit the memory of process *pid*: of version 2 in its *cgroup*, of 1 in one of its own.
    """
    first = Path("/sys/fs/cgroup/memory")
    if not first.is_dir():
        (cgroup.parent / "cgroup.subtree_control").write_text("+memory")
        (cgroup / "memory.max").write_text(str(LIMIT))
        yield
        return
    own = first / cgroup.name
    own.mkdir()
    try:
        (own / "memory.limit_in_bytes").write_text(str(LIMIT))
        (own / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        (first / "cgroup.procs").write_text(str(pid))
        own.rmdir()


def every() -> set[str]:
    """
    Every expression, and what each consists of that must answer for itself.
    """
    texts = {one.expression for one in (*asked.panels(), *rules())}
    return texts | {part for text in texts for part in asked.alternatives(text)}


def rules() -> list[asked.Asked]:
    """
    Every expression of every rule, for a scene of seconds: nothing is some minutes ago.

    What is asked to be 0 is made to say 0 or 1, as :func:`asked.reported` does with what is more.
    """
    return [
        replace(
            one,
            expression=re.sub(r" offset \d+[mh]", "", one.expression).replace(
                " == 0", " == bool 0"
            ),
        )
        for one in asked.rules()
    ]


def answers(server: Prometheus, start: float, end: float) -> dict[str, list[dict]]:
    shown = {one.expression for one in asked.panels() if not one.instant}
    return {text: server.over(text, start, end) for text in shown}


@contextmanager
def load(app: App) -> Iterator[None]:
    """
    Messages through RabbitMQ while the block runs.
    """
    client = [sys.executable, TESTS / "apps/load_rabbitmq.py", "--seconds", "600"]
    running = subprocess.Popen(
        [*client, "--port", str(app.ports["amqp"])], stderr=subprocess.DEVNULL
    )
    try:
        yield
        assert running.poll() is None, "the load has ended too soon"
    finally:
        running.kill()
        running.wait()


def between(app: App, daemon: test_daemon.Running, *, of_memory: bool = True) -> witness.Between:
    """
    What we read of the VM after it was asked once, and before it was asked again.

    Memory and processes are read anew only if *of_memory* says so: they are read more rarely.
    """
    before, answered = witness.scrape(app.ports["prometheus"]), time.time()
    ours = counted_anew(daemon)
    for what in ("processes", "memory") if of_memory else ():
        ours = until(daemon, lambda ours, what=what: begun(ours, what) > answered)
    return witness.Between(before, ours, witness.scrape(app.ports["prometheus"]))


def begun(ours: witness.Samples, what: str) -> float:
    """
    When we last began to read *what*, in seconds since 1970.
    """
    return witness.value(ours, "scope_ebpf_snapshot_timestamp_seconds", what=what)


def counted_anew(daemon: test_daemon.Running) -> witness.Samples:
    """
    What we say when counters were read twice more: the second reading was begun after this call.
    """
    ours = witness.scrape(daemon.port)
    for _ in range(2):
        last = witness.value(ours, "beam_reductions_total")
        ours = until(
            daemon, lambda ours, last=last: witness.value(ours, "beam_reductions_total") != last
        )
    return ours


def until(daemon: test_daemon.Running, holds: Callable[[witness.Samples], bool]) -> witness.Samples:
    """
    What we say at the first scrape for which *holds*.
    """
    deadline = time.monotonic() + test_daemon.PATIENCE
    while not holds(ours := witness.scrape(daemon.port)):
        assert time.monotonic() < deadline, "the daemon reads nothing anew"
        select.select([], [], [], 0.1)  # until its next look
    return ours
