# SPDX-License-Identifier: Apache-2.0
"""
What real VMs hold: every ETS table, port and stack as the node itself has it.
"""

from __future__ import annotations

import time
from collections import Counter

import documents
import pytest
from beams_run import start_beam
from tracing import scope_trace

from scope_ebpf.beam.held.memory import MemoryReader
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.daemon.readings.snapshots import Table
from scope_ebpf.runs.memory import Span, document

#: Seconds after which planted timers are due, and by which the VM's clock may be mistaken.
DAY, CLOCK = 86400, 5
FIELDS = (
    *("name", "memory_bytes", "named", "owner", "type", "protection", "objects", "keypos"),
    "compressed",
)


@pytest.fixture(scope="module", params=["stock25", "trixie27", "sid29", "emu25"])
def beam(request):
    """
    A VM that holds tables of every kind.
    """
    with start_beam(request.param, "-s", "holding") as running:
        running.expect("ready")
        yield running


def node_tables(beam) -> list[tuple[str, ...]]:
    """
    What the node says of each of its tables, in the order of FIELDS.
    """
    return answers(beam, "tables")


def answers(beam, question: str) -> list[tuple[str, ...]]:
    """
    The words of each line that the node answers with, sorted.
    """
    beam.send(question)
    found = []
    while (line := beam.readline()) != "end":
        found.append(tuple(line.split()))
    return sorted(found)


def ets(beam, *words: str) -> dict:
    """
    The document of two looks at *beam*.
    """
    return scope_trace("ets", "--pid", str(beam.pid), "--format", "json", *words).document


def rows(document: dict) -> list[tuple[str, ...]]:
    return sorted(
        tuple(str(table[field]).replace(" ", "_").replace("True", "true").replace("False", "false")
              for field in FIELDS)
        for table in document["tables"]
    )  # fmt: skip


def test_every_table_is_as_the_node_has_it(beam):
    """
    Name, owner, type, access, objects and memory of each table of a node at rest, private too.
    """
    node_tables(beam)  # what answering takes is loaded
    expected = node_tables(beam)
    document = ets(beam, "--once", "--limit", "1000")
    assert expected == rows(document)
    assert (len(expected), len(expected), 0) == tuple(
        document[name] for name in ("tables_total", "read", "torn")
    )
    held = {table["name"]: table for table in document["tables"]}
    assert (2300, "keeper", "set", "public") == tuple(
        held["held_set"][name] for name in ("objects", "owner_name", "type", "protection")
    )
    assert (777, 555) == (held["held_spread"]["objects"], held["held_forest"]["objects"])
    assert (3, True) == (held["held dup"]["objects"], held["held dup"]["compressed"])


def test_many_tables_of_a_stopped_vm_are_all_read(beam):
    """
    523 planted tables besides those that were there, none torn, while the VM is stopped.
    """
    before = ets(beam, "--once")["read"]
    assert "done" == beam.ask("many 523")
    beam.freeze()
    try:
        document = ets(beam, "--once", "--limit", "5")
        text = scope_trace("ets", "--pid", str(beam.pid), "--once", "--limit", "5").output
    finally:
        beam.thaw()
    assert (before + 523, 0, 5) == (document["read"], document["torn"], len(document["tables"]))
    assert f"and {before + 523 - 5} tables more" in text


PORT_FIELDS = ("name", "port", "owner", "os_pid", "queued_bytes", "bytes_in", "bytes_out")


def ports(beam, *words: str) -> dict:
    """
    The document of one look at the ports of *beam*.
    """
    command = ("ports", "--pid", str(beam.pid), "--format", "json", "--once", *words)
    return scope_trace(*command).document


def port_rows(document: dict) -> list[tuple[str, ...]]:
    """
    The ports of a document, as the node reports them.
    """
    made = []
    for port in document["ports"]:
        talks = port["name"] == "0/1"  # what goes through it changes with each answer
        row = dict(port, os_pid=port["os_pid"] or "undefined", name=port["name"].replace(" ", "_"))
        row |= {"queued_bytes": 0, "bytes_in": 0, "bytes_out": 0} if talks else {}
        made.append(tuple(str(row[field]) for field in PORT_FIELDS))
    return sorted(made)


def test_every_port_is_as_the_node_has_it(beam):
    """
    Name, owner, process, queue and bytes of each port at rest; the one that is busy comes first.
    """
    expected = answers(beam, "ports")
    document = ports(beam, "--limit", "1000")
    assert expected == port_rows(document)
    assert (len(expected), len(expected), 0) == tuple(
        document[name] for name in ("ports_total", "read", "torn")
    )
    assert 3 == document["drivers"]["tcp_inet"]
    sent = [port["bytes_out"] for port in document["ports"] if port["driver"] == "tcp_inet"]
    assert 23000 <= max(sent) < 23100  # since OTP 27 with some of the driver's own
    (echo,) = [port for port in document["ports"] if port["name"] == "cat"]
    assert (230, 230) == (echo["bytes_in"], echo["bytes_out"])
    first = document["ports"][0]
    assert (1, True, 1, "printer") == (
        document["busy"],
        first["busy"],
        first["waiting"],
        first["owner_name"],
    )


