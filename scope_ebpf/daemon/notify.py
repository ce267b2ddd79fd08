# SPDX-License-Identifier: Apache-2.0
"""Notifications to the service manager (sd_notify(3)), and lines for its journal."""

from __future__ import annotations

import logging
import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_MINUTE, _HOUR = 60.0, 3600.0
#: Maximum number of kinds of lines that are kept.
_KINDS = 1024

#: The owner of root's own VMs as text (``owners.ROOT``).
_ROOT = "root"

log = logging.getLogger("scope-ebpfd")


def notify(state: str, address: str | None = None) -> None:
    """Send *state* to the service manager, if there is one."""
    address = address or os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        try:
            out.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
        except OSError as error:
            log.debug("notify_failed error=%s", error)


class LineLimit(logging.Filter):
    """
    A rate limit of log lines: *burst* lines of a kind, then one per minute.

    A kind is a message about the VMs of one owner, so that one owner cannot suppress the lines of
    another. Kinds without lines for an hour are forgotten. Root's VMs outside of containers have no
    limit.

    Attributes:
        held: lines that were suppressed.
    """

    def __init__(self, burst: int = 60, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._burst, self._clock = burst, clock
        self._kinds: dict[tuple[str, str], _Kind] = {}
        self.held = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """True if the line passes; it then contains the number of lines that did not."""
        fields: dict[str, object] = getattr(record, "fields", {})
        if str(fields.get("owner", "")) == _ROOT:
            return True
        now = self._clock()
        name = record.getMessage(), str(fields.get("owner", ""))
        kind = self._kinds.pop(name, None) or _Kind(float(self._burst), now)
        self._kinds[name] = kind
        kind.left = min(self._burst, kind.left + (now - kind.at) / _MINUTE)
        kind.at = now
        self._forget(now)
        if kind.left < 1:
            kind.held += 1
            self.held += 1
            return False
        kind.left -= 1
        if kind.held:
            record.fields = fields | {"held_back": kind.held}
            kind.held = 0
        return True

    def _forget(self, now: float) -> None:
        while len(self._kinds) > _KINDS or now - next(iter(self._kinds.values())).at > _HOUR:
            del self._kinds[next(iter(self._kinds))]


@dataclass(slots=True)
class _Kind:
    """One kind of lines."""

    #: Lines that may pass now.
    left: float
    #: When *left* was computed, in seconds of the clock.
    at: float
    #: Lines that were suppressed since the last one that passed.
    held: int = 0


class Logfmt(logging.Formatter):
    """``level=info message="..." key=value``: always one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record; its ``fields`` become keys."""
        parts = {"level": record.levelname.lower(), "message": record.getMessage()}
        fields = getattr(record, "fields", {})
        parts |= {key: value for key, value in fields.items() if value is not None}
        if record.exc_info and record.exc_info[1] is not None:
            parts["error"] = repr(record.exc_info[1])
        return " ".join(f"{key}={_quoted(str(value))}" for key, value in parts.items())


def _quoted(text: str) -> str:
    clean = "".join(c if c.isprintable() else f"\\x{{{ord(c):x}}}" for c in text[:1000])
    if clean and not any(c in ' "=' for c in clean):
        return clean
    return '"' + clean.replace("\\", "\\\\").replace('"', '\\"') + '"'


def say(level: int, message: str, **fields: object) -> None:
    """Log one line with *fields*."""
    log.log(level, message, extra={"fields": fields})


#: The filter of the daemon's log.
line_limit = LineLimit()
