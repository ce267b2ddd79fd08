# SPDX-License-Identifier: Apache-2.0
"""``scope-ebpfd``: the daemon, from its options to its end."""

from __future__ import annotations

import argparse
import getpass
import importlib.metadata
import logging
import os
import resource
import secrets
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# numpy's linear algebra would start a thread for each CPU, with a stack each; we use none of it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from scope_ebpf.daemon import config as settings
from scope_ebpf.daemon.notify import Logfmt, line_limit, log, say
from scope_ebpf.errors import HostError, NothingToAttachError, ScopeError
from scope_ebpf.sinks.plain import plain
from scope_ebpf.sinks.plain import say as say_plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scope_ebpf.kernel.cost import HitCost

DEFAULT_CONFIG = Path("/etc/scope-ebpf/config.toml")

_DESCRIPTION = """\
Observe every Erlang and Elixir VM of this host from the outside, within a budget of its
CPU, and export metrics for Prometheus. The VMs are not changed, restarted or asked.
"""
_EPILOG = """\
signals: SIGHUP reads the config again; SIGTERM detaches from everything and ends.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon until a signal ends it; returns its exit code."""
    arguments = parser().parse_args(argv)
    try:
        if arguments.hash_password:
            return _hash_password()
        return _run(arguments)
    except ScopeError as error:
        say_plain(f"scope-ebpfd: {plain(str(error))}")
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _run(arguments: argparse.Namespace) -> int:
    from scope_ebpf.daemon import heap  # after the options are known good
    from scope_ebpf.daemon.loop import Daemon
    from scope_ebpf.daemon.web.server import serve
    from scope_ebpf.kernel import host
    from scope_ebpf.kernel.bpf.stats import measuring
    from scope_ebpf.sandbox import client

    client.ahead()  # while there is one thread

    def read() -> settings.Config:
        return _config(arguments)

    config = read()
    host.require()
    # The loop must not wait long for a thread that reads a table or writes a scrape.
    sys.setswitchinterval(0.0005)
    heap.use_one_arena()
    _log_to_stderr(arguments.log_level)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each VM takes some eighty
    with measuring() as measured:
        if not measured:
            why = "CAP_SYS_ADMIN is missing"
            say(logging.INFO, "hits are priced by what they cost at the start", why=why)
        daemon = Daemon(config, _cost(config), read)
        server = serve(daemon)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda n, _: daemon.ask(signal.Signals(n)))
        for address in server.addresses:
            say(logging.INFO, "listening", address=address, budget=config.budget)
        try:
            daemon.run()
        finally:
            server.close()
    say(logging.INFO, "ended")
    return 0


def _cost(config: settings.Config) -> HitCost:
    """What a hit costs here; where breakpoints are refused, everything else goes on."""
    from scope_ebpf.kernel import cost

    try:
        return cost.measure()
    except (HostError, NothingToAttachError) as error:
        if config.strict:
            raise
        say(logging.WARNING, "the cost of a hit is not known", why=error)
        return cost.UNKNOWN


def _config(arguments: argparse.Namespace) -> settings.Config:
    path = arguments.config
    if path is None and DEFAULT_CONFIG.exists():
        path = DEFAULT_CONFIG
    overrides = {
        "listen": arguments.listen,
        "budget": arguments.budget,
        "strict": arguments.strict or None,
        "compat": arguments.compat,
    }
    return settings.load(path, overrides)


def _log_to_stderr(level: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(Logfmt())
    handler.addFilter(line_limit)
    log.addHandler(handler)
    log.setLevel(level.upper())


def _hash_password() -> int:
    from scope_ebpf.daemon.web.http import hash_password

    password = getpass.getpass() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
    print(hash_password(password.encode(), secrets.token_bytes(16)))
    return 0


def parser() -> argparse.ArgumentParser:
    """The options of the daemon."""
    parser = argparse.ArgumentParser(
        prog="scope-ebpfd",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = importlib.metadata.version("scope-ebpf")
    parser.add_argument("--version", action="version", version=f"scope-ebpfd {version}")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"default: {DEFAULT_CONFIG}, if it is there"
    )
    parser.add_argument(
        "--listen",
        metavar="ADDRESS:PORT",
        help=f"or unix:PATH; default: {settings.DEFAULT_LISTEN}",
    )
    parser.add_argument(
        "--budget", metavar="SHARE", help="what hooks may take of a target's CPU (default: 1%%)"
    )
    parser.add_argument(
        "--strict", action="store_true", help="end with an error if anything cannot be observed"
    )
    parser.add_argument(
        "--compat",
        action="append",
        choices=["erlang-vm", "prom-ex"],
        help="offer series under the names of prometheus.erl, or of PromEx, as well",
    )
    parser.add_argument(
        "--log-level", choices=["debug", "info", "warning", "error"], default="info"
    )
    parser.add_argument(
        "--hash-password", action="store_true", help="read a password, print its hash, end"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
