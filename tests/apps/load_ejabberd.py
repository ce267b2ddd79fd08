# SPDX-License-Identifier: Apache-2.0
"""
Load for ejabberd: one client sends chat messages, another receives them.

    python tests/apps/load_ejabberd.py --port PORT [--seconds S] [--password P] [SENDER RECEIVER]

Prints one JSON document: messages sent and received, and the seconds it took. All that was sent is
received before the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING

import slixmpp

if TYPE_CHECKING:
    from collections.abc import Callable

#: Messages sent and not yet received; without a bound the sender would fill its own memory.
_AHEAD = 500
_PATIENCE = 30.0


class Client(slixmpp.ClientXMPP):
    """
    A client that counts the messages it receives.
    """

    def __init__(self, user: str, password: str) -> None:
        super().__init__(f"{user}@localhost/load", password)
        self.received = 0
        self._wanted = 0
        self._reached = asyncio.Event()
        self.online = asyncio.get_running_loop().create_future()
        self.enable_plaintext = True
        self.enable_starttls = False
        self.enable_direct_tls = False
        self.plugin["feature_mechanisms"].unencrypted_plain = True
        self.add_event_handler("session_start", self._start)
        self.add_event_handler("message", self._message)
        self.add_event_handler("failed_all_auth", self._refused)

    def _start(self, _event: object) -> None:
        self.send_presence()
        self.online.set_result(None)

    def _refused(self, _event: object) -> None:
        self.online.set_exception(ConnectionRefusedError("ejabberd refuses the account"))

    def _message(self, _message: object) -> None:
        self.received += 1
        if self.received >= self._wanted:
            self._reached.set()

    async def has_received(self, count: int) -> None:
        """
        Wait until *count* messages have come in all; give up after a long silence.
        """
        self._wanted = count
        if self.received >= count:
            await asyncio.sleep(0)  # the sender's socket must have its turn
            return
        self._reached.clear()
        await asyncio.wait_for(self._reached.wait(), _PATIENCE)


async def load(
    port: int, seconds: float, users: tuple[str, str], password: str
) -> dict[str, float]:
    """
    Send for *seconds*, wait for what is under way, and return the counts.
    """
    until = time.monotonic() + seconds
    return await _send(port, users, password, lambda _: time.monotonic() < until)


async def chat(
    port: int, users: tuple[str, str], messages: int, password: str = "planted"
) -> dict[str, float]:
    """
    Send *messages* (a multiple of 50), wait for them, and return the counts.
    """
    return await _send(port, users, password, lambda sent: sent < messages)


async def _send(
    port: int, users: tuple[str, str], password: str, goes_on: Callable[[int], bool]
) -> dict[str, float]:
    sender, receiver = (Client(user, password) for user in users)
    for client in (sender, receiver):
        client.connect("127.0.0.1", port)
        await asyncio.wait_for(client.online, _PATIENCE)
    started = time.monotonic()
    sent = 0
    while goes_on(sent):
        for _ in range(50):
            sender.send_message(receiver.boundjid, f"message {sent}", mtype="chat")
            sent += 1
        await receiver.has_received(sent - _AHEAD)
    await receiver.has_received(sent)
    took = time.monotonic() - started
    for client in (sender, receiver):
        await client.disconnect()
    return {"sent": sent, "received": receiver.received, "seconds": round(took, 3)}


def main() -> None:
    """
    Run the load that the command line asks for.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--password", default="planted")
    parser.add_argument("users", nargs="*", default=["alice", "bob"])
    options = parser.parse_args()
    sender, receiver = options.users
    counts = asyncio.run(load(options.port, options.seconds, (sender, receiver), options.password))
    sys.stdout.write(json.dumps(counts) + "\n")


if __name__ == "__main__":
    main()
