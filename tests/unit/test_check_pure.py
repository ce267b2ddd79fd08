# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import documents
import pytest
from profile_fixtures import TARGET

from scope_ebpf.checks.waits import _circles, _root
from scope_ebpf.results.check import KINDS, Check, Finding, Name
from scope_ebpf.sinks.check import lines


def finding(kind: str = "mailbox", severity: str = "warning", **more: object) -> Finding:
    text = ("12 messages wait for ", Name("name", "shop"))
    return Finding(kind, severity, {"name": "shop"}, text, {"messages": 12}, **more)


def check(*findings: Finding) -> Check:
    return Check(TARGET, 3.0, [*findings], ["mailboxes"])


def test_the_most_severe_and_certain_finding_comes_first():
    """
    Then causes before what follows from them, then the larger.
    """
    order = [
        finding("deadlock", "critical"),
        finding("mailbox", "critical", confidence="likely"),
        finding("limit"),
        finding("mailbox", weight=9),
        finding("mailbox", weight=2),
    ]
    assert order == check(*reversed(order)).sorted()


def test_ten_findings_are_shown_and_the_rest_is_counted():
    """
    Those that were made, and those that were only counted.
    """
    found = check(*[finding(weight=n) for n in range(13)])
    found.more["mailbox"] = 987
    document = documents.validated(found.as_json())
    assert 10 == len(document["findings"])
    assert (1000, {"mailbox": 990}) == (document["findings_total"], document["left_out"])
    assert document["verdict"]["summary"].endswith("(999 more)")
    assert "and 990 findings more: 990 mailbox" in lines(document)


@pytest.mark.parametrize(
    ("severity", "at", "fails"),
    [
        ("warning", "warning", True),
        ("warning", "critical", False),
        ("critical", "warning", True),
    ],
)
def test_a_finding_fails_from_the_asked_severity_on(severity, at, fails):
    """
    Nothing found never fails.
    """
    assert fails == check(finding(severity=severity)).fails(at)
    assert not check().fails(at)


def test_names_in_sentences_are_written_by_who_redacts_them():
    """
    No command has a name in it, so nothing of a VM gets into a shell.
    """
    found = check(finding(next=("ps {pid} 0.85.0",)))
    document = found.as_json(lambda name: f"({name.key})", redacted=True)
    assert "12 messages wait for (name)" == document["findings"][0]["summary"]
    assert [f"scope-trace ps {TARGET['pid']} 0.85.0"] == document["findings"][0]["next"]


def test_a_part_that_was_not_looked_at_makes_the_outcome_partial():
    """
    A verdict that nothing is wrong says so, too.
    """
    found = check()
    found.not_checked["memory"] = "it is hidden"
    document = documents.validated(found.as_json())
    assert ("partial", "good") == (document["outcome"], document["verdict"]["severity"])
    assert "1 could not be looked at" in document["verdict"]["summary"]
    assert "not looked at: memory: it is hidden" in lines(document)


def test_control_characters_of_names_do_not_reach_a_terminal():
    """
    Neither does a second line.
    """
    evil = Finding("mailbox", "warning", {}, (Name("name", "a\x1b[2J\nb"),), {})
    assert [] == [line for line in lines(check(evil).as_json()) if "\x1b" in line or "\n" in line]


def test_circles_of_waiting_are_found_once_and_chains_have_a_root():
    """
    Whoever waits for a circle is no part of it.
    """
    waits = {1: 2, 2: 3, 3: 1, 7: 1, 8: 9}
    assert [[1, 2, 3]] == _circles(waits)
    assert 9 == _root(8, waits)
    assert _root(7, waits) in (1, 2, 3)


def test_every_kind_is_documented():
    """
    The published list is that of the schema.
    """
    text = (Path(__file__).parents[2] / "docs/check.md").read_text()
    assert [] == [kind for kind in KINDS if f"| `{kind}` |" not in text]
