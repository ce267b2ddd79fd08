# SPDX-License-Identifier: Apache-2.0
"""
Heads of requests: what is one, what is none and why, however it is cut into pieces.
"""

from __future__ import annotations

import pytest

from scope_ebpf.daemon.web.request import MOST, Head, RefusedRequestError

GET = b"GET /metrics HTTP/1.1\r\n"


def environ(head: bytes, size: int | None = None) -> dict[str, str]:
    """
    The environ of *head*, which arrives in chunks of *size* bytes.
    """
    taken = Head()
    for start in range(0, len(head), size or len(head)):
        chunk = head[start : start + (size or len(head))]
        if taken.add(chunk[: taken.room()]):
            return taken.environ()
    raise EOFError


@pytest.mark.parametrize("size", [1, 2, 3, 7, None])
@pytest.mark.parametrize("end", [b"\r\n", b"\n"], ids=["CRLF", "LF"])
def test_a_request_is_complete_however_it_is_split(size: int | None, end: bytes):
    """
    The environ is the same for single bytes and for one chunk.
    """
    lines = (b"GET /a%20b?name[]=x HTTP/1.1", b"Host: localhost:9568", b"Accept: text/plain", b"")
    assert environ(end.join((*lines, b"")), size) == {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/a b",
        "QUERY_STRING": "name[]=x",
        "HTTP_HOST": "localhost:9568",
        "HTTP_ACCEPT": "text/plain",
    }


@pytest.mark.parametrize(
    ("head", "path"),
    [
        (GET + b"\r\nGET /second HTTP/1.1\r\n\r\n", "/metrics"),
        (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", "/../../etc/passwd"),
        (b"GET /%2e%2e/metrics HTTP/1.1\r\n\r\n", "/../metrics"),
        (b"GET /metrics%00 HTTP/1.1\r\n\r\n", "/metrics\0"),
        (b"GET //metrics HTTP/1.1\r\n\r\n", "//metrics"),
        (b"GET http://localhost/metrics HTTP/1.1\r\n\r\n", "http://localhost/metrics"),
        (b"OPTIONS * HTTP/1.1\r\n\r\n", "*"),
        (GET + b"Content-Length: 1000000000\r\n\r\n", "/metrics"),
        (GET + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", "/metrics"),
        (GET + b"X: \xff\xfe\r\n\r\n", "/metrics"),
        (GET + b"X: y\r\n" * 99 + b"\r\n", "/metrics"),
    ],
)
def test_an_odd_request_is_accepted(head: bytes, path: str):
    """
    Paths are only names; bytes after a head are ignored, whether or not it announces them.
    """
    assert path == environ(head)["PATH_INFO"]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /metrics\r\n", 400),
        (b"GET\r\n", 400),
        (b"\r\n", 400),
        (b"GET /metrics HTTP/1.1 \r\n", 400),
        (b"GET  /metrics HTTP/1.1\r\n", 400),
        (b"GET /metrics HTTP/x\r\n", 400),
        (b"GET /met\0rics HTTP/1.1\r\n", 400),
        (b"GET /metr\xefcs HTTP/1.1\r\n", 400),
        (b"G\0T /metrics HTTP/1.1\r\n", 400),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\n", 400),
        (b"GET /metrics HTTP/9.9\r\n", 505),
        (b"GET /metrics HTTP/0.9\r\n", 505),
        (b"GET /" + b"a" * 9000, 414),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", 414),
        (GET + b"X: " + b"y" * MOST, 431),
        (GET + b"X: y\r\n" * 100 + b"\r\n", 431),
        (GET + b"no header at all\r\n\r\n", 400),
        (GET + b": no name\r\n\r\n", 400),
        (GET + b"Host: localhost\r\nHost: evil.example.org\r\n\r\n", 400),
    ],
)
@pytest.mark.parametrize("size", [5, None])
def test_bytes_that_are_not_a_request_are_refused(head: bytes, status: int, size: int | None):
    """
    They are refused as soon as they cannot become one, with the status that says why.
    """
    with pytest.raises(RefusedRequestError) as refused:
        environ(head, size)
    assert str(status) == refused.value.status.split()[0]
    assert "\n" not in str(refused.value)


def test_half_a_request_is_waited_for():
    """
    It is neither complete nor refused while it can become a request.
    """
    with pytest.raises(EOFError):
        environ(GET + b"Host: localhost\r\n", 1)
