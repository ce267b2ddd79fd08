# SPDX-License-Identifier: Apache-2.0
"""
Debug files from a server on loopback: an honest one, and those that are not.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from beams_run import require

from scope_ebpf.beam.elf.binary import Binary
from scope_ebpf.beam.hidden import debuginfod
from scope_ebpf.beam.hidden.learn import of_debug_file
from scope_ebpf.beam.hidden.reference import BadReferenceError
from scope_ebpf.cli.learn import _fetched
from scope_ebpf.errors import HostError, RefusedFileError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: A function of the VM that hides in a stripped file, and a program that has it.
NAME = "erts_schedule"
SOURCE = (
    f"long {NAME}(long a) {{ return a * 23; }} int main(int c, char **v) {{ return {NAME}(c); }}"
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """
    A stripped program, its debug file, and that of another program.
    """
    require(shutil.which("gcc"), "there is no C compiler")
    folder = tmp_path_factory.mktemp("debuginfod")
    made = {}
    for name, more in (("own", ""), ("other", "int more = 23;")):
        source, program = folder / f"{name}.c", folder / name
        source.write_text(SOURCE + more)
        flags = ("-O1", "-g", "-fno-inline", "-fvisibility=hidden", "-Wl,--build-id")
        subprocess.run(["gcc", *flags, "-o", program, source], check=True)
        made[name] = folder / f"{name}.debug"
        subprocess.run(["objcopy", "--only-keep-debug", program, made[name]], check=True)
    lines = subprocess.run(["nm", folder / "own"], capture_output=True, text=True, check=True)
    (at,) = [line.split()[0] for line in lines.stdout.splitlines() if line.split()[-1] == NAME]
    subprocess.run(["strip", folder / "own"], check=True)
    return SimpleNamespace(**made, stripped=folder / "own", at=int(at, 16))


@contextmanager
def serving(answer: Callable[[Any], None]) -> Iterator[tuple[str, list[str]]]:
    """
    A server on loopback that gives *answer* to each request: its URL, and the paths asked for.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def sends(data: bytes, length: int | None = None) -> Callable[[Any], None]:
    """
    An answer of *data*, which is said to have that *length*.
    """

    def answer(request: Any) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(data) if length is None else length))
        request.end_headers()
        request.wfile.write(data)

    return answer


def endless(request: Any) -> None:
    """
    Zeros until nobody reads any more.
    """
    request.send_response(200)
    request.end_headers()
    try:
        while True:
            request.wfile.write(bytes(4096))
    except OSError:
        pass


def elsewhere(request: Any) -> None:
    """
    A redirection to a file of the host.
    """
    request.send_response(302)
    request.send_header("Location", "file:///etc/passwd")
    request.end_headers()


def nonsense(request: Any) -> None:
    """
    What is no answer of HTTP.
    """
    request.wfile.write(b"\x1b[2J\n\n")


def missing(request: Any) -> None:
    """
    A server that does not have the file.
    """
    request.send_error(404)


def test_the_debug_file_of_the_build_names_its_functions(files):
    """
    One request by build id; the function lies where the compiler put it.
    """
    binary = Binary.open(files.stripped)
    with serving(sends(files.own.read_bytes())) as (url, asked):
        found = of_debug_file(binary, _fetched(binary, f"{url}/"))
    assert [f"/buildid/{binary.build_id}/debuginfo"] == asked
    assert {NAME: files.at} == {name: place.start for name, place in found.places.items()}


def test_the_next_server_is_asked_where_one_does_not_have_it(files, monkeypatch):
    """
    DEBUGINFOD_URLS names several; without it and without a URL nothing is asked.
    """
    binary = Binary.open(files.stripped)
    data = files.own.read_bytes()
    with serving(missing) as (first, asked), serving(sends(data)) as (second, _):
        monkeypatch.setenv("DEBUGINFOD_URLS", f"{first} {second}")
        fd = _fetched(binary, "")
        assert (1, len(data)) == (len(asked), os.fstat(fd).st_size)
        os.close(fd)
        monkeypatch.delenv("DEBUGINFOD_URLS")
        with pytest.raises(UsageError, match="no server is named"):
            _fetched(binary, "")
    assert 1 == len(asked)


def test_a_file_of_another_build_is_refused(files):
    """
    What a server sends is compared with the build id of the program, whatever it was asked for.
    """
    binary = Binary.open(files.stripped)
    with serving(sends(files.other.read_bytes())) as (url, _):
        fd = _fetched(binary, url)
    with pytest.raises(BadReferenceError, match="its build id is another one"):
        of_debug_file(binary, fd)


