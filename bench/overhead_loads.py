# SPDX-License-Identifier: Apache-2.0
"""The loads of ``bench/overhead.py``: VMs at work, and how much they have done."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import beams_run
import windows_run

from scope_ebpf.beam.vm.counters import CounterReader
from scope_ebpf.beam.vm.discover import inspect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: What a planted storm is measured by: the counter of the VM that is its throughput.
_STORMS = {"pingpong": "context_switches", "spawn": "spawned", "gc": "collections"}
#: Pairs, spawners or collectors.
_AT_ONCE = {"pingpong": 8, "spawn": 4, "gc": 4}
#: Flags of a VM whose schedulers sleep when there is nothing to do: then its CPU is that of work.
_AT_REST = ("+sbwt", "none", "+sbwtdcpu", "none", "+sbwtdio", "none")
NAME = f"bench{os.getpid()}"


class Load:
    """A VM *pid* at work; *work* lets it work for some seconds and returns how much it did."""

    def __init__(self, pid: int, unit: str, work: Callable[[float], float]) -> None:
        self.pid, self.unit, self.work = pid, unit, work


def _sleeping(count: Callable[[], int]) -> Callable[[float], float]:
    def work(seconds: float) -> float:
        before = count()
        time.sleep(seconds)
        return (count() - before) % 2**32

    return work


def named() -> list[str]:
    """Options of a VM that can be named; with one scheduler, so that others find room beside it."""
    port = str(beams_run.free_port())
    return [
        *("-name", f"{NAME}@127.0.0.1", "-start_epmd", "false", "-erl_epmd_port", port),
        *("-kernel", "inet_dist_use_interface", "{127,0,0,1}", "+S", "1:1"),
    ]


@contextlib.contextmanager
def storm(kind: str) -> Iterator[Load]:
    """A storm of ``planted.erl``."""
    with beams_run.planted("stock25", *named()) as beam:
        reader = CounterReader(inspect(beam.pid))
        assert beam.ask(f"storm {kind} {_AT_ONCE[kind]}") == "storming"
        counter = _STORMS[kind]
        yield Load(beam.pid, counter, _sleeping(lambda: int(getattr(reader.read(), counter))))
        beam.ask("stop")


@contextlib.contextmanager
def rabbitmq() -> Iterator[Load]:
    """RabbitMQ, through which pika publishes and consumes messages of 256 bytes."""
    from apps.load_rabbitmq import Load as Traffic  # pika, which others need not
    from apps.rabbitmq import rabbitmq as broker

    with broker(*_AT_REST) as app:
        traffic = Traffic(app.ports["amqp"], 256)
        client = threading.Thread(target=traffic.run, args=(float("inf"),))
        client.start()
        try:
            _until(lambda: traffic.consumed > 0)
            yield Load(app.pid, "messages", _sleeping(lambda: traffic.consumed))
        finally:
            traffic.end()
            client.join()


@contextlib.contextmanager
def cowboy() -> Iterator[Load]:
    """Cowboy, asked by wrk over 16 connections."""
    paths = [
        str(path)
        for name in ("cowboy", "cowlib", "ranch")
        for path in Path("/usr/lib/rabbitmq/lib").glob(f"*/plugins/{name}-*/ebin")
    ]
    port = str(beams_run.free_port())
    options = [*named(), *_AT_REST, "-pa", *paths, "-web_port", port, "-s", "web"]
    with beams_run.start_beam("stock25", *options) as beam:
        beam.expect("ready")
        answers = windows_run.Truth(beam.pid)
        command = ["wrk", "-t", "1", "-c", "16", "-d", "24h", f"http://127.0.0.1:{port}/"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as client:
            try:
                _until(lambda: answers() > 0)
                yield Load(beam.pid, "requests", _sleeping(answers))
            finally:
                client.kill()


def _until(begun: Callable[[], bool]) -> None:
    """Wait until a load has begun."""
    deadline = time.monotonic() + beams_run.PATIENCE
    while not begun():
        if time.monotonic() > deadline:
            raise SystemExit("the load does not begin")
        time.sleep(0.05)


LOADS: dict[str, Callable[[], contextlib.AbstractContextManager[Load]]] = {
    "pingpong": lambda: storm("pingpong"),
    "spawn": lambda: storm("spawn"),
    "gc": lambda: storm("gc"),
    "rabbitmq": rabbitmq,
    "cowboy": cowboy,
}
