# SPDX-License-Identifier: Apache-2.0
"""
What each process of a target works on, by the telemetry events at the beginning and the end of it.

For samplers: the kernel notes it by process, and a sample has the number of what it found.
"""

from __future__ import annotations

import math
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from scope_ebpf import events
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.beam.telemetry.encoding import Decoder, Encoder
from scope_ebpf.beam.telemetry.library import loaded, settings
from scope_ebpf.errors import NothingToAttachError, ReadRefusedError
from scope_ebpf.kernel import cost
from scope_ebpf.kernel.observers.telemetry_watch import TelemetryWatch, Work
from scope_ebpf.runs.target_cost import cpu_seconds
from scope_ebpf.runs.telemetry import specs_of
from scope_ebpf.runs.telemetry_hooks import hooks_of, places_of
from scope_ebpf.runs.telemetry_windows import Observation, Vm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.telemetry.specs import Spec

#: Works that differ in their labels and have a name; processes at work at a time.
_ROWS, _OPEN = 4096, 16384
OUTSIDE, OTHER = "(outside of any request)", "(other requests)"
#: What readers of the figures must know.
NOTE = (
    "a request has the time of the process that serves it, from the event at its beginning; what "
    "it has done by other processes (tasks, calls to servers) is outside of any request, and so is "
    "a request that was under way when the profile began"
)


class Works:
    """
    Notes what processes of *target* work on while *observation* observes it.

    *watch* counts by *specs* then, and *atoms* are the target's.
    """

    def __init__(
        self, watch: TelemetryWatch, observation: Observation, specs: Sequence[Spec], atoms: Atoms
    ) -> None:
        self._watch, self._observation, self._specs = watch, observation, specs
        self._encoder = Encoder(specs, atoms, only_work=True)
        self._decoder = Decoder(atoms)
        self._names = {events.WORK_OUTSIDE: OUTSIDE, events.WORK_OTHER: OTHER}
        #: The map of works, for samplers.
        self.fd = watch.works_fd

    def begin(self) -> None:
        """Attach the hooks; raises as ``Observation.begin``."""
        self._specify()
        self._observation.begin()

    def look(self) -> None:
        """Follow code and atoms that were loaded; raises as ``Observation.look``."""
        self._specify()
        self._observation.look()

    def _specify(self) -> None:
        with suppress(ReadRefusedError):  # the table of atoms grows at this moment
            for event, spec in self._encoder.update():
                self._watch.specify(event, spec)

    def cost(self) -> Callable[[], float]:
        """Seconds of the target's CPU that hooks took until now."""
        spent = self._observation.spent
        return lambda: spent

    def name(self, number: int) -> str:
        """What has this *number* in a sample: its labels and the common name of its events."""
        if number not in self._names:
            row = self._watch.work_row(number)
            if row is None:
                return OTHER
            spec = self._specs[int(row["spec"]) - 1]
            labels = self._decoder.labels(row, len(spec.work)) or ()
            shown = [label for label in labels if label]
            self._names[number] = " ".join((*shown, f"[{'.'.join(spec.family)}]"))
        return self._names[number]


@contextmanager
def noted(target: Target) -> Iterator[Works]:
    """
    Note what processes of *target* work on while the block runs.

    NothingToAttachError where the VM has no telemetry, or hides what it calls; HostError.
    """
    atoms = Atoms(target)
    library = loaded(target, atoms)
    if library is None:
        raise NothingToAttachError(
            f"process {target.pid} has no telemetry: the module `telemetry` is not loaded, so "
            "nothing says what its processes work on"
        )
    hooks = hooks_of(target, library)
    wanted = settings(target, atoms)
    watch = TelemetryWatch(target.identity, wanted, hooks, rows=1, work=Work(_ROWS, _OPEN))
    places = places_of(target, atoms, watch, hooks)
    vm = Vm(lambda: cpu_seconds(target.pid), lambda: None)
    with watch:
        observation = Observation(watch, places[:1], vm, cost.measure().entry, math.inf)
        works = Works(watch, observation, specs_of(None), atoms)
        works.begin()
        yield works
        observation.end()
