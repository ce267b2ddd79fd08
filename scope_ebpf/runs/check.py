# SPDX-License-Identifier: Apache-2.0
"""A check of one VM: all parts are looked at for some seconds, without a hook."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from scope_ebpf.checks.machine import Ending, Quota, Tables
from scope_ebpf.checks.processes import Mailboxes, Memory, Supervisors
from scope_ebpf.checks.scene import Scene
from scope_ebpf.checks.schedulers import Threads
from scope_ebpf.checks.waits import Calls, Suspended
from scope_ebpf.errors import NoSuchProcessError, ReadRefusedError
from scope_ebpf.results.check import Check
from scope_ebpf.runs.loop import require_target, target_ended

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.checks.scene import Part

#: What is looked at, in this order.
PARTS: dict[str, Callable[[Scene], Part]] = {
    "schedulers": Threads,
    "ending": Ending,
    "cgroups": Quota,
    "tables": Tables,
    "suspended": Suspended,
    "calls": Calls,
    "mailboxes": Mailboxes,
    "supervisors": Supervisors,
    "memory": Memory,
}
#: Looks at parts between the first and the last, and at schedulers, which are cheap.
_LOOKS = 12
#: Parts that are looked at each time, not only at the end.
_OFTEN = ("schedulers",)
_SOMETIMES, _EVERY = ("calls", "supervisors"), 4


def check(
    target: Target,
    seconds: float,
    wait: Callable[[float], object] | None = None,
    most: int | None = None,
) -> Check:
    """
    Look at *target* for *seconds*; *wait* waits between looks, by default for an end of it, too.

    Raises ReadRefusedError where its processes cannot be read, TooMuchError where they are more
    than *most*, TargetEndedError where it ends.
    """
    require_target(target.identity, "checked")
    made, pause = Check(target.as_json()), wait or target.identity.wait
    cpu, began = time.process_time(), time.monotonic()
    try:
        scene = Scene(target, made.more, most)
        parts = _begun(scene, made)
        for turn in range(1, _LOOKS + 1):
            pause(max(0.0, began + seconds * turn / _LOOKS - time.monotonic()))
            for name in (*_OFTEN, *(_SOMETIMES if turn % _EVERY == 0 and turn < _LOOKS else ())):
                _try(made, parts, name, lambda part: part.look())
        scene.end()
        _finish(made, parts, scene)
        target.identity.check()
    except NoSuchProcessError as error:
        raise target_ended(target.pid, error, "checked") from error
    made.seconds, made.cpu_seconds = time.monotonic() - began, time.process_time() - cpu
    return made


def _begun(scene: Scene, made: Check) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    for name, make in PARTS.items():
        try:
            parts[name] = make(scene)
        except (ReadRefusedError, OSError) as error:
            made.not_checked[name] = str(error)
    return parts


def _try(
    made: Check, parts: dict[str, Part], name: str, step: Callable[[Part], object]
) -> object | None:
    """Do a *step* of the part *name*; one that fails is not checked."""
    part = parts.get(name)
    if part is None or name in made.not_checked:
        return None
    try:
        return step(part)
    except (ReadRefusedError, OSError) as error:
        made.not_checked[name] = str(error)
        return None


def _finish(made: Check, parts: dict[str, Part], scene: Scene) -> None:
    """Look for the last time, and make the findings."""
    for name in parts:
        if name not in _OFTEN:
            _try(made, parts, name, lambda part: part.look())
    for name in parts:
        before = len(made.findings)
        _try(made, parts, name, lambda part: made.findings.extend(part.findings()))
        if name not in made.not_checked or len(made.findings) > before:
            made.checked.append(name)
    for part in parts.values():
        made.not_checked |= getattr(part, "refused", {})
    if scene.stopped:
        made.not_checked["growth and rates"] = "the VM is stopped, so nothing changes"
