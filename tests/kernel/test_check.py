# SPDX-License-Identifier: Apache-2.0
"""
Nodes that ail in ways that public reports describe, one after the other: the first finding names
cause and culprit. Healthy nodes, stopped ones, names that must not be shown.
"""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import beam_fixtures  # noqa: F401 - puts tests/ on the path
import beams_run
import documents
import pytest
from beams_run import PATIENCE
from test_daemon_threads import quota, times_throttled
from tracing import require_root, scope_trace, wait_until

from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.cli import check, main
from scope_ebpf.errors import NotPermittedError, TargetEndedError
from scope_ebpf.runs.check import check as check_vm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Processes with a mailbox of their own, messages of each, and what else ailing.erl plants.
MESSAGES = ALIKE = 12345
OBJECTS, TIMERS = 4567, 123456
#: Bytes that ailing.erl keeps outside of the VM's allocators.
OUTSIDE = 300 << 20
#: Seconds of one check.
SECONDS, LONGER = "1s", "2s"
FLAGS = ("+S", "2:2", "+SDcpu", "2:2", "+P", "16384", "+t", "60000")
FLAGS += ("+Q", "1024", "-kernel", "logger_level", "none")


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """
    A VM that ails on command, and knows native functions.
    """
    require_root()
    env = beams_run.native_functions(tmp_path_factory.mktemp("nif"))
    with beams_run.start_beam("stock25", *FLAGS, "-s", "ailing", env=env) as beam:
        beam.expect("ready")
        yield beam


@pytest.fixture(scope="module")
def pipe(node) -> Path:
    """
    The pipe at which native functions wait.
    """
    path = Path(node.ask('tell os:getenv("NAMES_NIF")').strip('"') + ".pipe")
    os.mkfifo(path)
    return path


@pytest.fixture(scope="module", params=["trixie27", "sid29"])
def newer(request):
    """
    The same of other releases, without native functions.
    """
    require_root()
    with beams_run.start_beam(request.param, *FLAGS, "-s", "ailing") as beam:
        beam.expect("ready")
        yield beam


@pytest.fixture
def looked(capsys) -> Callable[..., dict[str, Any]]:
    """
    Checks a VM and gives the document, and the exit code as its field ``code``.
    """

    def look(beam: beams_run.Beam, *words: str, seconds: str = SECONDS) -> dict[str, Any]:
        line = ["check", str(beam.pid), "--duration", seconds, "--format", "json", *words]
        code = check.run(main.parsed(line))
        document = documents.load(capsys.readouterr().out)
        return document | {"code": code}

    return look


@contextmanager
def ailing(beam: beams_run.Beam, *cases: str, held: Path | None = None) -> Iterator[None]:
    """
    Plants cases, and ends them; native functions wait for a byte in the pipe *held*.
    """
    with ExitStack() as stack:
        try:
            for case in cases:
                assert beam.ask(f"plant {case}") == f"done {case}"
            yield
        finally:
            if held:
                stack.callback(os.close, os.open(held, os.O_RDWR))
            assert beam.ask("cure") == "done cure"


