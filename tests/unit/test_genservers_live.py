# SPDX-License-Identifier: Apache-2.0
"""
The table of ``genservers`` that moves, on a terminal that counts what is drawn.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import pytest

from scope_ebpf.cli import genservers_live
from scope_ebpf.cli.genservers_live import _Live, _Messages
from scope_ebpf.cli.top_keys import Screen
from scope_ebpf.runs.genservers import ServerOptions
from scope_ebpf.screen.terminal import EndedError
from scope_ebpf.sinks.servers import SORTS

if TYPE_CHECKING:
    from collections.abc import Iterable

VIEWER: Any = SimpleNamespace(
    target=SimpleNamespace(identity=SimpleNamespace(pidfd=0, wait=lambda _: None))
)


class Terminal:
    """
    A terminal that gives *pressed*, one list of keys a wait.
    """

    size = 100, 20

    def __init__(self, *pressed: list[str]) -> None:
        self.pressed = [*pressed]
        self.waits: list[float] = []
        self.draws = 0

    def watch(self, fds: Iterable[int]) -> None:
        del fds

    def keys(self, seconds: float) -> list[str]:
        self.waits.append(seconds)
        return self.pressed.pop(0)

    def draw(self, lines: object) -> None:
        del lines
        self.draws += 1


class Looks:
    """
    Looks at nothing.
    """

    reads_first = True
    read = parts = cpu_seconds = 0

    def __init__(self, *_: object) -> None:
        self.turns = 0

    def look(self) -> None:
        self.turns += 1

    def turn_over(self) -> None:
        pass

    def result(self, *_: object) -> object:
        return SimpleNamespace(notes=[])


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    """
    Run the table on a terminal until its last key.
    """
    monkeypatch.setattr(genservers_live, "Looking", Looks)
    VIEWER.target.as_json = dict

    def until_quit(terminal: Terminal) -> Looks:
        screen = Screen(sort="waiting", sorts=SORTS, checks=False)
        table: Any = _Live(VIEWER, ServerOptions(None), terminal, screen, None)
        with pytest.raises(EndedError):
            table.run()
        return table._looking

    return until_quit


def test_a_table_that_is_paused_is_drawn_only_after_a_key(run: Any):
    """
    Nothing is looked at and nothing drawn in 23 waits, each of which lasts.
    """
    terminal = Terminal([" "], *[[]] * 23, ["?"], [], ["q"])
    assert 1 == run(terminal).turns
    assert 3 == terminal.draws
    assert [genservers_live._REFRESH] * 26 == terminal.waits[1:]


def test_a_table_that_is_paused_goes_on_after_the_same_key(run: Any):
    """
    It looks and draws again.
    """
    terminal = Terminal([" "], [], [" "], [], ["q"])
    assert 3 == run(terminal).turns
    assert 4 == terminal.draws


def test_hooks_of_a_table_without_an_end_have_periods(monkeypatch: pytest.MonkeyPatch):
    """
    Without --duration one lasts as long as by default: hooks are not taken out by the next look.
    """
    hooks = MagicMock()
    hooks.__enter__.return_value = hooks
    monkeypatch.setattr(genservers_live, "Looking", Looks)
    asked: list[float | None] = []

    def counting(_viewer: object, options: ServerOptions, _stop: object) -> tuple[Any, str]:
        asked.append(options.duration)
        return hooks, ""

    monkeypatch.setattr(genservers_live, "counting", counting)
    table: Any = _Live(VIEWER, ServerOptions(None, budget=0.01), Terminal(), Screen(), None)
    messages: _Messages = table._messages
    for now in (100.0, 100.1, 109.9):
        messages.look(now, {})
    assert ([10.0], []) == (asked, hooks.end.mock_calls)
