# SPDX-License-Identifier: Apache-2.0
"""
Who may connect to the daemon keeps no scraper out, and what a VM calls itself is only shown.
"""

from __future__ import annotations

import contextlib
import html
import resource
import socket
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families
from test_daemon import PATIENCE, daemon, named
from tracing import wait_until

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from test_daemon_server import certificate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Scene

HALF = b"GET /metrics HTTP/1.1\r\nX: "
WHOLE = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
#: What a terminal obeys, what a page or a label may take for its own, and what turns text around.
EVIL = (
    "\x1b[2J\x1b]0;owned\x07",
    "\0\b\r\x7f",
    "\x9b31m\x85",
    'quote"} 1\nbeam_injected_total 1\n',
    "back\\slash{}",
    "<script>alert(1)</script>",
    "\u202egnp.exe",
    "\u2028\u2066\ufeff",
    "été-Ünïcode-漢字",
    "'; DROP TABLE nodes; --",
)
OBEYED = {character for name in EVIL for character in name if not character.isprintable()}


@contextlib.contextmanager
def clients(port: int, count: int, says: bytes) -> Iterator[list[socket.socket]]:
    """
    So many clients that say this and then do nothing.
    """
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            client = socket.create_connection(("127.0.0.1", port), PATIENCE)
            found.append(stack.enter_context(client))
            with contextlib.suppress(OSError):  # it may have been dropped for those that came later
                client.sendall(says)
        yield found


def said(port: int, request: bytes) -> bytes:
    """
    Everything that is answered to *request*, after which nothing comes.
    """
    with clients(port, 1, request) as (client,):
        answer = b""
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while chunk := client.recv(65536):
                answer += chunk
    return answer


@pytest.mark.parametrize("says", [b"", HALF, WHOLE], ids=["silent", "half", "unread"])
def test_idle_clients_keep_no_scraper_out(scene: Scene, says: bytes):
    """
    Beside twenty-four that are idle, and twenty-four more each time, every scrape is answered.
    """
    with contextlib.ExitStack() as idle:
        for _ in range(10):
            idle.enter_context(clients(scene.daemon.port, 24, says))
            assert "scope_ebpf_targets " in scene.daemon.get()
            assert scene.daemon.get("/healthz") == "ok\n"


def test_five_hundred_idle_clients_keep_no_scraper_out(scene: Scene):
    """
    The oldest of them are dropped, and not the one who has something to ask.
    """
    with clients(scene.daemon.port, 500, HALF):
        assert "scope_ebpf_targets " in scene.daemon.get()
        assert scene.daemon.get("/healthz") == "ok\n"