def test_many_ports_of_a_stopped_vm_are_all_read(beam):
    """
    523 planted sockets besides those that were there, while the VM is stopped.
    """
    before = len(answers(beam, "ports"))
    assert "done" == beam.ask("sockets 523")
    beam.freeze()
    try:
        document = ports(beam, "--limit", "5")
    finally:
        beam.thaw()
    assert (before + 523, 0, 5) == (document["read"], document["torn"], len(document["ports"]))
    assert 523 == document["drivers"]["udp_inet"]


def stacks(beam, *words: str) -> dict:
    """
    The document of the groups of all processes of *beam*.
    """
    command = ("stacks", "--pid", str(beam.pid), "--format", "json", "--limit", "1000", *words)
    return scope_trace(*command).document


def hibernating(stack: tuple[str, ...]) -> tuple[str, ...]:
    """
    A stack, where a process that hibernates has none: some releases name hibernate/3.
    """
    return () if stack in (("none",), ("erlang:hibernate/3@",)) else stack


def test_every_stack_is_as_the_node_has_it(beam):
    """
    Frames with lines, and counts, of all processes that wait but the one that answers.
    """
    answers(beam, "stacks")  # what answering takes is loaded
    expected = Counter(map(hibernating, answers(beam, "stacks")))
    beam.freeze()
    try:
        document = stacks(beam)
    finally:
        beam.thaw()
    found: Counter[tuple[str, ...]] = Counter()
    for group in document["groups"]:
        stack = [f"{one['function']}@{one['location'] or ''}" for one in group["stack"]]
        # The printer is suspended within a BIF, which the node takes for left.
        if not any(frame.startswith(("control:", "erts_internal:port_command")) for frame in stack):
            found[hibernating(tuple(stack))] += group["count"]
    assert expected == found
    assert {45, 5} <= {group["count"] for group in document["groups"]}
    assert 0 == document["torn"]


def test_processes_in_groups_of_what_they_began_with_or_are_in(beam):
    """
    Fifty of deep/2; by function the 45 of them that wait in inner/0.
    """
    groups = {group["initial_call"]: group for group in stacks(beam, "--by", "call")["groups"]}
    assert (50, []) == (groups["holding:deep/2"]["count"], groups["holding:deep/2"]["stack"])
    groups = {
        group["stack"][0]["function"]: group["count"]
        for group in stacks(beam, "--by", "function")["groups"]
        if group["stack"]
    }
    assert (45, 5) == (groups["holding:inner/0"], groups["holding:other/0"])
    labels = {group["label"]: group for group in stacks(beam, "--by", "label")["groups"]}
    assert {None, '{waits,"other"}'} == labels.keys()
    assert 5 == labels['{waits,"other"}']["count"]
    assert "holding:deep/2" == labels['{waits,"other"}']["initial_call"]


def figures(beam, question: str) -> dict[str, int]:
    """
    What the node answers, number by name, once what answering takes is loaded.
    """
    for _ in range(2):
        answers(beam, question)
    return {name: int(number) for name, number in answers(beam, question)}


def memory(beam, limit: int) -> dict:
    """
    The document of one look at the memory of *beam*, which is stopped.
    """
    target = inspect(beam.pid)
    beam.freeze()
    try:
        look = MemoryReader(target, limit).read()
        return documents.validated(document(Span(target, look, None, 0.0, limit)))
    finally:
        beam.thaw()


def test_memory_is_as_the_node_has_it(beam):
    """
    Each kind of erlang:memory/0 and the persistent terms; what is null has a reason.

    The process that answers makes garbage, so kinds with heaps and binaries move with each answer.
    """
    expected = figures(beam, "memory")
    beam.freeze()
    try:
        run = scope_trace("memory", "--pid", str(beam.pid), "--format", "json", "--once")
    finally:
        beam.thaw()
    found = run.document
    refused = {one["what"] for one in found["not_read"]}
    kinds, terms = found["kinds"], found["persistent_terms"]
    hides = found["target"]["otp_release"] == "29"
    hidden = {"code", "ets", "total", "system"} if hides else set()
    assert hidden == {name for name, size in kinds.items() if size is None}
    assert hidden == refused
    for kind in {"atom", "atom_used", "code", "ets"} - hidden:
        assert expected[kind] == kinds[kind], kind
    for kind in {"total", "processes", "processes_used", "system", "binary"} - hidden:
        assert expected[kind] == pytest.approx(kinds[kind], rel=0.03), kind
    assert (expected["persistent_terms"], expected["persistent_bytes"]) == (
        terms["count"],
        terms["memory_bytes"],
    )
    assert "held_term" == terms["largest"][0]["name"]


