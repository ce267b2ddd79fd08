# SPDX-License-Identifier: Apache-2.0
"""
``top`` in a real terminal: what is on the screen at each size, and what each key does.
"""

from __future__ import annotations

import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import beams_run
import documents
import pytest
from tracing import SCOPE_TRACE, scope_trace, wait_until

from scope_ebpf.cli.top_keys import HELP
from scope_ebpf.screen.cells import width

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Messages in the mailbox of moving_deaf, and how that is written.
PLANTED, SHOWN = 1534, "1.5k"
FOOTER = "q quit"


class Terminal:
    """
    A terminal of tmux, with a shell in it.
    """

    def __init__(self, folder: Path, cells: int = 80, rows: int = 24) -> None:
        self._tmux = ["tmux", "-S", str(folder / "socket"), "-f", "/dev/null"]
        size = ("-x", str(cells), "-y", str(rows))
        shell = "PS1='ready> ' exec bash --norc --noprofile -i"
        self._do("new-session", "-d", *size, shell)
        self.until(lambda: "ready>" in self.text)

    def _do(self, *words: str) -> str:
        done = subprocess.run([*self._tmux, *words], capture_output=True, text=True, check=True)
        return done.stdout

    def close(self) -> None:
        """
        End it, and what runs in it.
        """
        self._do("kill-server")

    def keys(self, *keys: str) -> None:
        """
        Press some keys, by tmux's names for them.
        """
        self._do("send-keys", *keys)

    def resize(self, cells: int, rows: int) -> None:
        """
        Make it another size.
        """
        self._do("resize-window", "-x", str(cells), "-y", str(rows))

    def run(self, *words: str) -> None:
        """
        Type a command line, on a clear screen.
        """
        self.keys("C-l")
        self.keys("-l", shlex.join(words).replace("\\;", ";"))
        self.keys("Enter")

    def top(self, pid: int, *arguments: str, **environment: str) -> None:
        """
        Start ``top``, and wait until it has drawn rates.
        """
        variables = [f"{name}={value}" for name, value in environment.items()]
        words = (*SCOPE_TRACE, "top", "--pid", str(pid), *arguments)
        self.run("env", *variables, *words)
        self.until(lambda: FOOTER in self.text and self.rows())

    @property
    def text(self) -> str:
        """
        What is on the screen.
        """
        return self._do("capture-pane", "-p")

    @property
    def coloured(self) -> str:
        """
        The same with the escape sequences of its colours.
        """
        return self._do("capture-pane", "-p", "-e")

    @property
    def restored(self) -> bool:
        """
        Whether the screen is that of the shell again, with its cursor.
        """
        return self._do("display", "-p", "#{alternate_on} #{cursor_flag}").split() == ["0", "1"]

    def rows(self) -> list[list[str]]:
        """
        The words of the rows of the table.
        """
        lines = self.text.splitlines()
        start = next((n for n, line in enumerate(lines) if line.startswith("PID ")), len(lines))
        return [line.split() for line in lines[start + 1 : -1] if line.startswith("<")]

    def drawn(self, rows: int) -> list[str]:
        """
        The lines of the screen once it is drawn from the first to the last of its *rows*.
        """

        def whole() -> list[str]:
            lines = self.text.splitlines()
            done = len(lines) == rows and lines[0].startswith("nonode@") and FOOTER in lines[-1]
            return lines if done and any(line.startswith("PID ") for line in lines) else []

        return wait_until(whole, "a whole screen")

    def until(self, holds: Callable[[], object]) -> None:
        """
        Wait until the screen is as it is to be.
        """
        try:
            wait_until(holds, "that")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.text}") from None


@pytest.fixture(scope="module")
def moving() -> Iterator[beams_run.Beam]:
    """
    A stock VM that runs ``moving.erl``, with one long mailbox.
    """
    beams_run.require(os.geteuid() == 0, "reading another process's memory takes root")
    with beams_run.start_beam("stock25", "-s", "moving") as beam:
        beam.expect("ready")
        assert beam.ask(f"fill moving_deaf {PLANTED}") == f"done fill {PLANTED}"
        yield beam


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """
    A terminal of 80 columns.
    """
    beams_run.require(shutil.which("tmux"), "tmux is not installed")
    made = Terminal(tmp_path)
    yield made
    made.close()


#: Says how the command before has ended, and whether the terminal has lines and echo.
_STATE = "echo status=$? $(stty -a | tr ' ;' '\\n\\n' | grep -xE -e '-?(icanon|echo)')"


def ended(terminal: Terminal) -> int:
    """
    The status with which a command has ended, as the shell has it; the terminal is as it was.
    """
    terminal.until(lambda: terminal.restored and terminal.text.rstrip().endswith("\nready>"))
    terminal.keys("-l", _STATE)
    terminal.keys("Enter")
    said = re.compile(r"^status=(\d+) ?(.*)$", re.MULTILINE)
    terminal.until(lambda: said.search(terminal.text))
    status, modes = said.search(terminal.text).groups()
    assert modes.split() == ["icanon", "echo"]
    return int(status)


