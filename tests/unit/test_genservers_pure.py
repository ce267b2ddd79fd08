# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections import Counter

import documents
from profile_fixtures import TARGET

from scope_ebpf.results.genservers import Edge, GenServers, Module
from scope_ebpf.results.server_events import Cost
from scope_ebpf.runs.genservers import Looking
from scope_ebpf.sinks.servers import lines


def module(name: str, busy: float = 0.0, mailbox: float = 0.0, callers: float = 0.0) -> Module:
    return Module(name, "gen_server", 1.0, busy, busy, mailbox, int(mailbox), callers)


def view(*modules: Module, edges: tuple[Edge, ...] = (), **more: object) -> GenServers:
    return GenServers(TARGET, 10.0, 200, [*modules], [*edges], **more)


CHAIN = (
    module("front", 0.95, 19.8, 20.7),
    module("middle", 0.9, 0.0, 0.93),
    module("Elixir.Shop.Repo", 0.85, 0.0, 0.88),
)
WAITS = (
    Edge("client", "front", 20.7),
    Edge("front", "middle", 0.93),
    Edge("middle", "Elixir.Shop.Repo", 0.88),
)


def test_the_verdict_follows_a_chain_of_waiting_to_its_end():
    """
    The bottleneck is what most wait for; what it waits for itself is the last of the chain.
    """
    verdict = view(*CHAIN, edges=WAITS).verdict
    assert ("front", "Elixir.Shop.Repo") == (verdict.bottleneck, verdict.waits_for)
    assert "20.7 callers and 19.8 messages" in verdict.because
    assert "callers: client 100 %" in verdict.because


def test_a_server_that_works_itself_waits_for_nobody():
    """
    A small part of the busy time spent in another server is no cause.
    """
    few = (*WAITS[:1], Edge("front", "middle", 0.3))
    verdict = view(*CHAIN, edges=few).verdict
    assert ("front", None) == (verdict.bottleneck, verdict.waits_for)


def test_servers_that_wait_in_a_circle_are_followed_once():
    """
    Modules that call each other do not keep the verdict from ending.
    """
    both = (Edge("a", "b", 0.9), Edge("b", "a", 0.9), Edge("client", "a", 9.0))
    verdict = view(module("a", 0.9, 0, 9.0), module("b", 0.9), edges=both).verdict
    assert ("a", "b") == (verdict.bottleneck, verdict.waits_for)


def test_a_deadlock_comes_before_everything_else():
    """
    Its members are named in the order in which they wait.
    """
    verdict = view(*CHAIN, edges=WAITS, deadlock=("a", "b", "c")).verdict
    assert (None, ("a", "b", "c")) == (verdict.bottleneck, verdict.deadlock)
    assert verdict.because.endswith("a -> b -> c -> a")


def test_a_calm_vm_has_no_bottleneck():
    """
    Neither has one without servers.
    """
    for calm in (view(), view(module("idle", 0.01))):
        assert (None, "no server is waited for much") == (
            calm.verdict.bottleneck,
            calm.verdict.because,
        )


def test_text_is_for_people_and_no_terminal_obeys_it():
    """
    Elixir's modules are written as Elixir writes them, control characters are not written.
    """
    text = lines(view(*CHAIN, module("evil\x1b[2J\n", 0.2), edges=WAITS), "waiting", 3)
    assert text[2].startswith("front ")
    assert text[4].startswith("Shop.Repo ")
    assert "and 1 more" in text
    assert "  middle -> Shop.Repo  0.88" in text
    assert text[-1].startswith("most waiting goes through front: ")
    whole = lines(view(*CHAIN, module("evil\x1b[2J\n", 0.2), edges=WAITS), "busy", 9)
    assert all(line.isprintable() for line in whole)


def test_the_first_heading_is_what_a_row_is_of():
    """
    MODULE, or what --by asked for; the row below it has the same columns.
    """
    for by, heading in (("module", "MODULE"), ("name", "NAME"), ("process", "PROCESS")):
        text = lines(view(*CHAIN), "waiting", 3, by)
        assert [heading, "PROCS", "BUSY"] == text[1].split()[:3]
        assert text[1].index("PROCS") + len("PROCS") == text[2].index(" 1 ") + len(" 1")


def test_figures_that_are_one_or_unknown_have_their_words():
    """
    One look is no looks; a share that is not known is no question mark.
    """
    found = view(*CHAIN, unresolved=0.25, cost=Cost(5, 0, None, None))
    found.looks = 1
    text = lines(found, "waiting", 3)
    assert ", 1 look, hooks took too little to measure, " in text[0]
    assert any(line.endswith("wait for a server that was not identified") for line in text)


def test_the_document_fits_its_schema():
    """
    With every field, and what hooks alone could know is null.
    """
    found = documents.load(json.dumps(view(*CHAIN, edges=WAITS).as_json()))
    assert [None, 20.7] == [found["modules"][0][key] for key in ("calls", "waiting_callers")]


def circling(*looks: dict[int, tuple[int, tuple[int, int]]]) -> list[tuple[int, ...]]:
    """
    The pids of circles that were in each of three looks, one after the other.
    """
    looking = object.__new__(Looking)
    looking._circles = Counter()
    for waits in looks:
        looking._find_circles(waits)
    found = (circle for circle, times in looking._circles.items() if times >= 3)
    return [tuple(pid for pid, _ in circle) for circle in found]


def test_only_the_same_calls_are_a_deadlock():
    """
    Servers that call each other again and again are not stuck, though each look sees a circle.
    """
    stuck = {5: (7, (1, 1)), 7: (9, (2, 2)), 9: (5, (3, 3)), 4: (5, (4, 4))}
    assert [(5, 7, 9)] == circling(stuck, stuck, stuck)
    busy = [{5: (7, (n, n)), 7: (5, (n, -n))} for n in range(3)]
    assert [] == circling(*busy)
    assert [] == circling(stuck, {}, stuck, stuck)


def test_a_long_chain_of_callers_is_no_long_work():
    """
    Each caller is followed once, however many wait behind it.
    """
    chain = {n: (n + 1, (n, n)) for n in range(100_000)}
    assert [] == circling(chain)
