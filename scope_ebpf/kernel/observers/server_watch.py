# SPDX-License-Identifier: Apache-2.0
"""
Messages of servers, counted and timed by module: the programs of ``server.bpf.c`` and their maps.

Everything lives as long as this process's file descriptors.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, NamedTuple

from scope_ebpf import events
from scope_ebpf.attach import allowlist
from scope_ebpf.errors import HostError
from scope_ebpf.kernel import host
from scope_ebpf.kernel.attach.uprobes import (
    TRACE_UPROBE_MULTI,
    Attacher,
    Uprobes,
    has_multi,
)
from scope_ebpf.kernel.bpf.maps import U32, U64
from scope_ebpf.kernel.bpf.objects import BpfObject, object_bytes
from scope_ebpf.kernel.observers.loaded_plan import by_program
from scope_ebpf.kernel.observers.windowed import WindowedWatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.attach.plan import Attachment
    from scope_ebpf.kernel.attach.uprobes import Identity
    from scope_ebpf.kernel.bpf.maps import Map

_PROGRAMS = ("server_send", "server_reply", "server_take", "server_out", "server_exit")


class EdgeRow(NamedTuple):
    """One row of server_edges, by slots."""

    caller: int
    callee: int
    calls: int
    blocked_ns: int


class _Maps(NamedTuple):
    """The maps of ``server.bpf.c``, as there."""

    window: Map
    counts: Map
    stats: Map
    modules: Map
    tags: Map
    edges: Map
    calls: Map
    given_up: Map
    messages: Map


class ServerWatch(WindowedWatch):
    """
    Watches the messages of servers in the VM of *identity*.

    *settings* is one ``events.SERVER_SETTINGS``, *hooks* are where its programs go; *by_tag* is
    whether requests of a module are counted by their tags. A context manager; nothing counts
    before :meth:`attach` and :meth:`open_window`. Raises HostError where the kernel refuses, and
    NothingToAttachError if one hook cannot be attached: the others would count wrong.
    """

    SEEN = "messages of servers"
    LIGHT = ("server_send",)

    def __init__(
        self,
        identity: Identity,
        settings: NDArray[np.void],
        hooks: Sequence[Attachment],
        *,
        by_tag: bool = False,
    ) -> None:
        host.require_host_pids(
            "this runs in a pid namespace, where the kernel's numbers of processes are others"
        )
        for hook in hooks:
            if hook.name not in allowlist.names("jit"):
                raise HostError(f"{hook.name} is not on the list of what we may attach to")
        self._identity, self._settings, self._hooks = identity, settings.copy(), hooks
        self._settings["sees_idle"] = any(hook.program == "server_out" for hook in hooks)
        self._settings["by_tag"] = by_tag
        self._resources = ExitStack()
        self._leaving = None

    def _open(self) -> None:
        made = BpfObject("server", object_bytes("server"))
        self._object = self._resources.enter_context(closing(made))
        made.set_constants(self._settings.tobytes())
        multi = has_multi()
        programs = by_program(self._hooks)
        made.load(programs, TRACE_UPROBE_MULTI if multi else None)
        self._maps = _Maps(
            window=made.map("server_window", U32, events.SERVER_WINDOW),
            counts=made.map("server_counts", U32, U64),
            stats=made.map("server_stats", U32, events.SERVER_STATS),
            modules=made.map("server_modules", events.SERVER_MODULE, U32),
            tags=made.map("server_tags", events.SERVER_TAG, U32),
            edges=made.map("server_edges", events.SERVER_EDGE, events.SERVER_EDGE_TOTAL),
            calls=made.map("server_calls", U64, events.SERVER_CALL),
            given_up=made.map("abandoned_calls", events.SERVER_REFERENCE, events.SERVER_CALL),
            messages=made.map("server_messages", U64, events.SERVER_MESSAGE),
        )
        self._window = self._maps.window
        self._attacher = self._resources.enter_context(Attacher())
        self._uprobes = Uprobes(self._identity, self._attacher, multi=multi)
        self._resources.callback(self.detach)

    def forget_open(self) -> None:
        """Forget what was under way when the window ended: its end will not be seen."""
        for one in (self._maps.calls, self._maps.given_up, self._maps.messages):
            self._object.maps[one.name].clear()

    def stats(self) -> NDArray[np.void]:
        """What was counted in each slot, shape ``(SERVER_SLOTS,)`` of SERVER_STATS."""
        return self._maps.stats.values()

    def modules(self) -> dict[int, tuple[int, int]]:
        """By slot, the terms of its module and of its function, as in SERVER_MODULE."""
        return {
            int(slot): (int(key["module"]), int(key["function"]))
            for key, slot in self._maps.modules.items()
        }

    def edges(self) -> list[EdgeRow]:
        """Calls by caller and callee."""
        return [
            EdgeRow(*(int(number) for number in (*key.tolist(), *value.tolist())))
            for key, value in self._maps.edges.items()
        ]

    def tags(self) -> dict[int, tuple[int, int]]:
        """By slot, the slot of its module and the term of its tag."""
        tags = self._maps.tags.items()
        return {int(slot): (int(key["slot"]), int(key["tag"])) for key, slot in tags}

    def open_calls(self) -> NDArray[np.void]:
        """The calls that are open, shape ``(n,)`` of SERVER_CALL."""
        return self._maps.calls.entries()[1]

    def given_up_calls(self) -> NDArray[np.void]:
        """Calls whose caller gave up and which may be in work still, as :meth:`open_calls`."""
        return self._maps.given_up.entries()[1]

    def waiting_messages(self) -> tuple[NDArray[np.uint64], NDArray[np.void]]:
        """Messages without a reply in mailboxes: addresses, and one SERVER_MESSAGE for each."""
        return self._maps.messages.entries()

    def forget_messages(self, addresses: NDArray[np.uint64]) -> None:
        """Forget messages that wait no longer."""
        for address in addresses.tolist():
            self._maps.messages.discard(address)

    def counts(self) -> dict[str, int]:
        """Hits of each program, and what could not be counted: ``lost`` and ``unreadable``."""
        values = self._maps.counts.values().sum(axis=1).tolist()
        names = (*_PROGRAMS, "lost", "unreadable")
        return dict(zip(names, values, strict=True))
