# SPDX-License-Identifier: Apache-2.0
"""
RabbitMQ as the distribution ships it, on loopback, in a folder of its own.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from apps.app import App, free_ports, write_cookie
from beams_run import require

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_INSTALLED: Final = Path("/usr/lib/rabbitmq/lib")
_NODE: Final = "rabbit@localhost"
_PLUGINS: Final = "[rabbitmq_management,rabbitmq_prometheus]."


@contextmanager
def rabbitmq(*args: str, home: Path | None = None, otp: Path | None = None) -> Iterator[App]:
    """
    A running broker; its ``ports`` are ``amqp``, ``management`` and ``prometheus``.

    *args* are flags of its VM, *home* and *otp* copies of RabbitMQ and of OTP to run. The user
    guest with the password guest may do everything. It starts in about eight seconds.
    """
    homes = sorted(_INSTALLED.glob("rabbitmq_server-*"))
    require(homes, "rabbitmq-server is not installed")
    with tempfile.TemporaryDirectory(prefix="scope-rabbitmq-") as name:
        app = _start(home or homes[-1], Path(name), args, otp)
        try:
            app.wait_until("whereis(rabbit) =/= undefined andalso rabbit:is_running()")
            yield app
        finally:
            app.stop()


@contextmanager
def rabbitmq_cluster() -> Iterator[tuple[App, App]]:
    """
    Two running brokers, ``rabbit@localhost`` and ``hare@localhost``, that are one cluster.
    """
    homes = sorted(_INSTALLED.glob("rabbitmq_server-*"))
    require(homes, "rabbitmq-server is not installed")
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="scope-rabbitmq-")))
        first = _joined(running, folder / "rabbit", homes[-1], {})
        second = _joined(running, folder / "hare", homes[-1], {"epmd": first.ports["epmd"]})
        yield first, second


def _joined(running: ExitStack, folder: Path, home: Path, known: dict[str, int]) -> App:
    folder.mkdir()
    app = _start(home, folder, (), None, name=f"{folder.name}@localhost", known=known)
    running.callback(app.stop)
    app.wait_until("whereis(rabbit) =/= undefined andalso rabbit:is_running()")
    return app


def _start(
    home: Path,
    folder: Path,
    args: Sequence[str],
    otp: Path | None,
    *,
    name: str = _NODE,
    known: Mapping[str, int] | None = None,
) -> App:
    """
    Start the node *name*; ports that are *known* are those of another node, which it joins.
    """
    names = ("amqp", "management", "prometheus", "dist", "epmd")
    ports = {**dict(zip(names, free_ports(len(names)), strict=True)), **(known or {})}
    joins = _joining(name) if known else ""
    (folder / "rabbitmq.conf").write_text(_configuration(ports) + joins)
    (folder / "enabled_plugins").write_text(_PLUGINS)
    write_cookie(folder)
    environment = {**os.environ, **_environment(home, folder, ports, args)}
    environment["RABBITMQ_NODENAME"] = name
    if otp is not None:
        environment["PATH"] = f"{otp}/bin:{environment['PATH']}"
    # The port mapper is started here, so that it ends here; the VM would leave one behind.
    epmd = ["epmd", "-address", "127.0.0.1"]
    helpers = [] if known else [subprocess.Popen(epmd, env=environment)]
    with (folder / "console.log").open("wb") as log:
        process = subprocess.Popen(
            [home / "sbin/rabbitmq-server"],  # not the one in /usr/sbin, which changes the user
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    return App(process, folder, ports["dist"], ports, pid=process.pid, helpers=helpers)


def _joining(name: str) -> str:
    lines = ["cluster_formation.peer_discovery_backend = classic_config"]
    for number, node in enumerate((_NODE, name), 1):
        lines.append(f"cluster_formation.classic_config.nodes.{number} = {node}")
    return "".join(f"{line}\n" for line in lines)


def _configuration(ports: dict[str, int]) -> str:
    return f"""\
listeners.tcp.1 = 127.0.0.1:{ports["amqp"]}
management.tcp.ip = 127.0.0.1
management.tcp.port = {ports["management"]}
prometheus.tcp.ip = 127.0.0.1
prometheus.tcp.port = {ports["prometheus"]}
log.console = true
log.file = false
"""


def _environment(
    home: Path, folder: Path, ports: dict[str, int], args: Sequence[str]
) -> dict[str, str]:
    flags = ("-kernel", "inet_dist_use_interface", "{127,0,0,1}", *args)
    return {
        "HOME": str(folder),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(ports["epmd"]),
        "RABBITMQ_HOME": str(home),
        "RABBITMQ_DIST_PORT": str(ports["dist"]),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_FEATURE_FLAGS_FILE": str(folder / "feature_flags"),
        "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "config"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": " ".join(flags),
        # With this the script becomes the VM, instead of waiting for it: one pid for both.
        "RABBITMQ_ALLOW_INPUT": "true",
        "RABBITMQ_SERVER_START_ARGS": "-noinput",
    }
