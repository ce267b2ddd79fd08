# SPDX-License-Identifier: Apache-2.0
"""``scope-trace doctor``: what works here, what does not, and why."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from rich.markup import escape

from scope_ebpf import events
from scope_ebpf.attach.plan import EVENTS
from scope_ebpf.beam.hidden.resolve import JUDGED, resolve
from scope_ebpf.beam.vm.constants import kernel_constants, known
from scope_ebpf.cli.documents import print_document
from scope_ebpf.cli.libraries import libraries_of, library_lines
from scope_ebpf.cli.options import add_format
from scope_ebpf.cli.target import add_target, find_vm, words_of
from scope_ebpf.daemon.trial import trial
from scope_ebpf.errors import ScopeError
from scope_ebpf.kernel import host
from scope_ebpf.kernel.attach import links
from scope_ebpf.kernel.attach.leftovers import find
from scope_ebpf.kernel.attach.uprobes import has_multi
from scope_ebpf.planning.planner import make_plan
from scope_ebpf.sessions import explained, within_reach
from scope_ebpf.sinks.plain import of_target, plain

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from scope_ebpf.attach.plan import Item
    from scope_ebpf.beam.hidden.resolve import Hidden
    from scope_ebpf.beam.vm.identity import Identity
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.results.documents.vms import (
        Breakpoints,
        DoctorDocument,
        EventHooks,
        ExaminedVm,
    )


#: Breakpoints that are listed by name.
_LISTED = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the doctor."""
    add_target(parser)
    add_format(parser, "text", "json", "jsonl", text="json and jsonl: one document")


def run(arguments: argparse.Namespace) -> int:
    """The command; returns the exit code of the first problem, or 0."""
    facts = host.facts()
    document: DoctorDocument = {
        "schema": 1,
        "host": [
            {"name": f.name, "value": f.value, "problem": str(f.problem) if f.problem else None}
            for f in facts
        ],
        "detach": "together" if has_multi() else "one hook after the other (before Linux 6.6)",
    }
    target = _asked(arguments)
    if target is not None:
        document = {**document, **_examine(target)}
    if arguments.format != "text":
        print_document(document, arguments.format)
    else:
        _print(document)
    problem: ScopeError | None = next((f.problem for f in facts if f.problem), None)
    return problem.exit_code if problem else 0


def _asked(arguments: argparse.Namespace) -> Target | None:
    """The VM to look at; None where it is left out and not exactly one can be looked at."""
    word, _ = words_of(arguments)
    if word is not None:
        return find_vm(word)
    with contextlib.suppress(ScopeError):  # the host is worth a look all the same
        return find_vm(None)
    return None


def _examine(target: Target) -> ExaminedVm:
    """The target and the state of each event's hooks, by both attach methods."""
    hidden = resolve(target)
    settings, _, refused = kernel_constants(target)
    chosen, *plans = (
        within_reach(
            explained(
                make_plan(target.binary, target.flavor, EVENTS, via, known(settings)), hidden
            ),
            target,
        )
        for via in ("auto", "symbol", "usdt")
    )
    names = {a.offset: a.name for plan in (chosen, *plans) for a in plan.attachments}
    rows: list[EventHooks] = []
    for item, *others in zip(chosen.items, *(plan.items for plan in plans), strict=True):
        variant = next(
            (v for v in events.VARIANTS if (v.event, v.via) == (item.event, item.via)), None
        )
        other = next((o for o in others if o.via != item.via and not o.attachments), None)
        rows.append(
            {
                "event": item.event,
                "state": "on" if item.attachments else "off",
                "via": item.via,
                "hooks": list(dict.fromkeys(a.name for a in item.attachments)),
                "places": len(item.attachments),
                "found_by": _found_by(item, hidden),
                "why": item.reason,
                "on_request": variant.on_request if variant else None,
                "other_way": other.reason if other and item.attachments else None,
            }
        )
    breakpoints = _breakpoints(target.identity, names)
    libraries, telemetry, unread = libraries_of(target)
    target.identity.check()
    daemon = trial(target.pid)
    return {
        "target": target.as_json(),
        "refused": list(dict.fromkeys((*refused, *unread))),
        "libraries": libraries,
        "telemetry": telemetry,
        "hooks": rows,
        "breakpoints": breakpoints,
        "daemon": {
            "refused": daemon.whole or None,
            "hooks": daemon.hooks,
            "not_told": daemon.parts,
        },
    }


