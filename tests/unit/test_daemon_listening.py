# SPDX-License-Identifier: Apache-2.0
"""
What the daemon listens on: ports, Unix sockets, and sockets that are handed over.
"""

from __future__ import annotations

import grp
import os
import socket
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from scope_ebpf.daemon.config import Config, ConfigError
from scope_ebpf.daemon.web import listening

if TYPE_CHECKING:
    from pathlib import Path


def test_a_unix_socket_has_an_owner_and_a_group(tmp_path: Path):
    """
    Only these may connect, whatever the umask; closing removes the socket.
    """
    path = tmp_path / "metrics.sock"
    group = grp.getgrgid(os.getegid()).gr_name
    config = Config(listen=path, socket_group=group)
    before = os.umask(0o077)
    try:
        (listener,) = listening.listeners(config)
        assert 0o077 == os.umask(0o077)
    finally:
        os.umask(before)
    status = path.stat()
    assert (0o660, os.getegid()) == (stat.S_IMODE(status.st_mode), status.st_gid)
    assert f"unix:{path}" == listening.describe(listener)
    assert not listening.is_loopback(listener)
    listening.close(listener, config)
    assert not path.exists()


def test_a_stale_socket_is_replaced(tmp_path: Path):
    """
    A killed daemon leaves its socket, which does not prevent the next one from listening.
    """
    path = tmp_path / "metrics.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    (listener,) = listening.listeners(Config(listen=path))
    with listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


@pytest.mark.parametrize("what", ["in use", "a file", "a link", "no folder", "no group"])
def test_where_it_cannot_listen_is_said_in_one_line(tmp_path: Path, what: str):
    """
    Another daemon's socket, and a file that is not a socket, stay as they are.
    """
    path, group = tmp_path / "metrics.sock", ""
    with socket.socket(socket.AF_UNIX) as other:
        if what == "in use":
            other.bind(str(path))
            other.listen()
        elif what == "a file":
            path.write_text("precious")
        elif what == "a link":
            path.symlink_to(tmp_path / "elsewhere")
        elif what == "no folder":
            path = tmp_path / "none" / "metrics.sock"
        else:
            group = "no group of that name"
        with pytest.raises(ConfigError, match=f"cannot listen on unix:{path}: ") as refused:
            listening.listeners(Config(listen=path, socket_group=group))
    assert "\n" not in str(refused.value)
    assert path.exists() == (what in ("in use", "a file", "no group"))
    assert what != "a file" or path.read_text() == "precious"


@pytest.mark.parametrize(
    ("listen", "said", "loopback"),
    [
        (("127.0.0.1", 0), "127.0.0.1:", True),
        (("::1", 0), "[::1]:", True),
        (("0.0.0.0", 0), "0.0.0.0:", False),
        (("localhost", 0), "127.0.0.1:", True),
    ],
)
def test_loopback_addresses_are_recognised(listen: tuple[str, int], said: str, loopback: bool):
    """
    The address that the socket is bound to decides, however the config names it.
    """
    (listener,) = listening.listeners(Config(listen=listen))
    with listener:
        assert listening.describe(listener).startswith(said)
        assert loopback == listening.is_loopback(listener)


_HANDED_OVER = """
import os, sys
from scope_ebpf.daemon.web import listening
from scope_ebpf.daemon.config import Config
os.environ["LISTEN_PID"] = str(os.getpid()) if sys.argv[1] == "mine" else "1"
found = listening.listeners(Config(listen=("127.0.0.1", 0)))
print(*map(listening.describe, found), *(os.get_inheritable(one.fileno()) for one in found))
assert not [name for name in os.environ if name.startswith("LISTEN_")]
"""


@pytest.mark.parametrize("whose", ["mine", "another's"])
def test_sockets_from_systemd_replace_the_address(tmp_path: Path, whose: str):
    """
    All sockets that are passed to this process are used, and no child inherits them.
    """
    path = tmp_path / "metrics.sock"
    with socket.socket(socket.AF_UNIX) as unix, socket.create_server(("127.0.0.1", 0)) as port:
        unix.bind(str(path))
        unix.listen()
        given = {3: unix.fileno(), 4: port.fileno()}

        def hand_over() -> None:
            copies = {number: os.dup(file) for number, file in given.items()}
            for number, copy in copies.items():
                os.dup2(copy, number)

        done = subprocess.run(
            [sys.executable, "-c", _HANDED_OVER, whose],
            env={**os.environ, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"},
            preexec_fn=hand_over,
            close_fds=False,
            capture_output=True,
            text=True,
        )
        there = f"unix:{path} {listening.describe(port)} False False\n"
    assert done.returncode == 0, done.stderr
    assert (there == done.stdout) == (whose == "mine")
