# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from scope_ebpf.units import MAX_SECONDS, seconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10s", 10.0),
        ("500ms", 0.5),
        ("1m", 60.0),
        ("2h", 7200.0),
        ("2", 2.0),
        ("2.5", 2.5),
        (".5s", 0.5),
        (" 3 s ", 3.0),
        ("0", 0.0),
    ],
)
def test_a_time_is_a_number_and_a_unit(text: str, expected: float):
    """
    A time is a number with ms, s, m or h behind it; a number alone is seconds.
    """
    assert expected == seconds(text)


def test_a_number_alone_counts_in_the_unit_that_was_named():
    """
    Where an option counts in milliseconds, so does a number alone, but not one with a unit.
    """
    assert (0.005, 5.0) == (seconds("5", unit="ms"), seconds("5s", unit="ms"))


@pytest.mark.parametrize(
    "text",
    ["", "s", "-1s", "1 d", "1s2", "nan", "inf", "1e3", "0x1", ".", "1..2", "\u0661s", "1\n2"],
)
def test_anything_else_is_refused_with_the_forms_there_are(text: str):
    """
    Neither other units, nor other ways to write a number, nor digits of other scripts.
    """
    with pytest.raises(ValueError, match=r'^a time is written like "10s", "500ms", "1m" or "2h"'):
        seconds(text)


def test_a_time_has_bounds():
    """
    Less than the least, and more than a week, are refused with the bound.
    """
    with pytest.raises(ValueError, match=r"^it must be 0\.5 s at least$"):
        seconds("499ms", least=0.5)
    assert MAX_SECONDS == seconds("168h")
    with pytest.raises(ValueError, match=r"^it must be a week at most$"):
        seconds("168.1h")
    with pytest.raises(ValueError, match=r"^it must be a week at most$"):
        seconds("9" * 400)