def test_figures_are_whole_at_every_size(moving: beams_run.Beam, terminal: Terminal):
    """
    Resized from wide to narrow and back, names are cut, and no figure of table or heading is.
    """
    terminal.resize(200, 50)
    terminal.top(moving.pid, "--sort", "mailbox", "--interval", "0.3")
    for cells, rows in ((120, 40), (80, 24), (60, 20), (20, 16), (200, 50)):
        terminal.resize(cells, rows)
        lines = terminal.drawn(rows)
        start = next(n for n, line in enumerate(lines) if line.startswith("PID "))
        heading, table = " ".join(lines[:start]), [line.split() for line in lines[start + 1 : -1]]
        assert max(map(width, lines)) <= cells
        assert f"pid {moving.pid}" in heading
        assert all(re.fullmatch(r"<\d+\.\d+\.\d+>", row[0]) for row in table)
        assert SHOWN in table[0]
        if cells > 20:
            assert f"mailbox {SHOWN} of {table[0][0]} moving_deaf" in heading
            assert re.search(r"schedulers \d+% of 2 .*processes [\d,]+/262,144 ", heading)
            assert all(re.search(r" (\S+ ~?[\d.]+[kM]? [\d.]+k?)", " ".join(row)) for row in table)
        if cells > 80:
            assert "moving:deaf/0" in table[0]
    terminal.keys("q")
    assert ended(terminal) == 0


def column(terminal: Terminal, index: int) -> list[str]:
    """
    One word of each row.
    """
    return [row[index] for row in terminal.rows()]


def by(terminal: Terminal, text: str) -> Callable[[], bool]:
    """
    Whether the heading says that the table is sorted so.
    """
    return lambda: f"by {text}, " in terminal.text


def selected(terminal: Terminal) -> str | None:
    """
    The pid in the row that is drawn in reverse from its first character on.
    """
    reverse = False
    for line in terminal.coloured.splitlines():
        for number, part in enumerate(re.split(r"(\x1b\[[\d;]*m)", line)):
            if number % 2:
                codes = part[2:-1].split(";")
                reverse = "7" in codes or (reverse and "0" not in codes and codes != [""])
            elif reverse and part.startswith("<"):
                return part.split()[0]
    return None


def press(terminal: Terminal, key: str, holds: Callable[[], object]) -> None:
    """
    Press a key, and wait for what it does.
    """
    terminal.keys(key)
    terminal.until(holds)


def test_every_key_does_what_the_help_says(moving: beams_run.Beam, terminal: Terminal):
    """
    Each key of the help is pressed, and its effect is on the screen.
    """
    pressed = set()
    terminal.top(moving.pid, "--interval", "0.3")

    def key(name: str, holds: Callable[[], object], pressing: str | None = None) -> None:
        press(terminal, pressing or name, holds)
        pressed.add(name)

    key("?", lambda: all(text.split(";")[0] in terminal.text for _, text in HELP))
    press(terminal, "?", terminal.rows)
    key("Space", lambda: "paused at" in terminal.text, "Space")
    paused = terminal.rows()
    first = [row[0] for row in paused]
    assert selected(terminal) == first[0]
    key("Up Down", lambda: selected(terminal) == first[1], "Down")
    press(terminal, "Up", lambda: selected(terminal) == first[0])
    key("PgUp PgDn", lambda: terminal.rows()[0][0] not in first, "PageDown")
    press(terminal, "PageUp", lambda: terminal.rows()[0][0] == first[0])
    key("Home End", lambda: selected(terminal) == column(terminal, 0)[-1] != first[-1], "End")
    press(terminal, "Home", lambda: selected(terminal) == first[0])
    assert terminal.rows()[0][:3] == paused[0][:3]
    press(terminal, "Space", lambda: "paused at" not in terminal.text)
    key("1-5", by(terminal, "mailbox"), "3")
    terminal.until(lambda: terminal.rows()[0][1] == "moving_deaf")
    deaf = terminal.rows()[0][0]
    press(terminal, "9", lambda: "1 to 5 sort" in terminal.text)
    key("r", by(terminal, "mailbox, least first".removesuffix(", least first")), "r")
    terminal.until(lambda: "by mailbox, least first" in terminal.text)
    press(terminal, "2", by(terminal, "memory"))
    press(terminal, "4", lambda: "GC/S" in terminal.text)
    press(terminal, "5", lambda: terminal.rows()[0][0] == "<0.0.0>")
    key("< >", by(terminal, "gc"), "<")
    press(terminal, ">", by(terminal, "pid"))
    key("/", lambda: "filter:" in terminal.text)
    terminal.keys("-l", "DEA")
    press(terminal, "Enter", lambda: column(terminal, 0) == [deaf])
    terminal.until(lambda: "filter DEA: 1" in terminal.text)
    key("Enter", lambda: "mailbox       1,534 messages" in details(terminal), "Enter")
    assert "moving:deaf/0" in details(terminal)
    key("Esc", lambda: column(terminal, 0) == [deaf], "BSpace")
    press(terminal, "Escape", lambda: len(terminal.rows()) > 5)
    assert terminal.text.splitlines()[1].startswith("check: ")
    key("c", lambda: " no hooks, " in terminal.text)
    press(terminal, "Escape", lambda: len(terminal.rows()) > 5)
    key("q", lambda: terminal.restored)
    assert pressed == {keys for keys, _ in HELP}


