# SPDX-License-Identifier: Apache-2.0
"""
Real applications after their load: what ``top`` reads, held against what their VMs say.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from apps.ejabberd import ejabberd
from apps.rabbitmq import rabbitmq
from tracing import require_root, scope_trace

if TYPE_CHECKING:
    from apps.app import App

#: How to start each, the port for its load, and a server that may stop for a while.
APPS = {
    "rabbitmq": (rabbitmq, "amqp", "rabbit_registry"),
    "ejabberd": (ejabberd, "c2s", "ejabberd_iq"),
}
#: What the doctor calls each, and the name of its Erlang application.
LIBRARIES = {"rabbitmq": ("RabbitMQ", "rabbit"), "ejabberd": ("ejabberd", "ejabberd")}
LOADS = Path(__file__).parent.parent / "apps"
#: A process that answers ``process_info`` spends a reduction on it, after the answer.
ANSWER = 1
#: Messages planted in the mailbox of the server.
PLANTED = 37
#: The behaviours whose processes wait in the behaviour's own module, with init/1 as their start.
SERVERS = {"gen_server", "gen_statem", "gen_server2"}
#: Suspends a server, fills its mailbox, and returns when it has looked through it.
PLANT = """
    begin
        ok = sys:suspend({server}),
        [{server} ! planted || _ <- lists:seq(1, {count})],
        Waits = fun W() -> case erlang:process_info(whereis({server}), status) of
            {{status, waiting}} -> ok; _ -> erlang:yield(), W() end end,
        Waits()
    end"""
#: Every process of the VM, tab-separated, as it sees itself.
LOOK = r"""
    Mfa = fun({M, F, A}) -> io_lib:format("~ts:~ts/~b", [M, F, A]); (undefined) -> "" end,
    Name = fun([]) -> ""; (N) -> atom_to_list(N) end,
    Items = [registered_name, initial_call, dictionary, current_function, message_queue_len,
             reductions],
    [lists:flatten(lists:join("\t", [pid_to_list(P), Name(N),
        Mfa(proplists:get_value('$initial_call', D, I)), Mfa(C),
        integer_to_list(Q), integer_to_list(R)]))
     || P <- processes(),
        [{_, N}, {_, I}, {_, D}, {_, C}, {_, Q}, {_, R}] <- [erlang:process_info(P, Items)]]"""


class Said(NamedTuple):
    """
    What the VM says of one process.
    """

    name: str | None
    initial_call: str | None
    current_function: str | None
    message_queue_len: int
    reductions: int


def look(app: App) -> dict[str, Said]:
    """
    Every process of the VM by its pid, through ``erlang:process_info``.
    """
    rows = [row.split("\t") for row in ast.literal_eval(app.eval(LOOK))]
    return {
        pid: Said(name or None, call or None, current or None, int(mailbox), int(reductions))
        for pid, name, call, current, mailbox, reductions in rows
    }


def module(said: Said) -> str | None:
    """
    The callback module of a supervisor, or of a server that waits in its loop; None of others.
    """
    start, _, function = (said.initial_call or "").partition(":")
    if start == "supervisor":
        return function.removesuffix("/1")
    waits = (said.current_function or "").partition(":")[0]
    return start if function == "init/1" and waits in SERVERS else None


@pytest.mark.parametrize("name", APPS)
def test_the_processes_of_an_application_are_what_its_vm_says(name):
    """
    Names, initial calls, modules, functions and mailboxes of all processes that stood still, and
    the version of the application.
    """
    require_root()
    start, port, server = APPS[name]
    client = [sys.executable, LOADS / f"load_{name}.py", "--seconds", "3"]
    with start() as app:
        subprocess.run([*client, "--port", str(app.ports[port])], check=True, timeout=120)
        app.eval(PLANT.format(server=server, count=PLANTED))
        before = look(app)
        seen = scope_trace("top", "--pid", str(app.pid), "--once", "--format", "json").document
        after = look(app)
        doctor = scope_trace("doctor", str(app.pid), "--format", "json").document
        listed = scope_trace("list", "--libraries", "--format", "json").document["beams"]
        library, application = LIBRARIES[name]
        version = app.eval(f"element(2, application:get_key({application}, vsn))")
    assert {"name": library, "version": ast.literal_eval(version)} in doctor["libraries"]
    assert doctor["telemetry"] is None
    (row,) = (row for row in listed if row["pid"] == app.pid)
    assert doctor["libraries"] == row["libraries"]
    ours = {row["pid"]: row for row in seen["processes"]}
    lived = before.keys() & after.keys()
    assert seen["read"] == len(ours)
    assert len(lived - ours.keys()) <= seen["torn"]
    still = {
        pid: said
        for pid, said in after.items()
        if pid in lived & ours.keys()
        and said == before[pid]._replace(reductions=before[pid].reductions + ANSWER)
    }
    wrong = [
        f"{pid}.{key}: {ours[pid][key]!r} is {value!r}"
        for pid, said in still.items()
        for key, value in said._asdict().items()
        if ours[pid][key] != value
    ]
    modules = {pid: found for pid, said in still.items() if (found := module(said))}
    wrong += [
        f"{pid}.module: {ours[pid]['module']!r} is {found!r}"
        for pid, found in modules.items()
        if ours[pid]["module"] != found
    ]
    assert wrong == []
    assert len(still) >= len(lived) * 0.7
    assert len(modules) >= 50
    assert (server, PLANTED) in [(said.name, said.message_queue_len) for said in still.values()]
