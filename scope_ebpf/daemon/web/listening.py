# SPDX-License-Identifier: Apache-2.0
"""
The sockets that the daemon listens on: a port, a Unix socket, or sockets from systemd.

Errors are ConfigErrors of one line.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import stat
from contextlib import suppress
from pathlib import Path

from scope_ebpf.daemon.config import Config, ConfigError

#: Connections that the kernel queues.
_BACKLOG = 128
#: The first descriptor that is passed (sd_listen_fds(3)).
_FIRST = 3


def listeners(config: Config) -> list[socket.socket]:
    """Sockets from systemd, or else the one of *config*; they are non-blocking."""
    found = inherited() or [_listen(config)]
    for listener in found:
        listener.setblocking(False)
    return found


def inherited() -> list[socket.socket]:
    """Sockets of systemd's socket activation, if they are for this process."""
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "0")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    found = []
    for number in range(_FIRST, _FIRST + int(count)):
        os.set_inheritable(number, False)
        found.append(socket.socket(fileno=number))
    return found


def describe(listener: socket.socket) -> str:
    """The address of *listener*, as in the config."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    return (
        f"[{name[0]}]:{name[1]}" if listener.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"
    )


def is_loopback(listener: socket.socket) -> bool:
    """True if *listener* is a port of the loopback interface, which browsers of this host reach."""
    if listener.family == socket.AF_UNIX:
        return False
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def _listen(config: Config) -> socket.socket:
    if isinstance(config.listen, Path):
        return _listen_at(config.listen, config.socket_group)
    host, port = config.listen
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, TypeError) as error:  # an impossible host name is a TypeError
        why = error.strerror or error if isinstance(error, OSError) else error
        raise ConfigError(
            f"cannot listen on {host}:{port}: {why}; choose another with --listen"
        ) from None


def _listen_at(path: Path, group: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The socket has the right mode from the beginning, whatever the umask of this process.
    mask = os.umask(0o117)
    try:
        _remove_stale(path)
        listener.bind(str(path))
        if group:
            shutil.chown(path, group=group)
        listener.listen(_BACKLOG)
    except (OSError, LookupError, ValueError) as error:
        listener.close()
        why = error.strerror or error if isinstance(error, OSError) else error
        raise ConfigError(f"cannot listen on unix:{path}: {why}") from None
    finally:
        os.umask(mask)
    return listener


def _remove_stale(path: Path) -> None:
    """Remove a socket without a listener, which a killed daemon leaves."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError("there is a file that is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        except BlockingIOError:
            pass  # there is a listener, and it is busy


def close(listener: socket.socket, config: Config) -> None:
    """Close *listener*, and remove its Unix socket if the daemon made it."""
    where = describe(listener)
    listener.close()
    if isinstance(config.listen, Path) and where == f"unix:{config.listen}":
        with suppress(OSError):
            config.listen.unlink()
