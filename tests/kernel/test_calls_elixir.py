# SPDX-License-Identifier: Apache-2.0
"""
Calls of GenServers in an Elixir release that nobody prepared, as ``mix release`` makes it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

import beams_run
import pytest
from calling import PATIENCE, calling
from tracing import SCOPE_TRACE, Run, scope_trace

from scope_ebpf.sinks.plain import spelled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SOURCE = beams_run.WORKLOADS / "shop"
#: How often the load does everything, and the workers that it starts.
LOAD, WORKERS = 23, 5


class Shop:
    """
    The release, talked to by lines.
    """

    def __init__(self, connection: socket.socket, folder: Path) -> None:
        self._file = connection.makefile("rw")
        self.folder = folder
        self.pid = int(self.ask("pid"))

    def ask(self, line: str) -> str:
        self._file.write(line + "\n")
        self._file.flush()
        return self._file.readline().strip()


def make(*command: str, folder: Path, **environment: str) -> None:
    env = {**os.environ, "LC_ALL": "C.UTF-8", "MIX_ENV": "prod", **environment}
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def started(folder: Path) -> Iterator[Shop]:
    port = beams_run.free_port()
    env = {
        **os.environ,
        "SHOP_PORT": str(port),
        "RELEASE_DISTRIBUTION": "none",
        "LC_ALL": "C.UTF-8",
    }
    command = [str(folder / "rel/bin/shop"), "start"]
    with subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    connection = socket.create_connection(("127.0.0.1", port), PATIENCE)
                    break
                except ConnectionRefusedError:
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            with connection:
                yield Shop(connection, folder)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """
    The release, built and running, with other code for its server beside it.
    """
    beams_run.require(os.geteuid() == 0, "breakpoints take root")
    beams_run.require(shutil.which("mix"), "elixir is not installed")
    folder = tmp_path_factory.mktemp("shop")
    shutil.copytree(SOURCE, folder, dirs_exist_ok=True)
    make("mix", "release", "--path", "rel", folder=folder)
    (folder / "v2").mkdir()
    make("elixirc", "-o", "v2", "lib/cart.ex", folder=folder, SHOP_VERSION="2")
    with started(folder) as running:
        yield running


def test_calls_of_a_genserver_are_exact_through_an_upgrade(shop: Shop):
    """
    As many calls as the module counts itself, of its process, with the request's shape, in old code
    and in new.
    """
    with calling(shop.pid, "Shop.Cart.handle_call/3") as run:
        before = int(shop.ask("add 23"))
        assert "Shop.Cart" == shop.ask(f"upgrade {shop.folder}/v2/Elixir.Shop.Cart")
        run.wait_for(lambda event: event["event"] == "code")
        after = int(shop.ask("add 23"))
        run.stop()
    calls = run.of("call")
    assert (23, 23) == (before, after)
    assert {1: 23, 2: 23} == Counter(call["version"] for call in calls)
    assert {("Elixir.Shop.Cart:handle_call/3", "Elixir.Shop.Cart")} == {
        (call["function"], call["who"]) for call in calls
    }
    assert {f"#PID{call['pid']}" for call in calls} == {shop.ask("cart")}
    requests = [call["arguments"][0] for call in calls]
    assert [f"{{add,<<4 bytes>>,{n}}}" for n in range(1, 24)] * 2 == requests
    assert {"#{items,owner}"} == {call["arguments"][2] for call in calls}


def test_a_pattern_without_arity_means_the_function(shop: Shop):
    """
    Elixir's and Erlang's notation name the same function.
    """
    for pattern in ("Shop.Cart.handle_call", "Elixir.Shop.Cart:handle_call/3"):
        with calling(shop.pid, pattern) as run:
            assert int(shop.ask("add 23")) == run.stop().summary["calls"]


def test_the_doctor_says_which_elixir_a_release_runs(shop: Shop):
    """
    The version of Elixir that ``mix release`` has put into the folder of the release.
    """
    (folder,) = (shop.folder / "rel/lib").glob("elixir-*")
    document = scope_trace("doctor", str(shop.pid), "--format", "json").document
    assert document["refused"] == []
    assert document["libraries"] == [
        {"name": "Elixir", "version": folder.name.removeprefix("elixir-")}
    ]
    assert document["telemetry"] is None


def test_servers_of_an_elixir_release_have_its_names_and_their_own_counts(shop: Shop):
    """
    Workers of a dynamic supervisor behind a registry, an agent, tasks, a stage: what each counts.
    """
    command = ["genservers", "--pid", str(shop.pid), "--duration", "0", "--format", "json"]
    run = Run([*SCOPE_TRACE, *command, "--budget", "none", "--max-cost", "100%"], None)
    try:
        run.wait_for_counting()
        own = dict(word.split("=") for word in shop.ask(f"load {LOAD}").split()[1:])
        run.send(signal.SIGINT)
        document = run.wait().document
    finally:
        run.close()
    seen = {spelled(one["module"]): one for one in document["modules"]}
    counts = {
        name: seen[name.rpartition(":")[0].replace("_", " ")][name.rpartition(":")[2]]["count"]
        for name in own
    }
    assert {name: int(number) for name, number in own.items()} == counts
    assert LOAD == seen["Task.Supervisor"]["calls"]["count"]
    assert WORKERS == seen["Supervisor.Default"]["calls"]["count"]
    edges = {
        (spelled(one["caller"]), spelled(one["callee"])): one["calls"] for one in document["edges"]
    }
    assert LOAD == edges["Task.Supervised", "Shop.Worker"]
    assert LOAD + WORKERS == edges["Shop.Application", "Shop.Worker"]
