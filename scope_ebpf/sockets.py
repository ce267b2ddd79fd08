# SPDX-License-Identifier: Apache-2.0
"""
TCP sockets of another process, asked of the kernel (``sock_diag(7)``) and never touched.

The question is put in the network namespace of the process. It may belong to a tenant who has
opened sockets without number, so only so many bytes of an answer are read; a socket whose address
is known is asked for alone.

Sources: include/uapi/linux/inet_diag.h, sock_diag.h, tcp.h (struct tcp_info).
"""

from __future__ import annotations

import ctypes
import os
import re
import socket
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from scope_ebpf.errors import ReadRefusedError
from scope_ebpf.retries import Retries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_SOCK_DIAG, _CLONE_NEWNET = 4, 0x40000000
_BY_FAMILY, _ERROR, _DONE, _REQUEST, _DUMP = 20, 2, 3, 1, 0x300
#: Every state but those that no connection has (listening, time-wait, closed).
_STATES = 0xFFF & ~(1 << 10 | 1 << 6 | 1 << 7)
#: nlmsghdr; inet_diag_req_v2 up to its socket id; inet_diag_sockid; inet_diag_msg behind that.
_HEADER, _QUESTION = struct.Struct("<IHHII"), struct.Struct("<BBBBI")
_ID, _REST = struct.Struct(">HH16s16s4s8s"), struct.Struct("<IIIII")
_ID_AT = 4
#: Where an inet_diag_msg has the inode: the last number behind the id.
_INODE, _INODE_AT = struct.Struct("<I"), _ID_AT + _ID.size + _REST.size - 4
#: Attributes of an answer: tcp_info; its bit in a question.
_INFO, _INFO_BIT = 2, 1 << 1
_NO_COOKIE = b"\xff" * 8
#: Bytes of one reading, and of an answer with all sockets: some 200,000 sockets.
_PART, _MOST = 1 << 16, 1 << 25
#: Seconds for one answer of the kernel, and for the thread that opens a socket there.
_PATIENCE = 5.0
_LINK = re.compile(r"socket:\[(\d+)\]")

_libc = ctypes.CDLL(None, use_errno=True)


class _Field(NamedTuple):
    """A field of struct tcp_info: where, how many bytes, units in one of what is shown."""

    at: int
    size: int
    units: int = 1


_TCP_INFO = {
    "retransmitting": _Field(2, 1),
    "unacked_packets": _Field(24, 4),
    "last_received_seconds": _Field(52, 4, 1_000),
    "rtt_seconds": _Field(68, 4, 1_000_000),
    "rtt_deviation_seconds": _Field(72, 4, 1_000_000),
    "congestion_window_packets": _Field(80, 4),
    "retransmits": _Field(100, 4),
    "bytes_acked": _Field(120, 8),
    "bytes_received": _Field(128, 8),
    "window_limited_seconds": _Field(176, 8, 1_000_000),
    "send_window_bytes": _Field(228, 4),
}
#: The states of a connection (include/net/tcp_states.h).
_NAMES = {
    1: "established",
    2: "syn-sent",
    3: "syn-received",
    4: "fin-wait-1",
    5: "fin-wait-2",
    8: "close-wait",
    9: "last-ack",
    11: "closing",
}


@dataclass(frozen=True, slots=True)
class TcpSocket:
    """One TCP socket at one moment; a figure that the kernel does not give is None."""

    inode: int
    #: ``established`` and so on; a number where the state has no name here.
    state: str
    #: ``address:port``.
    local: str
    remote: str
    #: Bytes that the process has not read, and that the other side has not acknowledged.
    receive_queue_bytes: int
    send_queue_bytes: int
    #: Figures by the names of _TCP_INFO.
    info: Mapping[str, float | None]
    #: Address family, and the kernel's own id of the socket.
    family: int = socket.AF_INET
    key: bytes = b""