def sick(beam, look, case: str, seconds: str = SECONDS) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    The first finding of a planted case, and the document.
    """
    with ailing(beam, case):
        document = look(beam, seconds=seconds)
    assert document["findings"], document
    return document["findings"][0], document


#: What the node itself says of its processes: the expressions of witnesses.
HAS = "element(2, process_info(whereis({}), {}))"
LONG = HAS.format("{}", "message_queue_len")
CARRIERS = (
    "lists:sum([element(2, T) || {instance, _, P} <- "
    "erlang:system_info({allocator_sizes, binary_alloc}), {_, L} <- P, T <- L, "
    "element(1, T) =:= carriers_size])"
)


class Case(NamedTuple):
    """
    What the first finding is to be.
    """

    kind: str
    severity: str
    subject: dict[str, Any]
    #: Words of the summary.
    words: str
    #: Figures that are planted.
    figures: dict[str, Any]
    #: Figures of which the node says the same, 2 % more or less, by expressions.
    witness: dict[str, str]


CASES = {
    "outside": Case(
        *("outside", "warning", {"what": "vm"}, "are not of the VM's allocators", {}, {})
    ),
    "heap": Case(
        *("memory", "warning", {"name": "holder"}, "holder has heaps of", {}),
        {"bytes": f"8 * {HAS.format('holder', 'total_heap_size')}"},
    ),
    "fragments": Case(
        *("fragmentation", "warning", {"what": "binary"}, "of them is empty", {}),
        {"limit": CARRIERS},
    ),
    "ports": Case(
        *("limit", "warning", {"what": "ports"}, "of 1,024 ports are in use", {"limit": 1024}),
        {"used": "erlang:system_info(port_count)"},
    ),
    "crowded": Case(
        *("run_queue", "warning", {"what": "run queues"}, "wait for 2 schedulers", {"count": 2}),
        {"waiting": "lists:sum(statistics(run_queue_lengths))"},
    ),
    "mailbox": Case(
        *("mailbox", "warning", {"name": "slow_writer"}, "the oldest are {cast, _, _}"),
        *({"messages": MESSAGES}, {"messages": LONG.format("slow_writer")}),
    ),
    "selective": Case(
        *(
            "mailbox",
            "warning",
            {"name": "rpc_client"},
            "a receive passes over it, or it takes none",
        ),
        *({}, {"messages": LONG.format("rpc_client")}),
    ),
    "logger": Case(
        *("logger", "warning", {"name": "logger_std_h_planted"}, "777 messages wait"),
        *({"messages": 777}, {"messages": LONG.format("logger_std_h_planted")}),
    ),
    "deadlock": Case(
        *("deadlock", "critical", {"name": "orders"}, "orders -> stock -> billing -> orders"),
        *({"waiting": 0}, {}),
    ),
    "crowd": Case(
        *("waits_for", "warning", {"name": "checkout"}),
        *("processes or more wait for checkout in ailing:slow/0", {"waiting": 23}),
        {"waiting": f"length({HAS.format('checkout', 'monitored_by')})"},
    ),
    "suspended": Case(
        *("suspended", "warning", {"name": "debugger_of_it"}, "1 process has been suspended"),
        *({"count": 1}, {"count": f"length({HAS.format('debugger_of_it', 'suspending')})"}),
    ),
    "alike": Case(
        *("limit", "warning", {"what": "processes", "initial_call": "ailing:hold/0"}),
        *(f"{ALIKE:,} of them run ailing:hold/0", {"limit": 16384}),
        {"used": "erlang:system_info(process_count)"},
    ),
    "binaries": Case(
        *("binaries", "warning", {"name": "session_cache"}, "session_cache holds", {}),
        {
            "bytes": "lists:sum([Size || {_, Size, _} <- "
            f"{HAS.format('session_cache', 'binary')}])"
        },
    ),
    "table": Case(
        *("ets", "warning", {"table": "last_item", "name": "session_mgr"}),
        *("the ETS table last_item of session_mgr has 4,567 objects", {"count": OBJECTS}),
        {"bytes": "8 * ets:info(last_item, memory)"},
    ),
    "timers": Case(
        *("timers", "warning", {"name": "scheduler_of_it"}),
        *("123,456 timers are set to send to scheduler_of_it, the next in 86,", {"count": TIMERS}),
        {},
    ),
    "port": Case("blocked_port", "critical", {}, "is busy", {"count": 1}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_first_finding_names_cause_and_culprit(node, looked, case):
    """
    Kind, severity, culprit and the planted figures; the exit code says that something was found.
    """
    assert_case(node, looked, case)


@pytest.mark.parametrize("case", ["mailbox", "crowd", "binaries", "suspended"])
def test_the_same_on_other_releases(newer, looked, case):
    """
    On OTP 27 and 29 as distributions build them.
    """
    assert_case(newer, looked, case)


@pytest.mark.parametrize("newer", ["sid29"], indirect=True)
@pytest.mark.parametrize("case", ["table", "timers"])
def test_the_same_where_symbols_are_hidden(newer, looked, case):
    """
    On OTP 29 alone: what it hides could be in the way.
    """
    assert_case(newer, looked, case)


def assert_case(beam: beams_run.Beam, look, case: str) -> None:
    wanted = CASES[case]
    with ailing(beam, case):
        document = look(beam)
        own = {key: int(beam.ask(f"tell {text}")) for key, text in wanted.witness.items()}
    (first, *_) = document["findings"] or [None]
    assert first, document
    assert (wanted.kind, wanted.severity) == (first["kind"], first["severity"]), document
    assert wanted.subject.items() <= first["subject"].items()
    assert wanted.words in first["summary"]
    assert wanted.figures.items() <= first["evidence"].items()
    # Of the callers of a crowd some are between two calls at each moment, and others at the next.
    moving = 8 if case == "crowded" else 0
    seen = {key: first["evidence"][key] for key in own}
    assert own == pytest.approx(seen, rel=0.02, abs=moving)
    if case == "outside":
        assert OUTSIDE <= first["evidence"]["bytes"] < first["evidence"]["limit"]
    assert 1 == document["code"]
    assert document["verdict"]["summary"].startswith(f"{wanted.severity}: ")


#: Cases that need time to pass: kind, severity, and the culprit.
BUSY = {
    "starved": ("starved", "critical", "ailing:spinner/0"),
    "gc": ("gc", "warning", "heavy_collector"),
    "crash": ("crash_loop", "warning", "worker_sup"),
    "code": ("code_loading", "warning", "code_server"),
}
#: Those of native functions: kind and culprit, and the work that waits meanwhile.
HELD = {
    "wedged": ("wedged", "hasher", {"count": 1}),
    "spins": ("wedged", "names_nif:spin/1", {"count": 1}),
    "dirty": ("dirty_pool", "names_nif:dirty_held/1", {"count": 2, "waiting": 1}),
    "dirty_io": ("dirty_pool", "prim_file:open_nif/2", {"count": 10, "waiting": 1}),
}


@pytest.mark.parametrize("newer", ["sid29"], indirect=True)
def test_restarts_are_counted_where_a_state_is_longer(newer, looked):
    """
    A supervisor of OTP 29 has a longer state.
    """
    with ailing(newer, "crash"):
        assert "worker_sup" == first_of("crash_loop", newer, looked)["subject"]["name"]


@pytest.mark.parametrize("case", BUSY)
def test_what_takes_time_names_who_takes_it(node, looked, case):
    """
    High priority, collections, restarts, missing code.
    """
    kind, severity, culprit = BUSY[case]
    with ailing(node, case):
        first = first_of(kind, node, looked)
    assert severity == first["severity"]
    assert culprit in json.dumps(first)


def test_a_process_that_takes_the_oldest_is_late_and_passes_over_nothing(node, looked):
    """
    It works as much behind as many messages, each of which it takes and sends itself again.
    """
    first, _ = sick(node, looked, "behind")
    assert ("mailbox", "late_reader") == (first["kind"], first["subject"]["name"])
    assert first["evidence"]["reductions_per_second"] >= 1_000_000
    assert "passes over" not in first["summary"]


def first_of(kind: str, beam: beams_run.Beam, look) -> dict[str, Any]:
    """
    The first finding, once it is of this kind: a busy machine may not let the VM ail at once.
    """
    until = time.monotonic() + PATIENCE
    while True:
        found = look(beam, seconds=LONGER)["findings"]
        if found and found[0]["kind"] == kind:
            return found[0]
        assert time.monotonic() < until, found


#: What msacc counts of all schedulers of a type, in this order.
ACCOUNTED = ("emulator", "gc", "port", "sleep", "aux", "check_io", "other")
MSACC = (
    "[lists:sum([maps:get(K, maps:get(counters, M)) || M <- "
    "erlang:statistics(microstate_accounting), maps:get(type, M) =:= {}]) || K <- [{}]]"
)


def accounted(beam: beams_run.Beam, kind: str) -> dict[str, float]:
    """
    The parts of the time that schedulers of a kind spent in each state, as the node counts it.
    """
    counts = json.loads(beam.ask(f"tell {MSACC.format(kind, ', '.join(ACCOUNTED))}"))
    return {state: count / sum(counts) for state, count in zip(ACCOUNTED, counts, strict=True)}


def test_the_split_of_schedulers_is_what_msacc_counts(node):
    """
    Missing code keeps normal schedulers busy in part, a collector a dirty one all the time.
    """
    with ailing(node, "code", "gc"):
        node.ask("tell erlang:system_flag(microstate_accounting, true)")
        command = ("schedulers", str(node.pid), "--once", "--split", "-i", SECONDS)
        document = scope_trace(*command, "--format", "json").document
        own = {kind: accounted(node, kind) for kind in ("scheduler", "dirty_cpu_scheduler")}
        node.ask("tell erlang:system_flag(microstate_accounting, false)")
    normal, dirty = (
        [one["split"] for one in document["threads"] if one["kind"] == kind]
        for kind in ("normal", "dirty_cpu")
    )
    for split in (*normal, *dirty):
        shares = {key: split[key] for key in split.keys() - {"samples", "error"}}
        assert pytest.approx(1, abs=0.001) == sum(shares.values())
        assert split["error"] <= 1.96 * 0.5 / split["samples"] ** 0.5 + 0.001

    def ours(found: list[dict[str, float]], *states: str) -> float:
        return sum(one[state] for one in found for state in states) / len(found)

    def about(found: list[dict[str, float]], share: float) -> Any:
        # The node counts a little longer, and a busy host keeps who samples from its turn.
        return pytest.approx(share, abs=2 * max(one["error"] for one in found) + 0.1)

    theirs = own["scheduler"]
    rest = sum(theirs[state] for state in ("aux", "check_io", "other"))
    assert ours(normal, "erlang", "nif") == about(normal, theirs["emulator"])
    assert ours(normal, "port") == about(normal, theirs["port"])
    assert ours(normal, "sleep") + ours(normal, "other", "busy_wait") == about(
        normal, theirs["sleep"] + rest
    )
    assert ours(dirty, "gc") == about(dirty, own["dirty_cpu_scheduler"]["gc"])
    assert ours(dirty, "gc") > 0.2


@pytest.mark.parametrize("case", HELD)
def test_schedulers_that_native_functions_hold_are_named(node, pipe, looked, case):
    """
    One of two normal ones, and both dirty CPU schedulers with a third call that waits for them.
    """
    kind, culprit, figures = HELD[case]
    with ailing(node, case, held=pipe):
        first = first_of(kind, node, looked)
    assert "critical" == first["severity"]
    assert culprit in json.dumps(first)
    assert figures.items() <= first["evidence"].items()


def test_with_every_scheduler_stuck_what_the_vm_holds_is_named(node, pipe, looked):
    """
    Both schedulers in a native function come first, with the 500 processes that wait behind them.
    """
    with ailing(node, "deadlock", "mailbox", "logger", "all_wedged", held=pipe):
        until = time.monotonic() + PATIENCE
        while True:
            document = looked(node, seconds=LONGER)
            first = document["findings"][0]
            if (first["kind"], first["evidence"].get("count")) == ("wedged", 2):
                break
            assert time.monotonic() < until, document["findings"]
    assert first["summary"].startswith("every scheduler is at one process for ")
    assert "names_nif:held/1" == first["subject"]["function"]
    assert 500 == pytest.approx(first["evidence"]["waiting"], rel=0.02)  # some of the node's own
    found = {one["kind"]: one["subject"].get("name") for one in document["findings"][1:]}
    held = {"deadlock": "orders", "mailbox": "slow_writer", "logger": "logger_std_h_planted"}
    assert held.items() <= found.items()


def test_a_quota_that_holds_the_vm_back_comes_first(node, looked):
    """
    A tenth of a CPU for 200 processes; figures are within those of the kernel before and after.
    """
    assert_throttled(node, looked)


@pytest.mark.parametrize("newer", ["sid29"], indirect=True)
def test_the_same_quota_where_symbols_are_hidden(newer, looked):
    """
    On OTP 29.
    """
    assert_throttled(newer, looked)


def assert_throttled(node: beams_run.Beam, looked) -> None:
    with ailing(node, "crowded"), quota(node.pid, 0.1) as folder:
        wait_until(lambda: times_throttled(folder), "the quota is used up")
        before = times_throttled(folder)
        first = looked(node)["findings"][0]
        most = times_throttled(folder) - before
    assert ("throttled", "critical") == (first["kind"], first["severity"])
    assert 0 < first["evidence"]["count"] <= min(most, first["evidence"]["limit"])


def test_a_memory_limit_that_is_nearly_reached_is_found(node, looked):
    """
    What a process keeps outside is 95 % of what the cgroup may have; the kernel says how much.
    """
    with memory_cgroup(node.pid) as (used, limit), ailing(node, "outside"):
        limit.write_text(str(int(used.read_text()) * 100 // 95))
        found = {one["subject"]["what"]: one for one in looked(node)["findings"]}
        own = {"used": int(used.read_text()), "limit": int(limit.read_text())}
    first = found["cgroup memory"]
    assert ("memory", "warning") == (first["kind"], first["severity"])
    assert own == pytest.approx({key: first["evidence"][key] for key in own}, rel=0.02)


@contextmanager
def memory_cgroup(pid: int) -> Iterator[tuple[Path, Path]]:
    """
    A memory cgroup around process *pid*, of version 1 or 2: files of its use and of its limit.
    """
    first = Path("/sys/fs/cgroup/memory")
    names = ("memory.usage_in_bytes", "memory.limit_in_bytes")
    if not first.is_dir():
        first, names = first.parent, ("memory.current", "memory.max")
        (first / "cgroup.subtree_control").write_text("+memory")
    own = first / f"scope-check-{pid}"
    own.mkdir()
    try:
        (own / "cgroup.procs").write_text(str(pid))
        yield own / names[0], own / names[1]
    finally:
        (first / "cgroup.procs").write_text(str(pid))
        own.rmdir()


def test_a_healthy_node_has_no_finding(node, looked):
    """
    After all that, and with the exit code 0; what was looked at is named.
    """
    document = looked(node)
    assert [] == document["findings"]
    assert (0, "good") == (document["code"], document["verdict"]["severity"])
    assert {"schedulers", "calls", "memory"} <= set(document["checked"])
    assert "complete" == document["outcome"]


def test_a_stopped_vm_is_said_to_be_stopped_and_what_it_holds_is_named(node, looked):
    """
    What needs no time to pass is found, and what does is said to be unknown.
    """
    node.ask("plant deadlock")
    node.freeze()
    try:
        document = looked(node)
    finally:
        node.thaw()
        node.ask("cure")
    assert ["stopped", "deadlock"] == [one["kind"] for one in document["findings"][:2]]
    assert "growth and rates" in [one["what"] for one in document["not_checked"]]


#: Cases whose findings are shown together, and names and texts of the application in them.
SHOWING = ("mailbox", "logger", "deadlock", "crowd", "suspended", "binaries", "port", "crash")
PLANTED = (
    *("slow_writer", "{cast, _, _}", "orders", "stock", "billing", "gs_circle", "checkout"),
    *("debugged", "debugger_of_it", "logger_std_h_planted", "{log, _}", "session_cache", "printer"),
    *("while kill", "worker_sup", "crash/0", "ailing", "hold/0", "slow/0", "caller/0"),
)


def test_no_planted_name_leaks_where_names_are_redacted(node):
    """
    Of twenty that are shown otherwise, neither in JSON nor in text.
    """
    for case in SHOWING:
        node.ask(f"plant {case}")
    command = ("check", str(node.pid), "--duration", LONGER)
    try:
        until = time.monotonic() + PATIENCE
        missing = [*PLANTED]
        while missing and time.monotonic() < until:  # what crashes has to crash often enough
            shown = scope_trace(*command, "--format", "json").output
            missing = [name for name in PLANTED if name not in shown]
        redacted = [
            scope_trace(*command, "--redact", "--format", form).output for form in ("json", "text")
        ]
    finally:
        node.ask("cure")
    assert 20 == len(PLANTED)
    assert [] == missing
    for text in redacted:
        assert [] == [name for name in PLANTED if name in text]
        assert "deadlock" in text
        assert "12,345 messages wait" in text


def test_a_thousand_findings_are_ten_and_a_count(node, looked):
    """
    The first ten are shown, the rest is counted by kind.
    """
    _, document = sick(node, looked, "many_mailboxes", "500ms")
    assert 10 == len(document["findings"])
    assert 1000 == document["findings_total"]
    assert {"mailbox": 990} == document["left_out"]


def test_a_user_who_may_not_read_a_vm_is_refused(node):
    """
    In one line, and with the exit code of a refusal, not of a finding.
    """
    nothing = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    refused = scope_trace("check", str(node.pid), prefix=nothing)
    assert NotPermittedError.exit_code == refused.code
    assert 1 == len(refused.errors.splitlines()), refused.errors


def test_a_critical_limit_fails_only_what_was_asked(node, looked):
    """
    A warning does not fail ``--fail-on critical``.
    """
    node.ask("plant crowd")
    try:
        assert (0, 1) == tuple(
            looked(node, "--fail-on", severity, seconds="500ms")["code"]
            for severity in ("critical", "warning")
        )
    finally:
        node.ask("cure")


def test_a_node_that_does_not_stop_names_whom_it_waits_for(node, looked):
    """
    Atoms first, which stay; then init:stop with a child that ignores its shutdown. Comes last.
    """
    first, _ = sick(node, looked, "atoms")
    assert ("limit", "critical", "atoms") == (
        first["kind"],
        first["severity"],
        first["subject"]["what"],
    )
    assert first["evidence"]["newest"][0].startswith("ctl-")
    own = int(node.ask("tell erlang:system_info(atom_count)"))
    assert own == pytest.approx(first["evidence"]["used"], rel=0.02)
    assert_ends(node, looked)


def test_other_releases_that_do_not_stop_or_halt_say_so_too(newer, looked):
    """
    On OTP 27 and 29. Comes last.
    """
    assert_ends(newer, looked)


def assert_ends(beam: beams_run.Beam, look) -> None:
    """
    It stops, and waits for a child; then it halts, and waits for a port.
    """
    assert beam.ask("plant stopping") == "done stopping"
    first = look(beam)["findings"][0]
    assert ("stopping", "queue_writer") == (first["kind"], first["subject"]["name"])
    assert "shop_sup" in first["summary"]
    assert beam.ask("plant port") == "done port"
    assert beam.ask("halt") == "done"
    wait_until(lambda: is_halting(look(beam)), "it halts")
    with pytest.raises(TargetEndedError):
        check_vm(inspect(beam.pid), 1.0, lambda _: os.kill(beam.pid, signal.SIGKILL))


def is_halting(document: dict[str, Any]) -> bool:
    """
    Whether the first finding says that the VM halts; who called it, where the build hides more.
    """
    first = document["findings"][0]
    if first["kind"] != "halting":
        return False
    if document["target"]["otp_release"] == "29":
        assert "ailing_main" == first["subject"]["name"]
    else:
        assert "the VM halts with code 3 and waits for " in first["summary"]
        assert 1 <= first["evidence"]["waiting"] <= 3  # schedulers go first, then the port is left
    return True