def _found_by(item: Item, hidden: Hidden) -> str | None:
    """How the functions of an event were found that the program hides; None for symbols."""
    source = next((a.source for a in item.attachments if a.source), None)
    if source is None or item.event not in JUDGED:
        return source
    if item.event in hidden.proven:
        return f"{source}; the VM's counters agreed"
    return f"{source}; compared with the VM's counters before anything is shown"


def _breakpoints(identity: Identity, names: dict[int, str]) -> Breakpoints:
    """The VM's breakpoints by function or offset: ``held`` by links of others, or ``left``."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        found = find(identity)
    holds = links.held(identity.pid) if found else set()
    kinds: Breakpoints = {"held": [], "left": []}
    for offset in found:
        name = names.get(offset, f"offset {offset:#x}")
        kinds["held" if offset in holds else "left"].append(name)
    return kinds


def _print(document: DoctorDocument) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = 80
    console.print("[bold]host[/bold]")
    for fact in document["host"]:
        mark = "[red]no[/red] " if fact["problem"] else "ok "
        console.print(f"  {mark} {fact['name']}: {escape(plain(fact['problem'] or fact['value']))}")
    console.print(f"  ok  hooks are taken out {document['detach']}")
    if "target" not in document:
        console.print("\n`scope-trace doctor TARGET` looks at a VM; `scope-trace list` finds them.")
        return
    node, rest = map(escape, of_target(document["target"]))
    exe = escape(plain(document["target"]["exe"]))
    console.print(f"\n[bold]{node}[/bold] {rest}\n  {exe}\n")
    for reason in document["refused"]:
        console.print(f"[yellow]not read: {escape(plain(reason))}[/yellow]")
    lines = [*library_lines(document["libraries"], document["telemetry"])]
    for line in lines:
        console.print(escape(plain(line)))
    if lines:
        console.print()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("event", "", "via", "hooks, or why not"):
        table.add_column(name, overflow="fold")
    for row in document["hooks"]:
        state = "[green]on[/green]" if row["state"] == "on" else "[red]off[/red]"
        state = "ask" if row["on_request"] else state
        what = _hooks_of(row)
        table.add_row(row["event"], state, row["via"], escape(plain(what)))
    console.print(table)
    for line in (
        *_breakpoint_lines(**document["breakpoints"]),
        *_daemon_lines(**document["daemon"]),
    ):
        console.print(line)


def _hooks_of(row: EventHooks) -> str:
    """The hooks of an event, with what is to be known of them, or why it has none."""
    what: str = ", ".join(row["hooks"]) or row["why"]
    if row["on_request"]:
        what += f": {row['on_request']}"
    if row["found_by"]:
        what += f" (hidden; {row['found_by']})"
    if row["why"] and row["hooks"]:
        what += f" ({row['why']})"
    return what


def _breakpoint_lines(held: list[str], left: list[str]) -> Iterator[str]:
    """Lines about a VM's breakpoints."""
    if held:
        yield f"\n{len(held)} breakpoints are held by other tools or traces now."
    if left:
        names = ", ".join(dict.fromkeys(left[:_LISTED])) + (", ..." if len(left) > _LISTED else "")
        yield (
            f"\n[yellow]{len(left)} breakpoints are in its text that nobody is known to hold:"
            f"[/yellow] {escape(plain(names))}\n  A tool that was killed has left them, or one "
            "without BPF holds them. Those that were left\n  do no harm, and the next trace or "
            "start of the daemon takes them out."
        )


def _daemon_lines(
    refused: str | None, hooks: dict[str, str], not_told: dict[str, str]
) -> Iterator[str]:
    """Lines about what scope-ebpfd would not export of the VM."""
    if refused:
        yield f"\n[yellow]scope-ebpfd refuses this VM:[/yellow] {escape(plain(refused))}"
    elif hooks or not_told:
        yield "\n[yellow]scope-ebpfd does not report this VM:[/yellow]"
        if hooks:
            yield f"  events without hooks: {', '.join(hooks)}"
        for what, why in not_told.items():
            yield f"  {what}: {escape(plain(why))}"
    else:
        yield "\nscope-ebpfd exports every series of this VM."