class Sockets:
    """
    Finds TCP sockets of one process by its descriptors. To be used by one thread.

    *check* raises if the process is not the one that is meant any more; it is called after
    everything that was opened by its number.
    """

    def __init__(self, pid: int, check: Callable[[], object]) -> None:
        self._pid, self._check = pid, check
        self._netlink: socket.socket | None = None
        #: Family and key of each socket that was found, by its inode.
        self._known: dict[int, tuple[int, bytes]] = {}
        self._retries = Retries()

    def close(self) -> None:
        """Release what is open."""
        if self._netlink:
            self._netlink.close()
            self._netlink = None

    def of(self, descriptors: Mapping[int, int]) -> dict[int, TcpSocket]:
        """
        Find the sockets of some *descriptors* of the process, by their keys in the mapping.

        Raises ReadRefusedError, and what the check raises.
        """
        inodes = {key: inode for key, fd in descriptors.items() if (inode := self._inode(fd))}
        self._check()
        if not inodes:
            return {}
        if self._netlink is None:
            self._netlink = self._opened()
        wanted = set(inodes.values())
        found = self._asked(self._known, wanted)
        if missing := self._retries.due(wanted - found.keys()):
            found |= self._asked(self._searched(missing), missing)
        self._known = {inode: (one.family, one.key) for inode, one in found.items()}
        return {key: found[inode] for key, inode in inodes.items() if inode in found}

    def _inode(self, descriptor: int) -> int | None:
        try:
            link = str(Path(f"/proc/{self._pid}/fd/{descriptor}").readlink())
        except OSError:
            return None
        found = _LINK.fullmatch(link)
        return int(found[1]) if found else None

    def _opened(self) -> socket.socket:
        """Open a netlink socket in the network namespace of the process."""
        try:
            there = os.open(f"/proc/{self._pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ReadRefusedError(f"its network namespace: {error.strerror}") from error
        try:
            self._check()
            return _within(there)
        finally:
            os.close(there)

    def _asked(
        self, keys: Mapping[int, tuple[int, bytes]], inodes: set[int]
    ) -> dict[int, TcpSocket]:
        """Ask for each socket alone by its key; one whose address was reused is left out."""
        found = {}
        for inode in inodes & keys.keys():
            for body in self._ask(*keys[inode]):
                if (now := parsed(body)) and now.inode == inode:
                    found[inode] = now
        return found

    def _searched(self, inodes: set[int]) -> dict[int, tuple[int, bytes]]:
        """
        Family and key of those *inodes* that are among all sockets of the namespace.

        The kernel selects by addresses only, so of the others the inode is read, and nothing else.
        """
        found: dict[int, tuple[int, bytes]] = {}
        for family in (socket.AF_INET, socket.AF_INET6):
            for body in self._ask(family, bytes(_ID.size - 8) + _NO_COOKIE, _DUMP):
                if len(body) < _INODE_AT + 4:
                    continue
                (inode,) = _INODE.unpack_from(body, _INODE_AT)
                if inode in inodes:
                    found[inode] = body[0], body[_ID_AT : _ID_AT + _ID.size]
                    if len(found) == len(inodes):
                        # The rest of the answer is not wanted, and a socket gives it first.
                        self.close()
                        return found
        return found

    def _ask(self, family: int, key: bytes, flags: int = 0) -> Iterator[bytes]:
        """
        Put one question to the kernel: the inet_diag_msg of each socket of its answer.

        Answers beyond _MOST bytes are not read. tcp_info, which costs the kernel most of its time
        for a socket, is asked for only without _DUMP.
        """
        if self._netlink is None:
            self._netlink = self._opened()
        wanted = 0 if flags & _DUMP else _INFO_BIT
        question = _QUESTION.pack(family, socket.IPPROTO_TCP, wanted, 0, _STATES) + key
        head = _HEADER.pack(_HEADER.size + len(question), _BY_FAMILY, _REQUEST | flags, 1, 0)
        try:
            self._netlink.send(head + question)
            yield from self._answers(flags != 0)
        except OSError as error:
            self.close()
            raise ReadRefusedError(f"its sockets: {error.strerror or error}") from error

    def _answers(self, dump: bool) -> Iterator[bytes]:
        left = _MOST
        while left > 0:
            part = self._netlink.recv(_PART) if self._netlink else b""
            left -= len(part)
            for kind, body in _messages(part):
                if kind in (_DONE, _ERROR):
                    return
                if kind == _BY_FAMILY:
                    yield body
            if not dump or not part:
                return
        self.close()
        raise ReadRefusedError(f"its network namespace has sockets for more than {_MOST:,} bytes")


def _enter(namespace: int) -> None:
    """Put the calling thread into a network namespace. Raises OSError."""
    if _libc.setns(namespace, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _within(namespace: int) -> socket.socket:
    """
    Open a netlink socket in *namespace* by a thread that enters it, and ends there.

    The socket stays in its namespace; no other thread of ours ever is in it.
    """
    made: list[socket.socket] = []
    failed: list[OSError] = []

    def enter() -> None:
        try:
            _enter(namespace)
            one = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _SOCK_DIAG)
            one.settimeout(_PATIENCE)
            made.append(one)
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=enter, name="netns", daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    if not made:
        why = failed[0].strerror if failed else "no answer"
        raise ReadRefusedError(f"its network namespace cannot be entered: {why}")
    return made[0]


def _messages(part: bytes) -> Iterator[tuple[int, bytes]]:
    """Split netlink messages: kind and body of each."""
    at = 0
    while at + _HEADER.size <= len(part):
        length, kind, *_ = _HEADER.unpack_from(part, at)
        if length < _HEADER.size or at + length > len(part):
            return
        yield kind, part[at + _HEADER.size : at + length]
        at += length + 3 & ~3


def parsed(body: bytes) -> TcpSocket | None:
    """Read one inet_diag_msg; None if it is too short for one."""
    if len(body) < _ID_AT + _ID.size + _REST.size:
        return None
    family, state = body[0], body[1]
    key = body[_ID_AT : _ID_AT + _ID.size]
    near_port, far_port, near, far, _, _ = _ID.unpack(key)
    _, unread, unacked, _, inode = _REST.unpack_from(body, _ID_AT + _ID.size)
    info = _attributes(body[_ID_AT + _ID.size + _REST.size :]).get(_INFO, b"")
    return TcpSocket(
        inode=inode,
        state=_NAMES.get(state, str(state)),
        local=_address(family, near, near_port),
        remote=_address(family, far, far_port),
        receive_queue_bytes=unread,
        send_queue_bytes=unacked,
        info={name: _figure(info, field) for name, field in _TCP_INFO.items()},
        family=family,
        # The interface and the cookie are part of the key.
        key=key,
    )


def _attributes(raw: bytes) -> dict[int, bytes]:
    found, at = {}, 0
    while at + 4 <= len(raw):
        length, kind = struct.unpack_from("<HH", raw, at)
        if length < 4:
            break
        found[kind] = raw[at + 4 : at + length]
        at += length + 3 & ~3
    return found


def _figure(info: bytes, field: _Field) -> float | None:
    """One field; None where an older kernel has none."""
    if len(info) < field.at + field.size:
        return None
    number = int.from_bytes(info[field.at : field.at + field.size], "little")
    return number if field.units == 1 else number / field.units


def _address(family: int, raw: bytes, port: int) -> str:
    if family == socket.AF_INET6:
        return f"[{socket.inet_ntop(family, raw)}]:{port}"
    return f"{socket.inet_ntop(socket.AF_INET, raw[:4])}:{port}"
