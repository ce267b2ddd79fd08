# SPDX-License-Identifier: Apache-2.0
"""
The whole screen of a terminal, by curses: lines out, keys in.

The terminal is as it was before when the block ends, by an error or a signal too, and while the
command is stopped by Ctrl-Z. Signals are noted and handled between two waits, never within
other code.
"""

from __future__ import annotations

import contextlib
import curses
import locale
import os
import select
import signal
import sys
from typing import TYPE_CHECKING, Self

from scope_ebpf import pipes
from scope_ebpf.screen.cells import CUT, cut, width

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import FrameType

    from scope_ebpf.screen.layout import Line

#: Milliseconds after which an escape is a key, and not the beginning of another one.
_ESCAPE_MS = 50
#: A terminal that does not know its size.
_SIZE = 80, 24
#: What a terminal must be able to do.
_NEEDED = ("cup", "clear", "el")
#: Styles, by their attributes; in a terminal with colours ``alarm`` is red as well.
STYLES = {
    "": curses.A_NORMAL,
    "alarm": curses.A_BOLD,
    "bold": curses.A_BOLD,
    "dim": curses.A_DIM,
    "heading": curses.A_REVERSE,
    "sorted": curses.A_REVERSE | curses.A_BOLD | curses.A_UNDERLINE,
    "selected": curses.A_REVERSE | curses.A_BOLD,
}
#: Names of keys. A key that is a character is that character.
_KEYS: dict[int | str, str] = {
    curses.KEY_UP: "up",
    curses.KEY_DOWN: "down",
    curses.KEY_LEFT: "left",
    curses.KEY_RIGHT: "right",
    curses.KEY_PPAGE: "page_up",
    curses.KEY_NPAGE: "page_down",
    curses.KEY_HOME: "home",
    curses.KEY_END: "end",
    curses.KEY_ENTER: "enter",
    curses.KEY_BACKSPACE: "backspace",
    "\n": "enter",
    "\r": "enter",
    "\x1b": "escape",
    "\x7f": "backspace",
    "\b": "backspace",
}
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_NOTED = (*_ENDING, signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT)


class EndedError(Exception):
    """The user, or a signal, wants the command to end with *code*."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def usable() -> bool:
    """Whether there is a terminal for keys and a whole screen: not in a pipe, not a dumb one."""
    try:
        if not (os.isatty(0) and sys.stdout.isatty()):
            return False
        curses.setupterm(fd=sys.stdout.fileno())
    except (curses.error, OSError, ValueError):
        return False
    return all(curses.tigetstr(name) for name in _NEEDED)


def columns(default: int) -> int:
    """The width of the terminal behind standard output; *default* where it is none."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stdout.isatty():
            return os.get_terminal_size(sys.stdout.fileno()).columns or _SIZE[0]
    return default


class Terminal:
    """A context manager: the screen is this command's while the block runs."""

    def __init__(self) -> None:
        self._noted: list[int] = []
        self._before: dict[signal.Signals, object] = {}
        self._woken: tuple[int, int] = -1, -1
        self._styles = dict(STYLES)

    def __enter__(self) -> Self:
        with contextlib.suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, "")
        self._utf8 = locale.nl_langinfo(locale.CODESET) == "UTF-8"
        self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup = signal.set_wakeup_fd(self._woken[1], warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._note) for number in _NOTED}
        try:
            self._open()
        except BaseException:
            self._close()
            raise
        return self

    def _open(self) -> None:
        sys.stdout.flush()
        curses.set_escdelay(_ESCAPE_MS)
        self._window = curses.initscr()
        curses.noecho()
        curses.cbreak()
        self._window.keypad(True)
        self._window.nodelay(True)
        with contextlib.suppress(curses.error):  # it cannot hide the cursor
            curses.curs_set(0)
        with contextlib.suppress(curses.error):  # it has no colours
            self._colour()
        self._poll = select.poll()
        self._poll.register(0, select.POLLIN)
        self._poll.register(self._woken[0], select.POLLIN)
        self._resize()

    def _colour(self) -> None:
        if os.environ.get("NO_COLOR"):
            return
        curses.start_color()
        curses.use_default_colors()
        curses.init_pair(1, curses.COLOR_RED, -1)
        self._styles["alarm"] |= curses.color_pair(1)

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        with contextlib.suppress(curses.error):  # it was not begun
            curses.curs_set(1)
        with contextlib.suppress(curses.error):
            curses.endwin()
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._wakeup)
        for fd in self._woken:
            os.close(fd)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._noted.append(number)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        rows, cells = self._window.getmaxyx()
        return cells, rows

    def draw(self, lines: Sequence[Line]) -> None:
        """Show *lines*, as many as there is room for, each cut at the right edge."""
        cells, rows = self.size
        self._window.erase()
        for row, line in enumerate(lines[:rows]):
            at = 0
            for text, style in line:
                shown = self._spelled(cut(text, cells - at))
                # An error comes from the last cell of all, behind which no cursor can stand.
                with contextlib.suppress(curses.error):
                    self._window.addstr(row, at, shown, self._styles[style])
                at += width(shown)
        self._window.refresh()

    def _spelled(self, text: str) -> str:
        if self._utf8 or text.isascii():
            return text
        return text.replace(CUT, "~").encode("ascii", "replace").decode()

    def watch(self, fds: Iterable[int]) -> None:
        """Let :meth:`keys` return early when one of *fds* is readable or hung up."""
        for fd in fds:
            self._poll.register(fd, select.POLLIN)

    def keys(self, seconds: float) -> list[str]:
        """
        Wait for *seconds* at most; the keys that were pressed, and ``resize`` for a new size.

        Raises EndedError with the code of a shell, 128 and the number, for a signal that ends.
        """
        ready = dict(self._poll.poll(max(0.0, seconds) * 1000))
        with contextlib.suppress(BlockingIOError):
            os.read(self._woken[0], 4096)
        found = self._signalled()
        pressed = self._pressed() if 0 in ready else []
        if ready.get(0, 0) & (select.POLLHUP | select.POLLERR) and not pressed:
            raise EndedError(128 + signal.SIGHUP)
        return found + pressed

    def _signalled(self) -> list[str]:
        noted, self._noted = self._noted, []
        for number in noted:
            if number in _ENDING:
                pipes.set_ending()
                raise EndedError(128 + number)
        if signal.SIGTSTP in noted:
            self._stop()
        elif signal.SIGCONT in noted:
            curses.reset_prog_mode()
        if noted:
            self._resize()
        return ["resize"] if noted else []

    def _stop(self) -> None:
        """Give the terminal back, stop as Ctrl-Z asks, and take it again when continued."""
        curses.endwin()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._note)

    def _resize(self) -> None:
        cells, rows = _SIZE
        with contextlib.suppress(OSError):
            found = os.get_terminal_size(sys.stdout.fileno())
            cells, rows = found.columns or cells, found.lines or rows
        curses.resizeterm(rows, cells)
        self._window.clearok(True)

    def _pressed(self) -> list[str]:
        found = []
        with contextlib.suppress(curses.error):  # no more of them
            while True:
                key = self._window.get_wch()
                name = _KEYS.get(key, key if isinstance(key, str) else "")
                found += [name] if name else []
        return found
