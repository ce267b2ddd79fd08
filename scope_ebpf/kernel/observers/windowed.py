# SPDX-License-Identifier: Apache-2.0
"""Programs whose hooks are attached all or none, and the window in which their hits count."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

from scope_ebpf.errors import NothingToAttachError
from scope_ebpf.kernel.attach.uprobes import wait_gone
from scope_ebpf.kernel.closing import Closing
from scope_ebpf.kernel.observers.loaded_plan import by_program
from scope_ebpf.kernel.urgency import hurry

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack

    from scope_ebpf.attach.plan import Attachment
    from scope_ebpf.kernel.attach.uprobes import Attacher, Uprobes
    from scope_ebpf.kernel.bpf.maps import Map
    from scope_ebpf.kernel.bpf.objects import BpfObject

#: The end of a window that has none.
_NEVER = (1 << 64) - 1
#: Nice value of the attacher.
_PRIORITY = -10


class WindowedWatch(Closing):
    """
    Attaches *_hooks* of programs of *_object*, and opens *_window*, the map of a SERVER_WINDOW.

    A subclass sets these, *_uprobes*, *_attacher* and *_resources*. *SEEN* is what hooks see, in
    the plural.
    """

    SEEN: ClassVar[str]
    #: The programs that are attached for a light window; none where there are no such windows.
    LIGHT: ClassVar[tuple[str, ...]] = ()
    _hooks: Sequence[Attachment]
    _object: BpfObject
    _uprobes: Uprobes
    _attacher: Attacher | None
    _window: Map
    _resources: ExitStack
    #: Readable when the hooks are out that were released last.
    _leaving: int | None
    _light = False

    def hurry(self) -> None:
        """Let the attacher run before the target, as permitted: it serves this watch alone."""
        if self._attacher:
            with suppress(OSError):
                self._attacher.set_priority(_PRIORITY)
            hurry(self._attacher.pid)

    def attach(self, *, light: bool = False) -> None:
        """
        Attach every hook, or those of a *light* window; NothingToAttachError if one cannot be.

        Nothing counts yet.
        """
        wait_gone(self._leaving)
        self._leaving, self._light = None, light
        groups = by_program(
            [hook for hook in self._hooks if not light or hook.program in self.LIGHT]
        )
        ready = [(self._object.program_fd(name), group) for name, group in groups.items()]
        failed = [error for error in self._uprobes.attach(ready) if error]
        if failed:
            raise NothingToAttachError(f"{self.SEEN} cannot be seen: {failed[0]}")

    def release(self) -> None:
        """Remove every hook, without waiting: they cost nothing from now on."""
        self._leaving = self._uprobes.detach()

    def open_window(self, seconds: float | None = None, hits: int | None = None) -> int:
        """Count from now on, for *seconds* and *hits*, or without limit; returns the time, ns."""
        now = time.monotonic_ns()
        until = _NEVER if seconds is None else now + int(seconds * 1e9)
        self._window[0] = (now, until, hits or 0, hits is not None, self._light)
        return now

    def is_over(self) -> bool:
        """Whether the hits of the window are used up, or its time."""
        return int(self._window[0]["until_ns"]) <= time.monotonic_ns()

    def close_window(self) -> int:
        """Count no longer; returns when counting ended, ns: now, or earlier."""
        window = self._window[0]
        now = min(time.monotonic_ns(), int(window["until_ns"]))
        window["until_ns"] = now
        self._window[0] = window
        return now

    def detach(self) -> None:
        """Remove the breakpoints, and wait for it; the counts can still be read."""
        wait_gone(self._leaving)
        self._leaving = None
        wait_gone(self._uprobes.detach())

    def close(self) -> None:
        """Detach, and give everything back to the kernel."""
        self._resources.close()
