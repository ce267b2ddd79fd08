# SPDX-License-Identifier: Apache-2.0
"""
Load for RabbitMQ: one connection publishes to a queue, another consumes from it.

    python tests/apps/load_rabbitmq.py --port PORT [--seconds S] [--size BYTES]

Prints one JSON document: messages published and consumed, and the seconds it took. All that was
published is consumed before the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from typing import TYPE_CHECKING

import pika

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Without acknowledgement the consumer's socket is the only brake, so this bounds what piles up.
_AHEAD = 5000


class Load:
    """
    The publisher and the consumer, which count what they do.
    """

    def __init__(self, port: int, size: int, queue: str = "planted") -> None:
        self.published = 0
        self.consumed = 0
        self._body = b"x" * size
        self._queue = queue
        self._ended = threading.Event()
        self._parameters = pika.ConnectionParameters(
            host="127.0.0.1",
            port=port,
            credentials=pika.PlainCredentials("guest", "guest"),
        )

    def run(self, seconds: float) -> None:
        """
        Publish for *seconds*, and return when all of it has been consumed.
        """
        with pika.BlockingConnection(self._parameters) as connection:
            channel = connection.channel()
            channel.queue_declare(self._queue, auto_delete=True)
            consumer = threading.Thread(target=self._consume)
            consumer.start()
            try:
                deadline = time.monotonic() + seconds
                while self._goes_on(deadline) and consumer.is_alive():
                    for _ in range(100):
                        channel.basic_publish("", self._queue, self._body)
                    self.published += 100
                    while self.published - self.consumed > _AHEAD and consumer.is_alive():
                        connection.process_data_events(0.01)
            finally:
                self._ended.set()
                consumer.join()

    def end(self) -> None:
        """
        Let :meth:`run`, which another thread does, end before its time.
        """
        self._ended.set()

    def _goes_on(self, deadline: float) -> bool:
        return time.monotonic() < deadline and not self._ended.is_set()

    def _consume(self) -> None:
        with pika.BlockingConnection(self._parameters) as connection:
            for _ in self._messages(connection.channel()):
                self.consumed += 1
                if self._finished():
                    return

    def _messages(self, channel: pika.channel.Channel) -> Iterator[bytes]:
        for method, _, body in channel.consume(self._queue, auto_ack=True, inactivity_timeout=0.1):
            if method is not None:
                yield body
            elif self._finished():
                return

    def _finished(self) -> bool:
        return self._ended.is_set() and self.consumed >= self.published


def main() -> None:
    """
    Run the load that the command line asks for.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args()
    load = Load(options.port, options.size)
    started = time.monotonic()
    load.run(options.seconds)
    seconds = round(time.monotonic() - started, 3)
    counts = {"published": load.published, "consumed": load.consumed, "seconds": seconds}
    sys.stdout.write(json.dumps(counts) + "\n")


if __name__ == "__main__":
    main()
