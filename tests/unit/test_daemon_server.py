# SPDX-License-Identifier: Apache-2.0
"""
Real clients on real sockets, good and bad ones, and what each is answered.
"""

import base64
import contextlib
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from socketserver import ThreadingMixIn
from types import SimpleNamespace

import beams_run
import pytest

from scope_ebpf.daemon import http as http_module
from scope_ebpf.daemon import server as server_module
from scope_ebpf.daemon.config import Config, ConfigError
from scope_ebpf.daemon.http import hash_password
from scope_ebpf.daemon.loop import Daemon
from scope_ebpf.daemon.server import serve
from scope_ebpf.kernel.cost import HitCost

#: Seconds that a client has, instead of ten.
PATIENCE = 1.0
LOCAL = Config(listen=("127.0.0.1", 0))


@contextlib.contextmanager
def serving(config=LOCAL):
    """
    A daemon that does not run, but is asked.
    """
    daemon = Daemon(config, HitCost(1e-6, 1e-6), lambda: config)
    with contextlib.ExitStack() as stack:
        stack.callback(daemon.targets.close)
        server = serve(daemon)
        stack.callback(server.server_close)
        stack.callback(server.shutdown)
        yield daemon, server.server_address[1]


@pytest.fixture(scope="module")
def site():
    with serving() as (daemon, port):
        yield daemon, port


@pytest.fixture
def impatient(monkeypatch):
    """
    Who takes longer than a second is hung up on.
    """
    monkeypatch.setattr(server_module, "PATIENCE", PATIENCE)


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
    HEAD is answered without a body; what would change something is refused.
    """
    _, port = site
    assert status(port, method="HEAD")[:2] == (200, b"")
    code, _, headers = status(port, method="POST")
    assert code == 405
    assert headers["Allow"] == "GET, HEAD"


@pytest.mark.usefixtures("impatient")
def test_a_scraper_that_sends_a_byte_now_and_then_is_hung_up_on(site):
    """
    Who takes longer than the time there is loses the connection, though it is never quite silent.
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


def test_a_scraper_that_hangs_up_half_way_harms_nobody(site, capfd):
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
    What is no request gets a 4xx or 5xx, or a closed connection, and the next client is served.
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


def test_a_hundred_scrapers_at_once_are_all_served(site, monkeypatch):
    """
    Who comes when eight are being served waits for a moment.
    """
    monkeypatch.setattr(server_module, "_WAIT", 30)
    daemon, port = site
    before = daemon.errors["http"]
    with ThreadPoolExecutor(100) as pool:
        pages = list(pool.map(lambda _: get(port), range(100)))
    assert all("scope_ebpf_targets" in page for page in pages)
    assert before == daemon.errors["http"]


@pytest.mark.usefixtures("impatient")
def test_clients_that_say_nothing_do_not_keep_others_out_for_long(site):
    """
    Thirty silent connections are closed or turned away, and counted; then a scrape is answered.
    """
    daemon, port = site
    before = daemon.errors["http"]
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        for _ in range(30):
            with contextlib.suppress(OSError):
                assert "scope_ebpf_targets" in get(port)
                break
        else:
            pytest.fail("never served")
    assert daemon.errors["http"] > before


def test_a_thread_that_cannot_be_started_takes_nobodys_place(site, monkeypatch, caplog):
    """
    Where the system has no thread for us the client is hung up on, and later ones are served.
    """

    def fail(*_):
        raise RuntimeError("can't start new thread")

    daemon, port = site
    before = daemon.errors["http"]
    with monkeypatch.context() as patch:
        patch.setattr(ThreadingMixIn, "process_request", fail)
        for _ in range(server_module.AT_ONCE):
            with pytest.raises(OSError):
                get(port)
    assert "scope_ebpf_targets" in get(port)
    assert daemon.errors["http"] == before + server_module.AT_ONCE
    assert {record.getMessage() for record in caplog.records} == {"a request failed"}


