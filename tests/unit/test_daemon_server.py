# SPDX-License-Identifier: Apache-2.0
"""
Real clients on real sockets, good and bad ones, and what each is answered.
"""

import base64
import contextlib
import hashlib
import http.client
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import beams_run
import pytest

from scope_ebpf.daemon.config import Config, ConfigError
from scope_ebpf.daemon.loop import Daemon
from scope_ebpf.daemon.web import http as http_module
from scope_ebpf.daemon.web import server as server_module
from scope_ebpf.daemon.web.http import hash_password
from scope_ebpf.daemon.web.server import serve
from scope_ebpf.kernel.cost import HitCost

#: Seconds that a client has, instead of two and ten.
PATIENCE = 0.5
LOCAL = Config(listen=("127.0.0.1", 0))


@contextlib.contextmanager
def serving(config=LOCAL):
    """
    A daemon that does not run, but responds at its port, or at the path of its socket.
    """
    daemon = Daemon(config, HitCost(1e-6, 1e-6), lambda: config)
    with contextlib.ExitStack() as stack:
        stack.callback(daemon.targets.close)
        server = serve(daemon)
        stack.callback(server.close)
        port = server.addresses[0].rpartition(":")[2]
        yield daemon, int(port) if port.isdecimal() else port


@pytest.fixture(scope="module")
def site():
    with serving() as (daemon, port):
        yield daemon, port


@pytest.fixture
def impatient(monkeypatch):
    """
    Clients that take longer than half a second are disconnected.
    """
    monkeypatch.setattr(server_module, "PATIENCE", PATIENCE)
    monkeypatch.setattr(server_module, "HEAD_SECONDS", PATIENCE)


def get(port, path="/metrics", context=None, headers=None):
    scheme = "https" if context else "http"
    asked = urllib.request.Request(f"{scheme}://localhost:{port}{path}", headers=headers or {})
    with urllib.request.urlopen(asked, timeout=30, context=context) as answer:
        return answer.read().decode()


def status(port, path="/metrics", method="GET", headers=None):
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(client):
        client.request(method, path, headers=headers or {})
        answer = client.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())


def basic(user, password):
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def until_closed(client):
    """
    Everything that the server says before it closes the connection.
    """
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := client.recv(65536):
            said += chunk
    return said


def test_a_scrape_is_answered(site):
    """
    Metrics, page, health and readiness are there; anything else is not.
    """
    daemon, port = site
    assert "scope_ebpf_targets 0.0" in get(port)
    assert "0 observed" in get(port, "/")
    assert status(port, "/readyz")[0] == 503
    daemon.ready = True
    assert status(port, "/readyz")[0] == 200
    assert status(port, "/nothing")[0] == 404


def test_only_reading_is_possible(site):
    """
    HEAD is answered without a body; methods that would change something are refused.
    """
    _, port = site
    assert status(port, method="HEAD")[:2] == (200, b"")
    code, _, headers = status(port, method="POST")
    assert code == 405
    assert headers["Allow"] == "GET, HEAD"


@pytest.mark.usefixtures("impatient")
def test_a_scraper_that_sends_a_byte_now_and_then_is_disconnected(site):
    """
    A client that takes too long loses the connection, though it is never silent.
    """
    _, port = site
    ended = threading.Event()
    with socket.create_connection(("127.0.0.1", port)) as client:

        def dribble():
            with contextlib.suppress(OSError):
                while not ended.wait(PATIENCE / 5):
                    client.sendall(b"G")

        thread = threading.Thread(target=dribble)
        thread.start()
        client.settimeout(30)
        until_closed(client)
        ended.set()
        thread.join()
    assert "scope_ebpf_targets" in get(port)


