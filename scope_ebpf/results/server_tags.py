# SPDX-License-Identifier: Apache-2.0
"""
Requests to servers by their tag: the atom that a request is, or that its tuple begins with.

Pure. Few tags of a module are distinguished; None stands for all others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scope_ebpf import events
from scope_ebpf.results.server_events import UNSEEN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scope_ebpf.results.documents.servers import ServerTag
    from scope_ebpf.results.server_events import Messages

#: A module and a tag.
Key = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class Tag:
    """Messages of one tag to the servers of one module."""

    module: str
    tag: str | None
    #: Callers that wait for a reply to such a request, on average.
    waiting_callers: float
    #: None without hooks.
    messages: Messages | None = None
    #: The part of the module's seconds of service; None if it is not known.
    service_share: float | None = None

    def as_json(self) -> ServerTag:
        """The fields of one tag."""
        seen = self.messages.as_json() if self.messages else UNSEEN
        share = self.service_share
        return {
            "module": self.module,
            "tag": self.tag,
            "calls": seen["calls"],
            "casts": seen["casts"],
            "infos": seen["infos"],
            "queue_seconds": seen["queue_seconds"],
            "service_seconds": seen["service_seconds"],
            "call_seconds": seen["call_seconds"],
            "failures": seen["failures"],
            "abandoned": seen["abandoned"],
            "waiting_callers": round(self.waiting_callers, 3),
            "service_share": None if share is None else round(share, 4),
        }


def tags_of(waiting: Mapping[Key, float], seen: Mapping[Key, Messages] | None = None) -> list[Tag]:
    """
    Put together callers that wait, on average, and messages that hooks have *seen*; both by tag.

    Of a module of which hooks saw messages, tags that they do not distinguish are others; of
    another one the tags that fewest wait for.
    """
    known = set(seen or ())
    modules = {module for module, _ in known}
    rest = [key for key in waiting if key[0] not in modules and key[1] is not None]
    room: dict[str, int] = {}
    for key in sorted(rest, key=lambda key: waiting[key], reverse=True):
        room[key[0]] = room.get(key[0], 0) + 1
        if room[key[0]] <= events.SERVER_TAGS:
            known.add(key)
    callers: dict[Key, float] = dict.fromkeys(known, 0.0)
    for (module, tag), count in waiting.items():
        key = (module, tag) if (module, tag) in known else (module, None)
        callers[key] = callers.get(key, 0.0) + count
    shares = _shares(seen or {})
    return [
        Tag(*key, count, (seen or {}).get(key), shares.get(key)) for key, count in callers.items()
    ]


def _shares(seen: Mapping[Key, Messages]) -> dict[Key, float]:
    """The part of each tag in the seconds of service of its module, where all are known."""
    served = {key: messages.served for key, messages in seen.items()}
    whole: dict[str, float | None] = {}
    for (module, _), seconds in served.items():
        before = whole.get(module, 0.0)
        whole[module] = None if seconds is None or before is None else before + seconds
    return {
        key: seconds / total
        for key, seconds in served.items()
        if seconds is not None and (total := whole[key[0]])
    }
