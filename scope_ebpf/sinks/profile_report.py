# SPDX-License-Identifier: Apache-2.0
"""A profile as text: what ran, in which processes, and the quality of the figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.sinks.plain import of_target, plain, spelled

if TYPE_CHECKING:
    from typing import TextIO

    from scope_ebpf.results.profile import Profile, Row

#: Rows of each table.
OWNERS = 10
FUNCTIONS = 20
INNERMOST = 10
WAITED = 15
_WHERE = {
    "cpu": ("ERLANG FUNCTION", "OUTSIDE ERLANG CODE"),
    "off-cpu": ("WAITING IN", "WHY"),
}


#: Why processes waited all the time.
_WHY = {
    "calls": "waits for a reply",
    "suspended": "suspended",
    "run_queue": "waits in the run queue",
    "dirty": "on a dirty scheduler, or waiting for one",
    "receive": "waits for a message or a timeout",
}


def print_profile(profile: Profile, output: TextIO) -> None:
    """Print the tables and the last lines."""
    total = max(1, profile.total_ns)
    function, inside = _WHERE[profile.kind]
    output.write(" ".join(of_target(profile.target)) + "\n\n")
    _table("PROCESS", profile.owners(), total, OWNERS, output, own=False)
    output.write("\n")
    _table(function, profile.functions(), total, FUNCTIONS, output, own=True)
    output.write("\n")
    _table(inside, profile.innermost(), total, INNERMOST, output, own=False)
    output.write("\n" + last_lines(profile))


def waited_lines(profile: Profile) -> list[str]:
    """Processes that waited all the time and are in no figure above, a line for each group."""
    if not profile.waited and not profile.idle:
        return []
    count = sum(one.processes for one in profile.waited)
    head = f"all the time: {count:,} processes did not run at all, besides {profile.idle:,} servers"
    lines = [f"{head} without a message"]
    for one in profile.waited[:WAITED]:
        called = f", called by {one.caller}" if one.caller else ""
        whom = f", for {one.server}" if one.server else ""
        text = f"{one.who}: {_WHY[one.why]}{whom}, in {one.function}{called}"
        lines.append(f"{one.processes:>9,}  {plain(spelled(text))}")
    left = profile.waited[WAITED:]
    if left:
        lines.append(f"{sum(one.processes for one in left):>9,}  ({len(left)} more)")
    return lines


def _table(
    heading: str, rows: list[Row], total: int, most: int, output: TextIO, *, own: bool
) -> None:
    columns = f"{'OWN%':>6} {'TOTAL%':>6} {'SECONDS':>8}" if own else f"{'%':>6} {'SECONDS':>8}"
    output.write(f"{columns}  {heading}\n")
    for row in rows[:most]:
        share = f"{100 * row.total_ns / total:6.1f}"
        numbers = f"{100 * row.own_ns / total:6.1f} {share}" if own else share
        seconds = row.own_ns if own else row.total_ns
        text = f"{numbers} {seconds / 1e9:8.3f}  {plain(spelled(row.name))}"
        text += f" [{row.kind}]" if row.kind in ("native", "kernel") else ""
        output.write(text + "\n")
    if len(rows) > most:
        rest = sum(row.own_ns for row in rows[most:])
        blank = " " * 7 if own else ""
        output.write(
            f"{100 * rest / total:6.1f} {blank}{rest / 1e9:8.3f}  ({len(rows) - most} more)\n"
        )


def last_lines(profile: Profile) -> str:
    """Lines on the samples: how many, complete, missing, and why the profile ended."""
    quality = profile.quality
    lines = [f"stopped: {plain(profile.stopped_because)}, after {profile.seconds:.1f} s"]
    lines.append(_seen(profile))
    lines.append(
        f"whole: {_share(quality.complete, quality.with_process)} of the {quality.with_process:,} "
        "Erlang stacks reach the process's beginning"
    )
    if profile.kind == "cpu":
        lines.append(
            f"       {_share(quality.unwound, quality.samples)} of the samples have every C frame"
        )
    lines.append(f"lost: {quality.lost:,} samples; {quality.failed:,} with unreadable memory")
    if not profile.samples and profile.kind == "cpu":
        lines.append("no sample was taken: the VM was idle, and --off-cpu shows what it waits in")
    lines += waited_lines(profile)
    lines += [f"note: {plain(note)}" for note in profile.notes]
    return "\n".join(lines) + "\n"


def _seen(profile: Profile) -> str:
    """What the samples stand for; CPU time with its standard error, beside the kernel's count."""
    seen = f"samples: {profile.quality.samples:,}, {profile.total_ns / 1e9:.2f} s"
    if profile.kind == "off-cpu":
        return f"{seen} of waiting, all processes together"
    one = 1e9 / profile.hz
    error = max(one, sum(sample.weight_ns**2 for sample in profile.samples) ** 0.5)
    seen += f" +-{error / 1e9:.2f} s of CPU time"
    if profile.cpu_seconds is not None:
        seen += f"; the kernel counted {profile.cpu_seconds:.2f} s"
    return seen


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"