def test_a_scraper_that_disconnects_half_way_affects_no_other(site, capfd):
    """
    The next one is served, and the log has no traceback.
    """
    _, port = site
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            client.recv(10)
            # Closes with a reset, while the answer is being written.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert "scope_ebpf_targets" in get(port)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
        b"GET\r\n\r\n",
        b"GET /metrics HTTP/9.9\r\n\r\n",
        b"\0" * 1000 + b"\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"\xff\xfe \xfd HTTP/1.1\r\n\r\n",
    ],
    ids=["tls", "no path", "version", "zeros", "long path", "headers", "long header", "no text"],
)
def test_garbage_is_answered_with_an_error_or_not_at_all(site, garbage, capfd):
    """
    Bytes that are not a request get a 4xx, a 5xx or a closed connection; the next client is served.
    """
    _, port = site
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(30)
        with contextlib.suppress(OSError):  # it may have hung up in between
            client.sendall(garbage)
            client.shutdown(socket.SHUT_WR)
        said = until_closed(client)
    assert b" 200 " not in said.split(b"\r\n")[0]
    assert "scope_ebpf_targets" in get(port)
    assert "Traceback" not in capfd.readouterr().err


def test_a_hundred_scrapers_at_once_are_all_served(site):
    """
    A client that connects while eight are served waits for a moment.
    """
    daemon, port = site
    before = daemon.errors["http"]
    with ThreadPoolExecutor(100) as pool:
        pages = list(pool.map(lambda _: get(port), range(100)))
    assert all("scope_ebpf_targets" in page for page in pages)
    assert before == daemon.errors["http"]


# Who takes long ---------------------------------------------------------------------------------


@contextlib.contextmanager
def clients(port, count, says=b"", *, unread=False):
    """
    Clients that send this and stop; *unread* ones receive next to nothing.
    """
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for client in found:
            client.settimeout(30)
            if unread:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", port))
            client.sendall(says)
        yield found


class Stuck:
    """
    A page that is not finished before the test ends it.
    """

    def __init__(self):
        self.begun, self.go_on = threading.Semaphore(0), threading.Event()

    def __call__(self, *_):
        self.begun.release()
        assert self.go_on.wait(30)
        return "<p>late</p>"


@pytest.mark.parametrize("says", [b"", b"GET /metrics HTTP/1.1\r\nX: "], ids=["nothing", "half"])
def test_clients_that_stop_do_not_keep_others_out(site, says):
    """
    A scrape is answered while twenty-four of them are connected.
    """
    _, port = site
    with clients(port, 24, says) as idle:
        assert "scope_ebpf_targets" in get(port)
        for client in idle:
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(1)


@pytest.mark.usefixtures("impatient")
def test_silent_clients_are_disconnected_and_counted(site):
    """
    Each of thirty loses its connection after the time limit.
    """
    daemon, port = site
    before = daemon.errors["http"]
    with clients(port, 30) as idle:
        assert {until_closed(client) for client in idle} == {b""}
    assert daemon.errors["http"] >= before + 30