def test_binaries_of_every_process_are_as_the_node_has_them(beam):
    """
    The virtual binary heaps, 23 binaries of 100,000 bytes at the top.
    """
    expected = figures(beam, "binaries")
    found = memory(beam, 100)["binaries"]
    assert ("hoarder", 2_300_000) == (found[0]["name"], found[0]["binary_bytes"])
    held = {one["pid"]: one["binary_bytes"] for one in found}
    assert expected.items() <= held.items()
    assert len(held) <= len(expected) + 1  # that of who answers
    words = ("top", "--pid", str(beam.pid), "--sort", "binary", "--limit", "2")
    rows = scope_trace(*words, "--once", "--format", "json").document["processes"]
    assert [("hoarder", 2_300_000), ("printer", 1_000_000)] == [
        (row["name"], row["binary_bytes"]) for row in rows
    ]


def test_timers_and_atoms_that_were_planted(beam):
    """
    23 timers more, and the last of 23 atoms as the newest.
    """
    before = memory(beam, 5)["timers"]["bif"]
    began = time.monotonic()
    assert ("done", "done") == (beam.ask("timers 23"), beam.ask("atoms 23"))
    found = memory(beam, 5)
    assert before + 23 == found["timers"]["bif"]
    first, *others = found["timer_receivers"]
    assert ("keeper", 23) == (first["name"], first["timers"])
    # They are due after a day; that to a name is of no process.
    due = first["next_due_seconds"]
    assert DAY - (time.monotonic() - began) - CLOCK < due <= DAY + CLOCK
    assert before - 1 == sum(one["timers"] for one in others)
    assert ["planted_23", "planted_22"] == found["newest_atoms"][:2]
    tables = {one["what"]: one["used"] for one in found["tables"]}
    assert len(node_tables(beam)) == tables["ets_tables"]


def test_what_grows_comes_first_in_the_order_of_growth(beam):
    """
    2,300 objects more in one table between two looks.
    """
    target = inspect(beam.pid)
    reader = MemoryReader(target, 5)
    first = reader.read()
    assert "done" == beam.ask("grow 2300")
    found = documents.validated(document(Span(target, reader.read(), first, 1.0, 5, "growth")))
    table = found["ets_tables"][0]
    assert ("held_set", 2300) == (table["name"], table["objects_per_second"])


def test_tables_that_come_and_go_spoil_no_other_row(beam):
    """
    While tables are made and deleted all the time, each row that stays is as before.

    The last test of this module: what makes them goes on.
    """
    planted = {row for row in node_tables(beam) if row[0].startswith("held")}
    assert "done" == beam.ask("churn")
    document = ets(beam, "--once", "--limit", "5000")
    assert planted <= set(rows(document))
    names = {table["name"] for table in document["tables"]} - {"churning"}
    assert names <= {row[0].replace("held_dup", "held dup") for row in node_tables(beam)}


def test_few_large_messages_make_a_process_large(beam):
    """
    Three messages of 1.6 MB off a small heap, and 40 longer mailboxes of small ones.
    """
    assert "done" == beam.ask("letters 3")
    look = scope_trace(
        "memory", "--pid", str(beam.pid), "--once", "--limit", "2", "--format", "json"
    )
    first, second = look.document["processes"]
    assert ("addressee", 3, False) == (
        first["name"],
        first["messages"],
        first["memory_estimated"],
    )
    assert 4_800_000 <= first["memory_bytes"] < 4_810_000
    rest = look.document["kinds"]["processes"] - first["memory_bytes"] - second["memory_bytes"]
    assert max(0, rest) == look.document["processes_beyond_rows_bytes"]
    # The rankings of the daemon, which read the table in parts.
    reading = Table(inspect(beam.pid)).read(2, lambda _: None)
    assert "addressee" == reading.names[reading.memories[0].pid]


def test_binaries_in_messages_are_those_of_the_process_that_has_them(beam):
    """
    23 messages with a binary of a million bytes each: ``ps`` and ``memory`` say so.
    """
    assert "done" == beam.ask("parcels 23")
    words = ("--pid", str(beam.pid), "--format", "json")
    process = scope_trace("ps", "recipient", *words).document["process"]
    assert {"binary_bytes": 23_000_000, "estimated": False}.items() <= process["mailbox"].items()
    # A tuple of two and what refers to a binary take some words of each message.
    assert 23 * 88 < process["mailbox"]["outside_bytes"] < 23 * 200
    assert 0 == process["binary_bytes"]
    first = scope_trace("memory", "--once", *words).document["binaries"][0]
    assert ("recipient", 0, 23_000_000) == tuple(
        first[key] for key in ("name", "binary_bytes", "message_binary_bytes")
    )
