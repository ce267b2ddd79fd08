# SPDX-License-Identifier: Apache-2.0
"""What systemd wants to be told (sd_notify(3)), and lines for its journal."""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger("scope-ebpfd")


def notify(state: str, address: str | None = None) -> None:
    """Tell the service manager, if there is one that wants to know."""
    address = address or os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        try:
            out.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
        except OSError as error:
            log.debug("notify_failed error=%s", error)


class Logfmt(logging.Formatter):
    """``level=info message="..." key=value``: one line, whatever is in it."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one record; what it carries as ``fields`` becomes keys."""
        parts = {"level": record.levelname.lower(), "message": record.getMessage()}
        parts |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1] is not None:
            parts["error"] = repr(record.exc_info[1])
        return " ".join(f"{key}={_quoted(str(value))}" for key, value in parts.items())


def _quoted(text: str) -> str:
    clean = "".join(c if c.isprintable() else f"\\x{{{ord(c):x}}}" for c in text[:1000])
    if clean and not any(c in ' "=' for c in clean):
        return clean
    return '"' + clean.replace("\\", "\\\\").replace('"', '\\"') + '"'


def say(level: int, message: str, **fields: object) -> None:
    """One line of the log."""
    log.log(level, message, extra={"fields": fields})