@pytest.mark.parametrize("cut", [0, 1, 64, 1000], ids=str)
def test_a_file_that_is_no_debug_file_is_refused(files, cut):
    """
    Nothing, the beginning of a file, and one whose head claims sections that are not there.
    """
    binary = Binary.open(files.stripped)
    with serving(sends(files.own.read_bytes()[:cut])) as (url, _):
        fd = _fetched(binary, url)
    with pytest.raises(BadReferenceError):
        of_debug_file(binary, fd)


def test_a_hostile_file_is_refused(files):
    """
    The right build id with a table of symbols that claims to be endless.
    """
    data = bytearray(files.own.read_bytes())
    sections = int.from_bytes(data[0x28:0x30], "little")
    for number in range(int.from_bytes(data[0x3C:0x3E], "little")):
        at = sections + 64 * number
        if int.from_bytes(data[at + 4 : at + 8], "little") == 2:  # SHT_SYMTAB
            data[at + 32 : at + 40] = (1 << 62).to_bytes(8, "little")
    binary = Binary.open(files.stripped)
    with serving(sends(bytes(data))) as (url, _):
        fd = _fetched(binary, url)
    with pytest.raises(RefusedFileError, match="bytes at once"):
        of_debug_file(binary, fd)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (sends(b"\x7fELF", 4096), "it ends after 4 of 4,096 bytes"),
        (sends(b"\x7fELF", 1 << 40), "it has more than 65,536 bytes"),
        (endless, "it has more than 65,536 bytes"),
        (elsewhere, "redirect|file"),
        (nonsense, "does not answer as a server of HTTP"),
        (missing, "404"),
    ],
    ids=["truncated", "announced", "endless", "elsewhere", "nonsense", "missing"],
)
def test_what_a_server_sends_is_bounded(files, monkeypatch, answer, why):
    """
    A body that is cut short, one that is too large, and one that never ends give one line each.
    """
    limited = debuginfod.fetch
    monkeypatch.setattr(debuginfod, "fetch", lambda server, it: limited(server, it, 1 << 16))
    with serving(answer) as (url, _), pytest.raises(HostError, match=why):
        _fetched(Binary.open(files.stripped), url)


def heads(request: Any) -> None:
    """
    A head that comes byte by byte for three seconds, and then a whole answer.
    """
    _drip(request, b"HTTP/1.0 200 OK\r\nX: " + b"x" * 40 + b"\r\nContent-Length: 0\r\n\r\n")


def chunks(request: Any) -> None:
    """
    The size of a chunk that comes byte by byte for three seconds, and then the end.
    """
    request.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    _drip(request, b"0" * 60 + b"\r\n\r\n")


def _drip(request: Any, data: bytes) -> None:
    try:
        for byte in data:
            request.wfile.write(bytes([byte]))
            time.sleep(0.05)
    except OSError:
        pass


@pytest.mark.parametrize(
    "answer", [heads, chunks, sends(bytes(200_000))], ids=["head", "chunk", "body"]
)
def test_a_server_that_is_too_slow_is_left(answer):
    """
    The time for a whole file counts from its beginning, however the bytes come; then no alarm is
    left behind.
    """
    before = signal.getsignal(signal.SIGALRM)
    seconds = 0.3 if answer in (heads, chunks) else -1.0
    with serving(answer) as (url, _), pytest.raises(ValueError, match="it takes too long"):
        debuginfod.fetch(url, "23", seconds=seconds)
    assert before is signal.getsignal(signal.SIGALRM)


def test_a_redirection_is_checked_before_it_is_followed():
    """
    No connection is made to a server of ftp, though urllib knows that, too.
    """
    with socket.create_server(("127.0.0.1", 0)) as other:

        def to_ftp(request: Any) -> None:
            request.send_response(302)
            request.send_header("Location", f"ftp://127.0.0.1:{other.getsockname()[1]}/x")
            request.end_headers()

        with serving(to_ftp) as (url, _), pytest.raises(ValueError, match="no URL of http"):
            debuginfod.fetch(url, "23", seconds=3)
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.accept()


def test_the_body_of_a_redirection_is_not_read():
    """
    Of 64 MiB behind the head of a redirection only what the buffers of a connection have is sent.
    """
    sent = []

    def large(request: Any) -> None:
        if request.path == "/last":
            return sends(b"whole")(request)
        request.send_response(302)
        request.send_header("Location", "/last")
        request.end_headers()
        try:
            for _ in range(64):
                request.wfile.write(bytes(1 << 20))
                sent.append(1)
        except OSError:
            pass

    with serving(large) as (url, _):
        fd = debuginfod.fetch(url, "23")
    assert b"whole" == os.pread(fd, 100, 0)
    os.close(fd)
    assert len(sent) < 64