def test_the_oldest_of_too_many_incomplete_requests_are_dropped(site, monkeypatch):
    """
    Their number is limited, and a client with a complete request is served.
    """
    _, port = site
    more = 20
    with clients(port, server_module.UNFINISHED + more) as idle:
        assert "scope_ebpf_targets" in get(port)
        assert {until_closed(client) for client in idle[:more]} == {b""}
        idle[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            idle[-1].recv(1)


def test_health_is_answered_under_any_load(site, monkeypatch):
    """
    All threads make pages that do not end, many clients wait, many are silent: it answers.
    """
    daemon, port = site
    stuck = Stuck()
    monkeypatch.setattr("scope_ebpf.daemon.web.http.page", stuck)
    whole = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with clients(port, 30, whole) as busy, clients(port, 24):
        for _ in range(server_module.AT_ONCE):
            assert stuck.begun.acquire(timeout=30)
        assert status(port, "/healthz")[:2] == (200, b"ok\n")
        assert status(port, "/readyz")[0] == (200 if daemon.ready else 503)
        stuck.go_on.set()
        assert all(b"late" in until_closed(client) for client in busy)


def test_health_says_that_looks_hang(site, monkeypatch):
    """
    A daemon that looks at no process any more is not healthy, although its loop goes on.
    """
    daemon, port = site
    monkeypatch.setattr(type(daemon.discovery.inspector), "stuck", True)
    code, body = status(port, "/healthz")[:2]
    assert (503, True) == (code, b"looks at processes hang" in body)


def test_a_client_gets_a_503_when_too_many_wait(site, monkeypatch):
    """
    One client too many gets a 503, and the others get their page.
    """
    _, port = site
    stuck = Stuck()
    monkeypatch.setattr("scope_ebpf.daemon.web.http.page", stuck)
    whole = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    room = server_module.AT_ONCE + server_module._WAITING
    with clients(port, room, whole) as busy:
        for _ in range(server_module.AT_ONCE):
            assert stuck.begun.acquire(timeout=30)
        assert status(port, "/")[0] == 503
        stuck.go_on.set()
        assert all(b"late" in until_closed(client) for client in busy)


#: Of a page: more than the kernel keeps for a client that does not read.
HUGE = 8 << 20


def test_slow_readers_do_not_keep_others_out(site, monkeypatch):
    """
    Twelve clients that do not read a long response hold no thread: a scrape is answered.
    """
    _, port = site
    monkeypatch.setattr("scope_ebpf.daemon.web.http.page", lambda _: "x" * HUGE)
    with clients(port, 12, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", unread=True) as slow:
        for client in slow:
            assert client.recv(8) == b"HTTP/1.0"  # its answer is there
        assert "scope_ebpf_targets" in get(port)


def test_what_slow_readers_have_not_read_is_bounded(monkeypatch):
    """
    Above the limit of unread bytes, the oldest response is aborted.
    """
    monkeypatch.setattr("scope_ebpf.daemon.web.http.page", lambda _: "x" * HUGE)
    monkeypatch.setattr(server_module, "_UNREAD", 2 * HUGE + HUGE // 2)
    whole = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with serving() as (_, port), contextlib.ExitStack() as stack:
        slow = []
        for _ in range(3):
            (client,) = stack.enter_context(clients(port, 1, whole, unread=True))
            assert client.recv(8) == b"HTTP/1.0"
            slow.append(client)
        for client in slow:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        lengths = [len(until_closed(client)) for client in slow]
    assert [length > HUGE for length in lengths] == [False, True, True]


@pytest.mark.usefixtures("impatient")
def test_a_slow_reader_is_disconnected(site, monkeypatch):
    """
    A response that is not read is aborted after the time limit.
    """
    daemon, port = site
    before = daemon.errors["http"]
    monkeypatch.setattr("scope_ebpf.daemon.web.http.page", lambda _: "x" * HUGE)
    whole = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with clients(port, 1, whole, unread=True):
        deadline = time.monotonic() + 30
        while daemon.errors["http"] == before and time.monotonic() < deadline:
            assert "scope_ebpf_targets" in get(port)
    assert daemon.errors["http"] == before + 1


def test_a_thread_that_cannot_be_started_takes_no_slot(monkeypatch, caplog):
    """
    Where the system refuses a thread, the client is disconnected, and later ones are served.
    """

    def fail(*_):
        raise RuntimeError("can't start new thread")

    with serving() as (daemon, port):
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            for _ in range(server_module.AT_ONCE + 1):
                with pytest.raises(OSError):
                    get(port)
            assert status(port, "/healthz")[0] == 200
        assert "scope_ebpf_targets" in get(port)
        assert daemon.errors["http"] == server_module.AT_ONCE + 1
    assert {record.getMessage() for record in caplog.records} == {"a request failed"}


# What is said -----------------------------------------------------------------------------------


def test_bytes_that_are_not_text_do_not_spoil_the_page(site, monkeypatch):
    """
    Bytes of a path that are not UTF-8, and control characters, are not shown.
    """
    daemon, port = site
    monkeypatch.setitem(daemon.targets.admission.refused, 7, "cannot open /opt/\udcff\x1b[2J<b>")
    assert "cannot open /opt/??[2J&lt;b&gt;" in get(port, "/")


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz", "/nothing"])
def test_a_response_names_no_version_and_has_its_type(site, path):
    """
    No header names a program; clients must not guess types, nor cache.
    """
    _, port = site
    _, body, headers = status(port, path)
    assert set(headers) <= {
        *("Content-Type", "Content-Length", "Connection", "Cache-Control"),
        *("X-Content-Type-Options", "Content-Security-Policy", "Referrer-Policy"),
    }
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert int(headers["Content-Length"]) == len(body)


def test_a_browser_may_only_show_the_page(site):
    """
    The page loads nothing; its style is the one that the policy permits.
    """
    _, port = site
    _, body, headers = status(port, "/")
    style = body.partition(b"<style>")[2].partition(b"</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style).digest()).decode()
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["style-src"] == f"'sha256-{digest}'"


def test_compat_names_are_not_served_as_openmetrics(monkeypatch):
    """
    Names of two versions of prometheus.erl clash there; the text format permits them.
    """
    wants = {"Accept": "application/openmetrics-text; version=1.0.0"}
    for compat, kind in (((), "application/openmetrics-text"), (("erlang-vm",), "text/plain")):
        with serving(replace(LOCAL, compat=compat)) as (_, port):
            assert status(port, headers=wants)[2]["Content-Type"].startswith(kind)


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("localhost", 200),
        ("LocalHost:9568", 200),
        ("localhost.", 200),
        ("127.0.0.1:1", 200),
        ("127.9.9.9", 200),
        ("[::1]:9568", 200),
        ("metrics.example.org", 200),
        ("METRICS.example.org:443", 200),
        ("evil.example.org", 421),
        ("evil.example.org:9568", 421),
        ("metrics.example.org.evil.example.org", 421),
        ("localhost.evil.example.org", 421),
        ("192.0.2.1", 421),
        ("[2001:db8::1]", 421),
        ("127.0.0.1@evil.example.org", 421),
        ("localhost:x", 421),
        ("", 421),
    ],
)
def test_a_loopback_address_is_served_under_its_names_only(host, code):
    """
    A web page whose own name resolves to 127.0.0.1 reads nothing.
    """
    with serving(replace(LOCAL, hosts=("metrics.example.org",))) as (_, port):
        for path in ("/metrics", "/"):
            assert code == status(port, path, headers={"Host": host})[0]


def test_a_request_without_host_is_served(site):
    """
    HTTP/1.0 has no Host, and does not come from a browser.
    """
    _, port = site
    with clients(port, 1, b"GET /metrics HTTP/1.0\r\n\r\n") as (client,):
        assert until_closed(client).startswith(b"HTTP/1.0 200 ")


def test_an_address_that_others_reach_is_served_under_any_name():
    """
    A daemon that listens on all addresses is meant for other hosts.
    """
    with serving(replace(LOCAL, listen=("0.0.0.0", 0))) as (_, port):
        assert status(port, headers={"Host": "metrics.example.org"})[0] == 200


def test_a_unix_socket_is_served(tmp_path):
    """
    Clients that may use the socket get the same responses as at a port, under any name.
    """
    path = tmp_path / "metrics.sock"
    with (
        serving(replace(LOCAL, listen=path)) as (_, there),
        socket.socket(socket.AF_UNIX) as client,
    ):
        client.settimeout(30)
        client.connect(there)
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: any\r\n\r\n")
        assert b"scope_ebpf_targets 0.0" in until_closed(client)
    assert not path.exists()


def test_an_error_of_the_daemon_is_one_line(site, monkeypatch, caplog):
    """
    A page that cannot be made is a 500 for the client, and one line in the log.
    """
    _, port = site
    monkeypatch.setattr("scope_ebpf.daemon.web.http.page", lambda daemon: 1 / 0)
    assert status(port, "/")[0] == 500
    assert "scope_ebpf_targets" in get(port)
    assert [record.getMessage() for record in caplog.records] == ["a request failed"]
    assert "ZeroDivisionError" in str(caplog.records[0].fields["why"])


# Who may ask ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded():
    users = {"prometheus": hash_password(b"right", b"salt", rounds=10)}
    with serving(replace(LOCAL, users=users)) as (daemon, port):
        yield daemon, port


@pytest.mark.parametrize(
    "headers",
    [
        {},
        basic("prometheus", "wrong"),
        basic("prometheus", ""),
        basic("nobody", "right"),
        {"Authorization": "Basic"},
        {"Authorization": "Basic !!!"},
        {"Authorization": "Basic " + base64.b64encode(b"\xff\xfe:x").decode()},
        {"Authorization": "Bearer right"},
    ],
)
def test_without_the_right_password_nothing_is_shown(guarded, headers):
    """
    A missing, wrong or malformed password is a 401 that asks for one.
    """
    _, port = guarded
    for path in ("/metrics", "/", "/nothing"):
        code, body, answered = status(port, path, headers=headers)
        assert code == 401
        assert answered["WWW-Authenticate"].startswith("Basic ")
        assert b"scope_ebpf_" not in body


def test_with_the_right_password_all_is_shown(guarded):
    """
    The right one is accepted repeatedly, also after a wrong one.
    """
    _, port = guarded
    for _ in range(3):
        assert status(port, headers=basic("prometheus", "right"))[0] == 200
        assert status(port, headers=basic("prometheus", "wrong"))[0] == 401


def test_a_changed_password_is_not_accepted_any_more(guarded, monkeypatch):
    """
    A password from before the config was read again is refused after it.
    """
    daemon, port = guarded
    assert status(port, headers=basic("prometheus", "right"))[0] == 200
    users = {"prometheus": hash_password(b"other", b"salt", rounds=10)}
    monkeypatch.setattr(daemon, "config", replace(daemon.config, users=users))
    assert status(port, headers=basic("prometheus", "right"))[0] == 401
    assert status(port, headers=basic("prometheus", "other"))[0] == 200


def test_guessing_passwords_takes_little_of_one_core(guarded, monkeypatch):
    """
    One of sixteen concurrent guesses is checked, then there is a pause; the right one succeeds.
    """
    _, port = guarded
    looking, most, pauses = [], [], []

    def matches(stored, password):
        looking.append(password)
        most.append(len(looking))
        until = time.thread_time() + 0.01
        while time.thread_time() < until:
            pass
        if password == b"new":
            looking.clear()
        return password == b"new"

    def sleep(seconds):
        pauses.append(seconds)
        looking.pop()

    clocks = {"monotonic": time.monotonic, "thread_time": time.thread_time}
    monkeypatch.setattr(http_module, "matches", matches)
    monkeypatch.setattr(http_module, "time", SimpleNamespace(sleep=sleep, **clocks))
    words = [*(f"guess {n}" for n in range(15)), "new"]
    with ThreadPoolExecutor(16) as pool:
        codes = list(pool.map(lambda w: status(port, headers=basic("prometheus", w))[0], words))
    assert codes == [401] * 15 + [200]
    assert most == [1] * 16
    assert len(pauses) == 15
    assert min(pauses) >= 4 * 0.01


@pytest.mark.parametrize("user", ["prometheus", "nobody"])
def test_an_unknown_user_takes_as_long(guarded, user, monkeypatch):
    """
    One password is checked, with as many rounds, whether or not the user exists.
    """
    _, port = guarded
    looked = []
    monkeypatch.setattr(
        http_module, "matches", lambda stored, _: looked.append(stored.split(":")[1]) or False
    )
    assert status(port, headers=basic(user, "wrong"))[0] == 401
    assert looked == ["10"]


def test_an_unknown_user_is_never_accepted(guarded, monkeypatch):
    """
    A password that fits the hash that is checked instead is refused.
    """
    _, port = guarded
    monkeypatch.setattr(http_module, "matches", lambda *_: True)
    assert status(port, headers=basic("nobody", "right"))[0] == 401
    assert status(port, headers=basic("nobody", "right"))[0] == 401


def test_guessing_does_not_keep_others_out(guarded, monkeypatch):
    """
    During forty endless checks a known client is served; one guess too many gets an error.
    """
    _, port = guarded
    right = basic("prometheus", "right")
    assert status(port, headers=right)[0] == 200
    stuck = Stuck()
    monkeypatch.setattr(http_module, "matches", lambda *_: not stuck())
    guess = "".join(f"{name}: {text}\r\n" for name, text in basic("prometheus", "no").items())
    whole = f"GET /metrics HTTP/1.1\r\nHost: localhost\r\n{guess}\r\n".encode()
    with clients(port, 40, whole) as guessing:
        assert stuck.begun.acquire(timeout=30)
        for _ in range(5):
            assert status(port, headers=right)[0] == 200
        stuck.go_on.set()
        codes = Counter(until_closed(client).split()[1] for client in guessing)
    assert codes == {b"401": 1 + server_module._GUESSES, b"503": 40 - 1 - server_module._GUESSES}


def test_health_needs_no_password(guarded):
    """
    A monitor of the daemon has no password.
    """
    _, port = guarded
    assert status(port, "/healthz")[0] == 200


# TLS --------------------------------------------------------------------------------------------


def certificate(folder, name):
    """
    A self-signed certificate for localhost and its key.
    """
    beams_run.require(shutil.which("openssl"), "openssl is not installed")
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext"),
            *("subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


def test_tls_is_served(tmp_path):
    """
    A client that trusts the certificate is served; one that does not, or does not use TLS, is not.
    """
    cert, key = certificate(tmp_path, "first")
    config = replace(LOCAL, tls_cert=str(cert), tls_key=str(key))
    with serving(config) as (daemon, port):
        trusting = ssl.create_default_context(cafile=str(cert))
        assert "scope_ebpf_targets" in get(port, context=trusting)
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            get(port, context=ssl.create_default_context())
        with pytest.raises((urllib.error.URLError, ConnectionError, http.client.HTTPException)):
            get(port)
        assert "scope_ebpf_targets" in get(port, context=trusting)
        assert daemon.errors["http"] >= 1


def test_a_renewed_certificate_is_loaded(tmp_path):
    """
    After the config was read again the new certificate is used; a broken one is not.
    """
    cert, key = certificate(tmp_path, "old")
    config = replace(LOCAL, tls_cert=str(cert), tls_key=str(key))
    with serving(config) as (daemon, port):
        fresh, fresh_key = certificate(tmp_path, "new")
        shutil.copy(fresh, cert)
        shutil.copy(fresh_key, key)
        daemon.listeners[0](config)
        trusting = ssl.create_default_context(cafile=str(fresh))
        assert "scope_ebpf_targets" in get(port, context=trusting)
        cert.write_text("no certificate")
        daemon.listeners[0](config)
        assert "scope_ebpf_targets" in get(port, context=trusting)


@pytest.mark.parametrize("broken", ["key of another", "no key", "no file"])
def test_a_renewed_certificate_that_cannot_be_used_changes_nothing(tmp_path, broken, caplog):
    """
    Where the key of the new certificate is missing or wrong, clients see the old pair.
    """
    cert, key = certificate(tmp_path, "old")
    config = replace(LOCAL, tls_cert=str(cert), tls_key=str(key))
    trusting = ssl.create_default_context(cafile=str(cert))
    with serving(config) as (daemon, port):
        fresh, _ = certificate(tmp_path, "new")
        shutil.copy(fresh, cert)
        if broken == "no key":
            key.write_text("no key\n")
        elif broken == "no file":
            key.unlink()
        for _ in range(2):
            daemon.listeners[0](config)
            assert "scope_ebpf_targets" in get(port, context=trusting)
    said = [record.getMessage() for record in caplog.records]
    assert said == ["certificate refused, the old one stays"] * 2


@pytest.mark.usefixtures("impatient")
def test_a_client_that_stops_in_the_handshake_is_disconnected(tmp_path):
    """
    An unfinished handshake has the time limit of a request.
    """
    cert, key = certificate(tmp_path, "some")
    config = replace(LOCAL, tls_cert=str(cert), tls_key=str(key))
    with serving(config) as (_, port), socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(30)
        client.sendall(b"\x16\x03\x01")
        assert until_closed(client) == b""


def test_unfinished_handshakes_do_not_keep_others_out(tmp_path):
    """
    Twenty-four clients stop in the handshake; another client is served meanwhile.
    """
    cert, key = certificate(tmp_path, "some")
    config = replace(LOCAL, tls_cert=str(cert), tls_key=str(key))
    trusting = ssl.create_default_context(cafile=str(cert))
    with serving(config) as (_, port), clients(port, 24, b"\x16\x03\x01\x02\0\x01") as idle:
        assert "scope_ebpf_targets" in get(port, context=trusting)
        idle[0].setblocking(False)
        with pytest.raises(BlockingIOError):
            idle[0].recv(1)


@pytest.mark.parametrize("broken", ["missing", "text", "key of another"])
def test_a_certificate_that_cannot_be_used_is_said_in_one_line(tmp_path, broken):
    """
    The daemon does not start without the TLS that its config asks for.
    """
    cert, key = certificate(tmp_path, "one")
    if broken == "missing":
        cert.unlink()
    elif broken == "text":
        cert.write_text("no certificate\n")
    else:
        _, key = certificate(tmp_path, "two")
    config = replace(LOCAL, tls_cert=str(cert), tls_key=str(key))
    with pytest.raises(ConfigError, match="cannot use the certificate") as refused, serving(config):
        pass
    assert "\n" not in str(refused.value)