def test_what_is_no_text_does_not_spoil_the_page(site, monkeypatch):
    """
    A reason with bytes of a path that are no UTF-8 is shown all the same.
    """
    daemon, port = site
    monkeypatch.setitem(daemon.targets.refused, 7, "cannot open /opt/\udcff")
    assert "cannot open /opt/\\udcff" in get(port, "/")


def test_a_failure_of_ours_is_one_line(site, monkeypatch, caplog):
    """
    A page that cannot be made is a 500 for the client, and one line in the log.
    """
    _, port = site
    monkeypatch.setattr("scope_ebpf.daemon.http.page", lambda daemon: 1 / 0)
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
        basic("somebody", "right"),
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
    The right one is let in, again and again, and a wrong one between does not change that.
    """
    _, port = guarded
    for _ in range(3):
        assert status(port, headers=basic("prometheus", "right"))[0] == 200
        assert status(port, headers=basic("prometheus", "wrong"))[0] == 401


def test_a_password_that_was_changed_is_no_longer_good(guarded, monkeypatch):
    """
    What came in before the config was read again does not come in after it.
    """
    daemon, port = guarded
    assert status(port, headers=basic("prometheus", "right"))[0] == 200
    users = {"prometheus": hash_password(b"other", b"salt", rounds=10)}
    monkeypatch.setattr(daemon, "config", replace(daemon.config, users=users))
    assert status(port, headers=basic("prometheus", "right"))[0] == 401
    assert status(port, headers=basic("prometheus", "other"))[0] == 200


def test_who_guesses_takes_little_of_one_core(guarded, monkeypatch):
    """
    Of sixteen guesses at once one is looked at, then there is a pause; the right one comes through.
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


def test_health_is_nobodys_secret(guarded):
    """
    Who looks after the daemon needs no password.
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


def test_tls_is_spoken(tmp_path):
    """
    A client that trusts the certificate is served; one that does not, or speaks no TLS, is not.
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


def test_a_renewed_certificate_is_taken(tmp_path):
    """
    After the config was read again the new certificate is shown; a broken one is not taken.
    """
    cert, key = certificate(tmp_path, "old")
    config = replace(LOCAL, tls_cert=str(cert), tls_key=str(key))
    with serving(config) as (daemon, port):
        fresh, fresh_key = certificate(tmp_path, "new")
        shutil.copy(fresh, cert)
        shutil.copy(fresh_key, key)
        daemon.heeding[0](config)
        trusting = ssl.create_default_context(cafile=str(fresh))
        assert "scope_ebpf_targets" in get(port, context=trusting)
        cert.write_text("no certificate")
        daemon.heeding[0](config)
        assert "scope_ebpf_targets" in get(port, context=trusting)


@pytest.mark.parametrize("broken", ["key of another", "no key", "no file"])
def test_a_renewed_certificate_that_cannot_be_used_changes_nothing(tmp_path, broken, caplog):
    """
    Where the new certificate is there and its key is not, or is another, clients see the old pair.
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
            daemon.heeding[0](config)
            assert "scope_ebpf_targets" in get(port, context=trusting)
    said = [record.getMessage() for record in caplog.records]
    assert said == ["certificate refused, the old one stays"] * 2


@pytest.mark.usefixtures("impatient")
def test_a_client_that_stops_in_the_handshake_is_hung_up_on(tmp_path):
    """
    TLS that is begun and not finished takes no longer than a request may.
    """
    cert, key = certificate(tmp_path, "some")
    config = replace(LOCAL, tls_cert=str(cert), tls_key=str(key))
    with serving(config) as (_, port), socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(30)
        client.sendall(b"\x16\x03\x01")
        assert until_closed(client) == b""


@pytest.mark.parametrize("broken", ["missing", "text", "key of another"])
def test_a_certificate_that_cannot_be_used_is_said_in_one_line(tmp_path, broken):
    """
    The daemon does not start without the TLS that it was told to speak.
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
