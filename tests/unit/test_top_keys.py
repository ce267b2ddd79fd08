# SPDX-License-Identifier: Apache-2.0
"""
What keys do to the state of the screen of ``top``.
"""

from __future__ import annotations

import pytest

from scope_ebpf.cli.top_keys import HELP, SORTS, Screen


def screen(**fields: object) -> Screen:
    """
    A table of 100 processes of which 10 are shown.
    """
    return Screen(**({"total": 100, "rows": 10} | fields))


def pressed(state: Screen, *keys: str) -> Screen:
    """
    The state after some keys, with the processes 1000 to 1009 on the screen.
    """
    for key in keys:
        state.press(key, range(1000, 1010))
    return state


@pytest.mark.parametrize(
    ("keys", "first", "selected"),
    [
        (["down"], 0, 1),
        (["down", "up", "up"], 0, 0),
        (["j", "j", "k"], 0, 1),
        (["down"] * 10, 1, 10),
        (["page_down"], 10, 10),
        (["page_down"] * 20, 90, 99),
        (["page_down", "page_up", "page_up"], 0, 0),
        (["end"], 90, 99),
        (["end", "home"], 0, 0),
        (["end", "up"], 90, 98),
    ],
)
def test_the_selected_process_is_in_the_table_and_on_the_screen(
    keys: list[str], first: int, selected: int
):
    """
    Neither leaves the table, however often a key is pressed.
    """
    state = pressed(screen(), *keys)
    assert (first, selected) == (state.first, state.selected)
    assert state.first <= state.selected < state.first + state.rows


@pytest.mark.parametrize("total", [0, 1, 5])
def test_a_table_that_shrinks_keeps_a_selected_process(total: int):
    """
    With fewer processes than before, down to none, the state stays within them.
    """
    state = pressed(screen(), "end")
    state.total = total
    state.bound()
    assert (0, max(0, total - 1)) == (state.first, state.selected)


def test_numbers_and_angles_choose_the_order():
    """
    Each number its column, the angles the one before and after it, r the other direction.
    """
    assert [pressed(screen(), str(n + 1)).sort for n in range(len(SORTS))] == list(SORTS)
    assert pressed(screen(), "<").sort == SORTS[-1]
    assert pressed(screen(), ">", ">").sort == SORTS[2]
    state = pressed(screen(), "end", "r")
    assert (True, 0, 0) == (state.least, state.first, state.selected)
    assert not pressed(state, "3").least
    state = pressed(screen(), "9")
    assert (SORTS[0], True) == (state.sort, "1 to 6" in state.note)
    assert not pressed(state, "down").note


def test_letters_of_a_filter_are_no_commands():
    """
    While one is typed, q and the numbers are part of it; Enter keeps it, Escape takes it back.
    """
    state = pressed(screen(), "/", *"q1 <?x", "backspace", "up", "enter")
    assert ("q1 <?", False, False) == (state.wanted, state.typing, state.quit)
    assert pressed(state, "/", "escape").wanted == ""
    assert pressed(screen(), "/", *("x" * 500)).wanted == "x" * 80
    assert pressed(screen(wanted="x"), "escape").wanted == ""


def test_enter_shows_the_selected_process_and_escape_goes_back():
    """
    The details are of the process on the screen; help lies above either page.
    """
    state = pressed(screen(), "down", "enter")
    assert ("process", 1001) == (state.page, state.process)
    assert pressed(state, "?").page == "help"
    assert pressed(state, "escape").page == "process"
    state = pressed(state, "backspace")
    assert ("table", None, 1) == (state.page, state.process, state.selected)
    nothing = screen(total=0)
    nothing.press("enter", [])
    assert nothing.page == "table"


def test_pages_of_text_are_scrolled_within_their_lines():
    """
    From the first line to the last, whatever the key.
    """
    state = screen(page="process", lines=25)
    assert [pressed(state, key).line for key in ("end", "down", "page_up", "home", "up")] == [
        *(15, 15, 5),
        *(0, 0),
    ]
    assert pressed(screen(page="help", lines=3), "end").line == 0


def test_quit_and_pause_work_on_each_page():
    """
    Also in help and in details.
    """
    for page in ("table", "process", "help"):
        state = pressed(screen(page=page), " ")
        assert state.paused
        assert not pressed(state, " ").paused
        assert pressed(state, "q").quit


def test_the_help_names_the_columns_that_can_be_sorted_by():
    """
    The numbers in the help are those that there are.
    """
    assert f"1-{len(SORTS)}" in dict(HELP)