def test_idle_clients_do_not_take_the_last_files(scene: Scene):
    """
    Where the daemon may open few files more, idle clients give theirs up before it wants for one.
    """
    pid = scene.daemon.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 100, limits[1]))
    try:
        with clients(scene.daemon.port, 120, HALF):
            assert scene.daemon.get("/healthz") == "ok\n"
            assert "scope_ebpf_targets " in scene.daemon.get()
            assert len(list(Path(f"/proc/{pid}/fd").iterdir())) < used + 60
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def test_clients_that_stop_within_tls_keep_no_scraper_out(tmp_path: Path):
    """
    In the handshake, in a request, or before the answer: a daemon that speaks TLS serves others.
    """
    cert, key = certificate(tmp_path, "daemon")
    trusting = ssl.create_default_context(cafile=str(cert))
    config = f'include_nodes = ["^nobody@"]\ntls_cert = "{cert}"\ntls_key = "{key}"\n'

    def get(path: str) -> str:
        with contextlib.suppress(ConnectionError, urllib.error.URLError):  # it does not listen yet
            url = f"https://localhost:{running.port}{path}"
            with urllib.request.urlopen(url, timeout=PATIENCE, context=trusting) as answer:
                return answer.read().decode()
        return ""

    with daemon(config, tmp_path) as running, contextlib.ExitStack() as idle:
        wait_until(lambda: get("/healthz") == "ok\n", "an answer")
        for says in (b"", HALF, WHOLE):
            idle.enter_context(clients(running.port, 24, b"\x16\x03\x01\x02\0\x01"))
            for client in idle.enter_context(clients(running.port, 24, b"")):
                with contextlib.suppress(OSError):  # dropped for those that came later
                    spoken = trusting.wrap_socket(client.dup(), server_hostname="localhost")
                    idle.enter_context(spoken).sendall(says)
            assert "scope_ebpf_targets " in get("/metrics")
            assert get("/healthz") == "ok\n"
        assert 0 == running.end()[0]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"y" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (WHOLE + WHOLE, 200),
        (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics/../metrics HTTP/1.1\r\n\r\n", 404),
        (b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics%00 HTTP/1.1\r\n\r\n", 404),
        (b"GET /met\0rics HTTP/1.1\r\n\r\n", 400),
        (b"GET http://evil.example.org/metrics HTTP/1.1\r\n\r\n", 404),
        (b"GET //metrics HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics?name[]=up HTTP/1.1\r\n\r\n", 200),
        (b"POST /metrics HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 405),
        (b"GET /metrics HTTP/1.1\r\nTransfer-Encoding: x\r\nContent-Length: 5\r\n\r\nGET /", 200),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n" + b"x" * 99_999, 405),
        (b"GET /metrics HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 200),
        (b"GET /metrics HTTP/9.9\r\n\r\n", 505),
        (b"GET /metrics\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\n\r\n", 405),
        (b"CONNECT 127.0.0.1:22 HTTP/1.1\r\n\r\n", 405),
        (b"\xff\xfe\xfd\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: evil.example.org\r\n\r\n", 421),
        (b"GET / HTTP/1.1\r\nHost: localhost.evil.example.org:9568\r\n\r\n", 421),
        (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: evil.example.org\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nExpect: 100-continue\r\n\r\n", 200),
    ],
)
def test_an_odd_request_has_its_status(shared_scene: Scene, request_: bytes, status: int):
    """
    One answer each, without a word of who gives it; where it is refused, of one line.
    """
    head, _, body = said(shared_scene.daemon.port, request_).partition(b"\r\n\r\n")
    assert head.split()[1] == str(status).encode()
    assert b"server:" not in head.lower()
    assert b"python" not in head.lower()
    assert status == 200 or body.count(b"\n") == 1


def strange(names: tuple[str, ...]) -> str:
    """
    Erlang that registers a process under each name: half of them with the longest mailboxes of the
    VM, half with the largest heaps.
    """
    lists = ",".join(f"{list(map(ord, name))}" for name in names)
    return (
        "Wait = fun W(Keep) -> receive never -> W(Keep) end end,"
        "lists:foldl(fun(Name, N) -> Size = (N rem 2) * 300000,"
        "Pid = spawn(fun() -> Wait(lists:seq(1, Size)) end),"
        "register(list_to_atom(Name), Pid),"
        "[Pid ! x || Size == 0, _ <- lists:seq(1, 500)],"
        f"N + 1 end, 0, [{lists}])"
    )


def top_names(samples: dict[tuple[str, ...], float]) -> set[str]:
    """
    Names of the rankings, without what distinguishes those that look alike.
    """
    return {key[1].partition("~")[0] for key in samples if key[0].startswith("beam_top_")}


def test_what_a_vm_calls_its_processes_is_only_shown(scene: Scene):
    """
    Names that a terminal, a page or a parser would obey are text of a label, and OpenMetrics'
    reference parser takes the page, in which many counts are estimates.
    """
    evaluated = ("-eval", strange(EVIL))
    shown = {"".join(c if c.isprintable() else "?" for c in name) for name in EVIL}
    with named("+S", "2:2", *evaluated, emulator=scene.folder / "emulator") as beam:
        beam.send("storm gc 2")
        beam.expect("storming")
        ratio, windows = ("scope_ebpf_sampling_ratio", "gc"), ("scope_ebpf_windows_total",)
        scene.daemon.until(
            beam.pid, lambda n: n[ratio] < 1 and n[windows] > 5 and shown <= top_names(n)
        )
        text, page = scene.daemon.get(), scene.daemon.get("/")
        own = f"vm/{beam.pid}"
        page += scene.daemon.get(f"/{own}") + scene.daemon.get(f"/api/v1/{own}")
        wanted = {"Accept": "application/openmetrics-text; version=1.0.0"}
        request = urllib.request.Request(
            f"http://127.0.0.1:{scene.daemon.port}/metrics", headers=wanted
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
            measured = answer.read().decode()
        assert beam.ask("stop").startswith("done storm")
    families = [*text_string_to_metric_families(text), *openmetrics_families(measured)]
    samples = [sample for family in families for sample in family.samples]
    assert not [s for s in samples if s.name == "beam_injected_total"]
    assert not OBEYED - {"\n"} & set(text + page + measured)
    assert "<script" not in page
    assert html.escape(EVIL[5]) in page


def test_a_vm_has_its_user_and_its_cgroup(scene: Scene):
    """
    Beside its name, which it chose, stand who runs it and where, which it did not.
    """
    pid = scene.canary.pid
    (info,) = (
        s.labels
        for family in text_string_to_metric_families(scene.daemon.get())
        for s in family.samples
        if s.name == "beam_target_info" and s.labels["pid"] == str(pid)
    )
    assert info["uid"] == str(Path(f"/proc/{pid}").stat().st_uid)
    cgroups = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    assert info["cgroup"] in [line.split(":", 2)[2] for line in cgroups] or not cgroups
