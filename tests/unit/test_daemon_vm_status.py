# SPDX-License-Identifier: Apache-2.0
"""
The page and the document of one VM: made of its last reading, escaped, for a VM that is observed.
"""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import documents
import pytest
from profile_fixtures import TARGET
from test_daemon_findings_pure import finding
from test_metrics_exposition import INFO, reading

from scope_ebpf.daemon.readings.findings import reading_of
from scope_ebpf.daemon.web import vm_status
from scope_ebpf.metrics.findings import FindingsReading
from scope_ebpf.results.check import Check

HOSTILE = "<script>alert(1)</script>\x1b[2J\u202e\"'&\udcfe"


def daemon(*readings) -> SimpleNamespace:
    """
    As much of a daemon as a page may ask: anything else is an AttributeError.
    """
    watches = [
        SimpleNamespace(reading=one, target=SimpleNamespace(pid=int(one.info["pid"])))
        for one in readings
    ]
    return SimpleNamespace(targets=SimpleNamespace(watches=watches))


def hostile():
    """
    A reading in which everything that a VM may choose is hostile.
    """
    check = Check(TARGET, 3.0, [finding("mailbox", "critical", HOSTILE)], ["mailboxes"])
    check.not_checked["ports"] = HOSTILE
    one = reading(HOSTILE)
    one.snapshot.names = dict.fromkeys(range(5), HOSTILE)
    return replace(one, info=INFO | {"pid": "23"}, findings=reading_of(check, 1000.0))


def test_what_a_vm_chooses_is_text_of_the_page():
    """
    No tag, no quote that ends an attribute, no control character.
    """
    kind, page = vm_status.answer(daemon(hostile()), "/vm/23")
    assert "html" == kind
    assert "<script" not in page
    assert page.replace("\n", "").isprintable()
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;?[2J?&quot;&#x27;&amp;?") >= 18


def test_the_document_is_the_same_and_in_ascii():
    """
    It validates, and has the verdict, the rankings and the schedulers.
    """
    kind, text = vm_status.answer(daemon(reading(), hostile()), "/api/v1/vm/23")
    assert "json" == kind
    assert text.isascii()
    assert text.isprintable()
    document = documents.validated(json.loads(text))
    assert (23, "critical") == (document["pid"], document["last_check"]["verdict"]["severity"])
    assert [10, 9, 8, 7, 6] == [one["value"] for one in document["top"]["mailboxes"]]
    assert [2, 2, 10] == [one["online"] for one in document["schedulers"]]


@pytest.mark.parametrize(
    "path",
    [
        *("/vm/24", "/vm/", "/vm", "/vm/23/", "/vm/023", "/vm/+23", "/vm/23\n", "/vm/٢٣", "/vm/-1"),
        *("/api/v1/vm/24", "/api/v2/vm/23", "/api/v1/vm/23/x", "/vm/23" + "0" * 5000, "//vm/23"),
    ],
)
def test_there_is_nothing_at_other_paths(path: str):
    """
    A pid that is not observed, and what is no pid, has no page.
    """
    assert vm_status.answer(daemon(hostile()), path) is None


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (FindingsReading(), "no verdict: it was not checked"),
        (FindingsReading(refused="too <many>"), "no verdict: too &lt;many&gt;"),
    ],
)
def test_a_vm_without_a_verdict_says_why(found: FindingsReading, said: str):
    """
    A page without a check, or a snapshot, has the rest; the document has null.
    """
    one = replace(reading(), findings=found, snapshot=None, counters=None, threads=None)
    _, page = vm_status.answer(daemon(one), "/vm/1")
    assert said in page
    _, text = vm_status.answer(daemon(one), "/api/v1/vm/1")
    document = documents.validated(json.loads(text))
    assert (None, None) == (document["last_check"], document["top"])
    assert (found.refused or None) == document["check_refused"]