def details(terminal: Terminal) -> str:
    """
    The page of a process, scrolled through to its end.
    """
    if "Esc back" not in terminal.text:
        return ""
    top = terminal.text
    terminal.keys("End")
    return top + terminal.text


def test_a_stopped_vm_is_shown_like_any_other(moving: beams_run.Beam, terminal: Terminal):
    """
    The heading says so in red, the table is there, and colours go with NO_COLOR.
    """
    os.kill(moving.pid, signal.SIGSTOP)
    try:
        terminal.top(moving.pid, "--sort", "mailbox")
        assert "schedulers stopped" in terminal.text
        assert "The VM is stopped" in terminal.text
        assert terminal.rows()[0][1] == "moving_deaf"
        assert "\x1b[31m" in terminal.coloured or ";31m" in terminal.coloured
        press(terminal, "q", lambda: terminal.restored)
        terminal.top(moving.pid, NO_COLOR="1")
        assert not re.search(r"\x1b\[[\d;]*3[0-7]m", terminal.coloured)
        press(terminal, "q", lambda: terminal.restored)
    finally:
        os.kill(moving.pid, signal.SIGCONT)


def running(pid: int) -> int:
    """
    The pid of the ``top`` that watches a VM.
    """
    words = ["pgrep", "-f", f"^{sys.executable} .*top --pid {pid}"]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_gives_the_terminal_back(
    moving: beams_run.Beam, terminal: Terminal, number: signal.Signals
):
    """
    The status is the shell's for that signal, and screen, cursor, lines and echo are as before.
    """
    terminal.top(moving.pid)
    os.kill(running(moving.pid), number)
    assert ended(terminal) == 128 + number


def test_it_stops_and_goes_on(moving: beams_run.Beam, terminal: Terminal):
    """
    By Ctrl-Z the shell has the terminal, and by ``fg`` the table is back.
    """
    terminal.top(moving.pid)
    press(terminal, "C-z", lambda: "Stopped" in terminal.text)
    assert ended(terminal) == 128 + signal.SIGTSTP
    terminal.run("fg")
    terminal.until(lambda: terminal.rows() and FOOTER in terminal.text)
    terminal.keys("q")
    assert ended(terminal) == 0


def test_a_vm_that_ends_leaves_one_line(terminal: Terminal):
    """
    The terminal is given back, and the line says what became of the VM.
    """
    with beams_run.planted("stock25") as beam:
        terminal.top(beam.pid)
        os.kill(beam.pid, signal.SIGKILL)
        said = f"scope-trace: process {beam.pid} ended while it was watched"
        terminal.until(lambda: said in terminal.text)
        assert ended(terminal) == 9


def test_a_mistake_of_ours_leaves_the_terminal_as_it_was(terminal: Terminal):
    """
    An exception passes, and is readable behind it.
    """
    code = (
        "from scope_ebpf.screen.terminal import Terminal\nwith Terminal() as t:\n t.draw([])\n 1/0"
    )
    terminal.run(sys.executable, "-c", f"exec({code!r})")
    terminal.until(lambda: "ZeroDivisionError" in terminal.text and terminal.restored)


def test_a_dumb_terminal_gets_plain_tables(moving: beams_run.Beam):
    """
    One after the other, as wide as the terminal, without an escape sequence.
    """
    ours, theirs = pty.openpty()
    words = [*SCOPE_TRACE, "top", "--pid", str(moving.pid), "--limit", "3", "--interval", "0.2"]
    environment = os.environ | {"TERM": "dumb"}
    top = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    try:
        while seen.count(b"IN FUNCTION") < 2:
            seen += os.read(ours, 4096)
    finally:
        top.send_signal(signal.SIGINT)
        top.wait()
        os.close(ours)
    assert b"\x1b" not in seen
    assert max(map(len, seen.decode().splitlines())) <= 80


def test_into_a_pipe_come_tables_or_lines_until_it_is_closed(moving: beams_run.Beam):
    """
    Text and JSON lines, each a whole document; a reader that goes is no error.
    """
    words = [*SCOPE_TRACE, "top", "--pid", str(moving.pid), "--limit", "2", "--interval", "0.2"]
    by_mail = ("--sort", "mailbox", "--format", "jsonl")
    with subprocess.Popen([*words, *by_mail], stdout=subprocess.PIPE, text=True) as top:
        assert top.stdout is not None
        lines = [documents.load(top.stdout.readline()) for _ in range(2)]
        top.stdout.close()
        assert top.wait() == 0
    for line in lines:
        assert [PLANTED, 39] == [one["message_queue_len"] for one in line["processes"]]
        assert line["vm"]["process_limit"] == 262144
    assert lines[0]["processes"][0]["reductions_per_second"] is None
    assert lines[1]["processes"][0]["reductions_per_second"] == 0
    once = scope_trace("top", "--pid", str(moving.pid), "--once", "--interval", "0.2")
    assert "\x1b" not in once.output
    assert f"mailbox {SHOWN} of" in once.output
