# SPDX-License-Identifier: Apache-2.0
"""One run of a user's probe on one target: compiled, attached, read, and its cost watched."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from scope_ebpf.budget.brake import SPAN, Brake, share_of
from scope_ebpf.errors import ProbeError
from scope_ebpf.runs.loop import Loop, Stop, require_target
from scope_ebpf.runs.target_cost import INTERVAL, cpu_seconds, say_braked
from scope_ebpf.runs.terminal import announce, output_error
from scope_ebpf.runs.trace import BATCH, STREAM_INTERVAL, say_started
from scope_ebpf.user_probes import hooks, source
from scope_ebpf.user_probes.outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scope_ebpf.attach.plan import Attachment
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.errors import ScopeError
    from scope_ebpf.kernel.bpf.compiler import Compiled
    from scope_ebpf.kernel.cost import HitCost
    from scope_ebpf.kernel.observers.user_probes import UserProbeSession
    from scope_ebpf.runs.trace import Sink

#: The share of the VM's CPU above which a probe is warned about.
WARN_SHARE = 0.01
#: Functions of one probe: each is a program, a breakpoint or more, and a wait when it ends.
_MAX_FUNCTIONS = 32


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """How long a probe runs, and what ends it before."""

    #: Seconds; None for no end.
    duration: float | None
    #: Events after which the run ends; None for no limit.
    max_events: int | None = None
    #: The share of the target's CPU above which the run ends itself; None for no bound.
    max_cost: float | None = None
    #: Room for events on their way from the kernel, bytes; a power of two.
    ring_bytes: int = 4 << 20
    #: Path of the output, for error messages; None for standard output.
    output: str | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """A probe as it was written, as it was compiled, and the hooks of each of its functions."""

    written: source.Source
    compiled: Compiled
    hooks: dict[str, tuple[Attachment, ...]]

    def sink_kinds(self) -> source.Vocabulary:
        """The kinds of its events, for a ``Stream``."""
        written, compiled = self.written, self.compiled
        return source.vocabulary([(n, compiled.struct(f"beam_event_{n}")) for n in written.events])


def compile_probe(
    name: str, text: str, target: Target, ring_bytes: int, defines: Sequence[str]
) -> Probe:
    """
    Compile the C *text* of file *name* for *target*; *defines* as in :func:`source.prepare`.

    Raises ProbeError, NothingToAttachError, and CompilerMissingError.
    """
    from scope_ebpf.kernel.bpf.compiler import Compiled

    pages = ring_bytes // os.sysconf("SC_PAGESIZE")
    written = source.prepare(name, text, target, pages, defines)
    include = str(resources.files("scope_ebpf.user_probes"))
    compiled = Compiled(name, written.text, [f"-I{include}"])
    return Probe(written, compiled, _hooks(compiled, target))


def _hooks(compiled: Compiled, target: Target) -> dict[str, tuple[Attachment, ...]]:
    if not compiled.functions:
        raise ProbeError(
            "the probe has no function to attach; one is `int on_gc_entry(struct pt_regs *ctx)`"
        )
    if len(compiled.functions) > _MAX_FUNCTIONS:
        raise ProbeError(
            f"the probe has {len(compiled.functions)} functions, {_MAX_FUNCTIONS} are allowed; "
            "those that are no hooks are `static inline`"
        )
    return {
        function: hooks.attachments(target.binary, target.flavor, function)
        for function in compiled.functions
    }


class ProbeRun:
    """One run of *probe* on *target*, whose events go to *sink*."""

    def __init__(self, target: Target, probe: Probe, options: ProbeOptions, sink: Sink) -> None:
        self._target = target
        self._probe = probe
        self._options = options
        self._sink = sink
        self._stop = Stop()
        self._outcome = Outcome()
        self._warned = False
        self._brake = Brake(options.max_cost)
        #: CPU seconds of the target when the run began.
        self._cpu_before: float | None = None
        self._next_look = 0.0
        #: Whether more is in the ring than was written in the last turn.
        self._behind = False

    def run(self) -> tuple[Outcome, ScopeError | None]:
        """
        Run until something ends it; then all hooks are out and the ring is read.

        Returns what was seen, and the error that ended the run early, if one did.
        """
        from scope_ebpf.kernel import cost  # after the compiler's complaints
        from scope_ebpf.kernel.bpf import stats  # after the compiler's complaints

        require_target(self._target.identity, "traced")
        hit_cost = cost.measure()
        outcome, session = self._outcome, self._session()
        with stats.measuring() as outcome.measured, session, self._stop.on_signals():
            say_started(self._target.pid, self._options.duration, quiet=False)
            loop = Loop(self._target.identity, "traced", self._options.duration, self._stop)
            error = self._watch(session, hit_cost, loop)
            outcome.seconds = time.monotonic() - loop.started
            self._account(session, hit_cost)
            session.detach()
            error = self._drain(session, error)
            self._collect(session)
        outcome.stopped = self._stop.reason
        return outcome, error

    def _session(self) -> UserProbeSession:
        from scope_ebpf.kernel.observers.user_probes import UserProbeSession

        return UserProbeSession(
            self._probe.compiled,
            self._probe.hooks,
            self._target.identity,
            source.RECORD,
            self._options.ring_bytes,
            counted=self._probe.written.counted,
        )

    def _watch(self, session: UserProbeSession, cost: HitCost, loop: Loop) -> ScopeError | None:
        self._cpu_before = cpu_seconds(self._target.pid)
        self._next_look = loop.started

        def turn(now: float) -> ScopeError | None:
            error = self._write(session)
            if now >= self._next_look:
                self._next_look = now + INTERVAL
                self._account(session, cost)
                if now - loop.started >= SPAN:
                    self._warn()
            return error

        return loop.run(turn, lambda: 0.0 if self._behind else STREAM_INTERVAL)

    def _drain(self, session: UserProbeSession, error: ScopeError | None) -> ScopeError | None:
        """Write what is still in the ring, unless the output is what ended the run."""
        self._behind = not self._stop.reason.startswith("output")
        while self._behind:
            error = self._write(session) or error
        return error

    def _write(self, session: UserProbeSession) -> ScopeError | None:
        """Write a batch; the error if the output failed."""
        self._behind = False
        most = self._options.max_events
        left = BATCH if most is None else min(BATCH, most - self._outcome.events)
        if left <= 0:
            self._stop.ask(f"{most} events")
            return None
        try:
            with session.ring.batch(left) as records:
                self._sink.write(records)
                self._outcome.events += len(records)
                self._behind = len(records) == BATCH
        except BrokenPipeError:
            self._stop.ask("output closed")
        except OSError as broken:
            self._stop.ask("output failed")
            return output_error(broken, self._options.output)
        return None

    def _account(self, session: UserProbeSession, cost: HitCost) -> None:
        """Note what the probe has cost; the share stays as it was once the target is gone."""
        outcome = self._outcome
        hits = session.hits(measured=outcome.measured)
        outcome.hits = None if hits is None else sum(hits.values())
        outcome.cost_seconds = session.cost(cost, measured=outcome.measured)
        now = cpu_seconds(self._target.pid)
        if outcome.cost_seconds is None or now is None or self._cpu_before is None:
            return
        used = now - self._cpu_before
        if used > 0:
            outcome.cost_share = share_of(outcome.cost_seconds, used)
        taken = outcome.cost_seconds
        if self._brake.add(time.monotonic(), lambda: taken, used):
            say_braked(self._brake)
            self._stop.ask("cost")

    def _warn(self) -> None:
        """Warn once if the probe costs the VM more than it should."""
        share = self._outcome.cost_share
        if share is None or share <= WARN_SHARE or self._warned:
            return
        self._warned = True
        hits = f"{self._outcome.hits:,} hits"
        announce(
            f"this probe costs the VM {share:.1%} of the CPU that it uses ({hits}), more than "
            f"{WARN_SHARE:.0%}; a hook that is hit less, or a shorter --duration, costs less"
        )

    def _collect(self, session: UserProbeSession) -> None:
        """Read the probe's counts, histograms and error counters."""
        outcome, compiled = self._outcome, self._probe.compiled
        outcome.lost, outcome.unread, outcome.full = session.error_counters()
        for name in self._probe.written.counts:
            items = compiled.items(f"beam_count_{name}")
            outcome.counts[name] = [(key, int(value.value)) for key, value in items]
        for name in self._probe.written.histograms:
            slots = tuple(int(v.value) for _, v in compiled.items(f"beam_histogram_{name}"))
            ((_, total),) = compiled.items(f"beam_total_{name}")
            outcome.histograms[name] = (total.value / 1e9, slots)
