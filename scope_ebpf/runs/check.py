# SPDX-License-Identifier: Apache-2.0
"""A check of one VM: all parts are looked at for some seconds, without a hook."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

from scope_ebpf.beam.memory.process_memory import cpu_seconds
from scope_ebpf.checks.held import Held
from scope_ebpf.checks.machine import Ending, Quota, Tables
from scope_ebpf.checks.processes import Mailboxes, Memory, Supervisors
from scope_ebpf.checks.scene import Scene
from scope_ebpf.checks.schedulers import Threads
from scope_ebpf.checks.waits import Calls, Suspended
from scope_ebpf.errors import NoSuchProcessError, ReadRefusedError
from scope_ebpf.results.check import Check
from scope_ebpf.runs.loop import require_target, target_ended

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

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
    "held": Held,
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
    looks, pause = steps(target, seconds, most), wait or target.identity.wait
    try:
        while True:
            until = next(looks)
            pause(max(0.0, until - time.monotonic()))
    except StopIteration as end:
        return cast("Check", end.value)
    except NoSuchProcessError as error:
        raise target_ended(target.pid, error, "checked") from error


def steps(target: Target, seconds: float, most: int | None = None) -> Generator[float, None, Check]:
    """
    The same in steps: yields until when to wait before the next one, monotonic seconds.

    The check is what the generator returns. What else the caller does meanwhile is part of
    its CPU time. Raises NoSuchProcessError where the target ends.
    """
    require_target(target.identity, "checked")
    made = Check(target.as_json())
    cpu, began = cpu_seconds(), time.monotonic()
    scene = Scene(target, made.more, most)
    parts = _begun(scene, made)
    for turn in range(1, _LOOKS + 1):
        yield began + seconds * turn / _LOOKS
        for name in (*_OFTEN, *(_SOMETIMES if turn % _EVERY == 0 and turn < _LOOKS else ())):
            _try(made, parts, name, lambda part: part.look())
    scene.end()
    _finish(made, parts, scene)
    target.identity.check()
    made.seconds, made.cpu_seconds = time.monotonic() - began, cpu_seconds() - cpu
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
