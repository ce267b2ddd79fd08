# SPDX-License-Identifier: Apache-2.0
"""
The end of a run of a user's probe, as tables and as lines.
"""

from __future__ import annotations

import ctypes
import io

import documents

from scope_ebpf.sinks.tables import SHOWN, write_report
from scope_ebpf.user_probes.outcome import Outcome


class Key(ctypes.Structure):
    """
    A key of a count: a number and a text.
    """

    _fields_ = (("code", ctypes.c_uint32), ("what", ctypes.c_char * 8))


class Terms:
    """
    No key here has a term.
    """

    def texts(self, words: list[int], *, text_pids: bool) -> list[str | None]:
        assert (words, text_pids) == ([], False)
        return []


def outcome() -> Outcome:
    counts = [(Key(number, b"call"), 100 - number) for number in range(SHOWN + 2)]
    slots = (0, 0, 0, 2, *[0] * 36)
    return Outcome(
        stopped="interrupted",
        seconds=2.0,
        events=23,
        lost=1,
        unread=2,
        full=3,
        hits=1234,
        cost_seconds=0.5,
        cost_share=0.25,
        counts={"calls": counts, "none": []},
        histograms={"slow": (1e-6, slots), "empty": (0.0, (0,) * 40)},
    )


def test_a_table_has_the_most_frequent_keys_and_the_sum_of_the_others():
    """
    Twenty-two keys are twenty rows and one for the last two.
    """
    output = io.StringIO()
    last = write_report(outcome(), output, Terms(), None, "text")
    lines = [line.split() for line in output.getvalue().splitlines()]
    assert ["calls:", "1,969", "of", "22", "kinds"] in lines
    rows = [line for line in lines if "call" in line]
    assert ["0", "call", "100"] == rows[0]
    assert ([str(SHOWN - 1), "call", "81"], SHOWN) == (rows[-1], len(rows))
    assert ["other", str(80 + 79)] in lines
    assert ["none:", "0", "of", "0", "kinds"] in lines
    assert ["empty:", "none"] in lines
    assert last.splitlines() == [
        "stopped: interrupted, after 2.0 s and 23 events",
        "lost: 1 events; 2 reads of the VM's memory failed; 3 counts had no room in their table",
        "cost: 1,234 hits, 0.500 s of CPU, 25.0% of the target's",
    ]


def test_lines_have_every_key_and_every_histogram():
    """
    A program gets all of them, each as an object of JSON.
    """
    output = io.StringIO()
    write_report(outcome(), output, Terms(), None, "jsonl")
    lines = documents.load_lines(output.getvalue())
    assert {"count": "calls", "code": 0, "what": "call", "n": 100} == lines[0]
    assert SHOWN + 2 == sum(line.get("count") == "calls" for line in lines)
    assert ["slow", "empty"] == [line["histogram"] for line in lines if "histogram" in line]


def test_a_cost_that_is_not_known_is_not_made_up():
    """
    Without CAP_SYS_ADMIN the kernel does not count; unmeasured programs cost more than is known.
    """
    unknown = Outcome(hits=None, cost_seconds=None)
    assert "cost: not known:" in write_report(unknown, io.StringIO(), Terms(), None, "jsonl")
    partly = Outcome(hits=23, cost_seconds=0.1, measured=False)
    said = write_report(partly, io.StringIO(), Terms(), None, "jsonl")
    assert "cost: 23 hits, at least 0.100 s of CPU" == said.splitlines()[-1]
