# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from scope_ebpf.attach.plan import DEFAULT_EVENTS, EVENTS
from scope_ebpf.beam.vm import discover
from scope_ebpf.cli import main as cli
from scope_ebpf.cli import options
from scope_ebpf.errors import HostError, NotRootError, OutputError, ScopeError, UsageError
from scope_ebpf.kernel import host

ABSENT = 2**22 + 1  # above the highest pid that Linux gives


def ended(*words: str) -> int:
    """
    The code with which argparse ends the program.
    """
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    return end.value.code


@pytest.mark.parametrize("words", [["--help"], ["-h"], []])
def test_help_lists_every_command(words: list[str], capsys: pytest.CaptureFixture):
    """
    The help, which is also what comes without any word, lists every command with what it does.
    """
    assert 0 == ended(*words)
    said = " ".join(capsys.readouterr().out.split())
    assert [] == [name for name, does in cli.COMMANDS.items() if f"{name} {does}" not in said]
    assert "commands: COMMAND trace " in said


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture):
    """
    Each command's own help begins with its usage and says what it does.
    """
    assert 0 == ended(command, "--help")
    said = capsys.readouterr().out
    does = cli.COMMANDS[command]
    assert said.startswith("usage: scope-trace")
    assert f"{does[0].upper()}{does[1:]}." in " ".join(said.split())


def test_a_word_too_many_is_not_called_an_option(capsys: pytest.CaptureFixture):
    """
    ``list`` takes no TARGET, and says so of a word that is no option.
    """
    assert 2 == ended("list", "4711")
    assert "error: 4711 is one word too many" in capsys.readouterr().err


def test_help_of_a_trace_lists_every_event(capsys: pytest.CaptureFixture):
    """
    All names of events are in the help.
    """
    ended("--pid", "1", "--help")
    said = capsys.readouterr().out
    assert [] == [event for event in EVENTS if event not in said]


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture):
    """
    --version says the version that is installed.
    """
    assert 0 == ended("--version")
    assert f"scope-trace {importlib.metadata.version('scope-ebpf')}\n" == capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["--pid"],
        ["--pid", "1", "--duration", "-1"],
        ["--pid", "1", "--duration", "soon"],
        ["--pid", "1", "--duration", "nan"],
        ["--pid", "1", "--duration", "inf"],
        ["--pid", "1", "--slow-call", "-3"],
        ["--pid", "1", "--ring", "3"],
        ["--pid", "1", "--ring", "0"],
        ["--pid", "1", "--ring", "2048"],
        ["--pid", "1", "--format", "xml"],
        ["--pid", "1", "--via", "chance"],
        ["--pid", "1", "--no-such-option"],
        ["export", "x.scope", "--to", "perfetto", "--processes", "-5"],
        ["export", "x.scope", "--to", "otlp", "--endpoint", ""],
        ["export", "x.scope", "--to", "otlp", "--endpoint", "ftp://localhost"],
        ["--duration", "2x", "--pid", "1"],
        ["top", "--interval", "0"],
        ["schedulers", "--interval", "-1"],
        ["schedulers", "--count", "0"],
        ["calls", "lists:map/2", "--limit", "-1"],
        ["run", "probe.c", "--max-events", "many"],
    ],
)
def test_a_word_that_makes_no_sense_ends_with_usage(
    words: list[str], capsys: pytest.CaptureFixture
):
    """
    A number that is none, an option that is none: usage and one line, exit code 2.
    """
    assert 2 == ended(*words)
    said = capsys.readouterr()
    last = said.err.splitlines()[-1]
    assert ("", True) == (said.out, ": error: " in last)
    assert "Traceback" not in said.err


def test_an_unknown_event_is_named_with_those_there_are():
    """
    An event that does not exist is named, and so are all that do.
    """
    with pytest.raises(UsageError) as error:
        options.parse_events("spawn,telepathy,exit")
    assert f"no such event: telepathy; there are: all, {', '.join(EVENTS)}" == str(error.value)


@pytest.mark.parametrize("text", ["", ",", " , "])
def test_a_list_without_events_is_refused(text: str):
    """
    A list in which no event is left is a mistake, not a trace of nothing.
    """
    with pytest.raises(UsageError, match=r"^no such event: \(none given\)"):
        options.parse_events(text)


def test_events_are_what_was_asked_for():
    """
    A list, all of them, or the default ones.
    """
    assert ("gc", "spawn") == options.parse_events("gc, spawn,")
    assert EVENTS == options.parse_events("all")
    assert DEFAULT_EVENTS == options.parse_events(None)


def test_a_duration_of_zero_has_no_end():
    """
    0 seconds mean as long as Ctrl-C lets it.
    """
    assert (None, 2.5) == (options.duration("0"), options.duration("2.5"))


def test_the_ring_is_a_power_of_two():
    """
    The ring is as many megabytes as the kernel allows: a power of two, 1 to 1024.
    """
    taken = []
    for n in range(2050):
        try:
            taken.append(options.ring_megabytes(str(n)))
        except ValueError:
            continue
    assert [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024] == taken


@pytest.fixture
def good_host(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(host, "require", lambda: None)


@pytest.mark.parametrize("pid", [ABSENT, 0, 1 << 31, 1 << 64])
def test_a_pid_that_is_not_there_has_its_line_and_code(
    pid: int, good_host: None, capsys: pytest.CaptureFixture
):
    """
    A pid that does not exist, or cannot, is said in one line, with exit code 3.
    """
    assert 3 == cli.main(["--pid", str(pid)])
    assert ("", f"scope-trace: there is no process {pid}\n") == capsys.readouterr()


#: Where a time is an option, with a command line that is right but for it.
TIMES = [
    ("-d", []),
    ("--duration", ["record"]),
    ("-d", ["profile"]),
    ("-d", ["calls", "lists:map/2"]),
    ("-d", ["run", "probe.c"]),
    ("--stall", ["record"]),
    ("--slow-call", []),
    ("-i", ["top"]),
    ("--interval", ["schedulers"]),
]
NO_TIME = 'a time is written like "10s", "500ms", "1m" or "2h"'


@pytest.mark.parametrize(("option", "words"), TIMES)
@pytest.mark.parametrize("text", ["-1", "nan", "inf", "soon", "2 s 3", "1d", "1,5", "1e3"])
def test_a_time_that_is_none_has_one_error_text(
    option: str, words: list[str], text: str, capsys: pytest.CaptureFixture
):
    """
    Wherever a time is an option, nonsense is refused with the forms that a time has.
    """
    given = f"{option}={text}" if option.startswith("--") else f"{option}{text}"
    assert 2 == ended(*words, given)
    assert f"{text!r}: {NO_TIME}" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "words"), TIMES)
@pytest.mark.parametrize(("text", "expected"), [("2s", 2.0), ("500ms", 0.5), ("1m", 60.0)])
def test_a_time_has_one_parser(option: str, words: list[str], text: str, expected: float):
    """
    A time with its unit means the same to each option of each command.
    """
    arguments = vars(cli.parsed([*words, option, text]))
    name = {"-d": "duration", "-i": "interval"}.get(option, option.strip("-").replace("-", "_"))
    assert expected * (1000 if name == "slow_call" else 1) == arguments[name]


@pytest.mark.parametrize(
    "words", [["--budget", "none", "--no-hooks"], ["--no-hooks", "--budget=1"]]
)
def test_a_budget_for_hooks_and_no_hooks_exclude_each_other(
    words: list[str], capsys: pytest.CaptureFixture
):
    """
    Whichever comes last: neither option overrides the other in silence.
    """
    assert 2 == ended("genservers", "1", *words)
    assert "not allowed with argument" in capsys.readouterr().err
    assert cli.parsed(["genservers", "1", "--no-hooks"]).budget is None
    assert 0.01 == cli.parsed(["genservers", "1"]).budget


@pytest.fixture
def no_vms(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(discover, "beams", list)


def said_of(words: list[str], capsys: pytest.CaptureFixture) -> str:
    """
    What a command line that is wrong prints; its exit code is 2.
    """
    try:
        code = cli.main(words)
    except SystemExit as end:
        code = end.code
    assert 2 == code
    return capsys.readouterr().err


@pytest.mark.parametrize("words", [["tpo"], ["tpo", "--sort", "mailbox"], ["tpo", "--pid", "1"]])
def test_a_mistyped_command_is_called_that(
    words: list[str], good_host: None, no_vms: None, capsys: pytest.CaptureFixture
):
    """
    A first word that is no command: the message says so and suggests one, whatever follows.
    """
    said = said_of(words, capsys)
    assert re.search(r"no such command( or VM)?: 'tpo'; did you mean top\?", said)


def test_a_word_that_is_like_nothing_leads_to_the_lists(
    good_host: None, no_vms: None, capsys: pytest.CaptureFixture
):
    """
    A first word that is like no command and no VM: where commands and VMs are listed.
    """
    first, commands, vms = said_of(["bogus"], capsys).splitlines()
    assert "scope-trace: no such command or VM: 'bogus'" == first
    assert "scope-trace --help" in commands
    assert "no Erlang or Elixir VM runs on this host" in vms


#: Misspelt commands and options, and what was meant.
MISSPELT = [
    (["scedulers"], "schedulers"),
    (["recrod"], "record"),
    (["profle"], "profile"),
    (["lst"], "list"),
    (["docter"], "doctor"),
    (["exprot"], "export"),
    (["--durtion", "5"], "--duration"),
    (["--fromat", "json"], "--format"),
    (["top", "--intervall", "1"], "--interval"),
    (["record", "--max-sise", "1M"], "--max-size"),
]


@pytest.mark.parametrize(("words", "meant"), MISSPELT)
def test_a_misspelt_word_leads_to_the_right_one(
    words: list[str], meant: str, good_host: None, no_vms: None, capsys: pytest.CaptureFixture
):
    """
    The error for a misspelt command or option suggests the one that was meant.
    """
    assert f"did you mean {meant}" in said_of(words, capsys)


def test_an_unknown_event_has_its_code(good_host: None, capsys: pytest.CaptureFixture):
    """
    An unknown event ends with exit code 2, before the target is looked at.
    """
    assert 2 == cli.main(["--pid", str(ABSENT), "--events", "telepathy"])
    assert capsys.readouterr().err.startswith("scope-trace: no such event: telepathy; there are")


@pytest.mark.parametrize("words", [(), ("--ring", "64MB", "--events", "send,receive")])
def test_a_stall_without_its_event_or_ring_is_an_error_of_usage(
    words: tuple[str, ...], good_host: None, capsys: pytest.CaptureFixture
):
    """
    Without a ring there is no file to write, without schedules a VM seems silent for ever.
    """
    assert UsageError.exit_code == cli.main(
        ["record", "--pid", str(ABSENT), "--stall", "1", *words]
    )
    assert capsys.readouterr().err.startswith("scope-trace: --stall needs the event schedule")


def test_a_process_that_is_no_beam_has_its_line_and_code(
    good_host: None, capsys: pytest.CaptureFixture
):
    """
    A process that runs something else is said by its program, with exit code 4.
    """
    assert 4 == cli.main(["--pid", str(os.getpid())])
    exe = os.readlink("/proc/self/exe")  # noqa: PTH115
    expected = f"scope-trace: process {os.getpid()} runs {exe}, which is no BEAM\n"
    assert ("", expected) == capsys.readouterr()


def test_without_privileges_a_trace_ends_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """
    Without root nothing is looked at: one line, exit code 5.
    """
    monkeypatch.setattr(host, "capabilities", lambda *_: 0)
    assert 5 == cli.main(["--pid", str(os.getpid())])
    expected = "scope-trace: attaching BPF programs needs root: run the same with sudo\n"
    assert ("", expected) == capsys.readouterr()


class Command:
    """
    A command whose run does what it is given.
    """

    def __init__(self, run) -> None:
        self._run = run

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        pass

    def run(self, arguments: argparse.Namespace) -> int:
        return self._run()


def raising(error: BaseException):
    def run() -> int:
        raise error

    return run


@pytest.mark.parametrize("error", [NotRootError("a"), OutputError("b"), HostError("c")])
def test_an_error_is_one_line_without_a_traceback(
    error: ScopeError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """
    Every error of ours becomes one line on stderr and its own exit code.
    """
    monkeypatch.setattr(cli.importlib, "import_module", lambda _: Command(raising(error)))
    assert error.exit_code == cli.main(["list"])
    assert ("", f"scope-trace: {error}\n") == capsys.readouterr()


def test_a_name_in_a_message_cannot_write_to_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """
    A file or node that has an escape sequence or a newline for a name does not print it.
    """
    error = HostError("process 1 runs /tmp/\x1b[2J\nx")
    monkeypatch.setattr(cli.importlib, "import_module", lambda _: Command(raising(error)))
    cli.main(["list"])
    assert "scope-trace: process 1 runs /tmp/?[2J?x\n" == capsys.readouterr().err


def test_ctrl_c_before_the_trace_ends_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """
    Ctrl-C while nothing is traced yet ends as a shell expects it, without a traceback.
    """
    monkeypatch.setattr(
        cli.importlib, "import_module", lambda _: Command(raising(KeyboardInterrupt()))
    )
    assert 130 == cli.main(["list"])
    assert ("", "") == capsys.readouterr()


def test_a_bug_is_told_with_its_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """
    What is not an error of ours is not swallowed, and its text may be of a VM's making.
    """
    error = LookupError("\x1b[2J\nx")
    monkeypatch.setattr(cli.importlib, "import_module", lambda _: Command(raising(error)))
    assert 70 == cli.main(["list"])
    first, *frames = capsys.readouterr().err.splitlines()
    assert "scope-trace: a mistake of ours, LookupError: ?[2J?x. Traceback:" == first
    assert frames[-1].endswith(" run")


@pytest.mark.parametrize(
    ("words", "budget"),
    [
        ([], None),
        (["--budget", "1%"], 0.01),
        (["--budget", "0.5"], 0.005),
        (["--budget", "100%"], 1.0),
        (["--budget", "none"], options.COUNT_ALL),
        (["--exact"], options.COUNT_ALL),
    ],
)
def test_a_budget_is_a_share_of_the_cpu(words: list[str], budget: float | None):
    """
    A budget is given in percent, with its sign or without; none and --exact are the same.
    """
    parser = argparse.ArgumentParser()
    options.add_budget(parser)
    assert budget == parser.parse_args(words).budget


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--budget", "2%", "--exact"], "argument --exact: not with --budget, which says"),
        (["--exact", "--budget", "2%"], "argument --budget: not with --exact, which says"),
        (["--exact", "--budget", "none"], None),
        (["--exact", "--exact"], None),
        (["--budget", "2%", "--budget", "3%"], None),
        (["--once", "-n", "5"], "argument -n/--count: not with --once, which says"),
        (["-n", "5", "--once"], "argument --once: not with --count, which says"),
        (["-n", "1", "--once"], None),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    words: list[str], said: str | None, capsys: pytest.CaptureFixture[str]
):
    """
    Two options that set the same to different values are an error, not a silent choice.
    """
    parser = argparse.ArgumentParser()
    options.add_budget(parser)
    options.add_once(parser)
    options.add_count(parser, "tables")
    if said is None:
        parser.parse_args(words)
        return
    with pytest.raises(SystemExit):
        parser.parse_args(words)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("words", "tables"), [(["-n", "3"], 3), (["--once"], 1)])
def test_top_ends_after_so_many_tables(
    words: list[str], tables: int, monkeypatch: pytest.MonkeyPatch
):
    """
    top -n prints that many tables and ends, as schedulers and links do.
    """
    from scope_ebpf.cli import top

    shown = []
    monkeypatch.setattr(top, "target_of", lambda _: None)
    monkeypatch.setattr(top, "_turns", lambda *_: ((number, []) for number in range(9)))
    monkeypatch.setattr(top, "_print_text", lambda _target, view, *_: shown.append(view))
    assert 0 == cli.main(["top", "7", *words])
    assert list(range(tables)) == shown


@pytest.mark.parametrize("text", ["0", "0%", "-1%", "101%", "nan", "inf", "much", "", "1%%"])
@pytest.mark.parametrize("option", ["--budget", "--max-cost"])
def test_a_share_that_is_none_is_refused(
    option: str, text: str, capsys: pytest.CaptureFixture[str]
):
    """
    A share of nothing, of more than all, or of nonsense is refused before anything is looked at.
    """
    assert 2 == ended("--pid", "1", f"{option}={text}")
    said = " ".join(capsys.readouterr().err.split())
    assert "wanted is a share of the VM's CPU such as 1%, more than 0% and 100% at most" in said


def test_a_cost_of_all_is_no_bound():
    """
    --max-cost 100% lets a run cost what it likes.
    """
    parser = argparse.ArgumentParser()
    options.add_max_cost(parser)
    assert 0.2 == parser.parse_args([]).max_cost
    assert 0.05 == parser.parse_args(["--max-cost", "5%"]).max_cost
    assert parser.parse_args(["--max-cost", "100%"]).max_cost is None


def test_a_table_whose_reader_has_gone_is_no_failure(monkeypatch: pytest.MonkeyPatch):
    """
    rich ends the program with 1 where a pipe is closed; that a reader has read enough is a 0.
    """

    def run(_arguments: argparse.Namespace) -> int:
        try:
            os.write(closed, b"a table")
        except BrokenPipeError:
            raise SystemExit(1)  # noqa: B904 - as rich does it
        return 0

    reader, closed = os.pipe()
    os.close(reader)

    monkeypatch.setattr(cli, "parsed", lambda _, **__: SimpleNamespace(run=run))
    assert 0 == cli.main(["list"])
    os.close(closed)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["7", "1s", "--interval", "2s"], "--interval is given twice: 1s"),
        (["7", "1s", "3", "-n", "4"], "--count is given twice: 3"),
        (["7", "soon"], "behind TARGET are INTERVAL and COUNT, such as 1s 10: 'soon': a time is"),
        (["7", "1s", "few"], "behind TARGET are INTERVAL and COUNT, such as 1s 10: 'few' is no"),
        (["7", "-n", "3"], "--count is of summaries: say with --interval"),
        (["7", "1s", "--stream"], "--stream has a line for each event"),
        (["7", "1s", "--exact"], "--interval has summaries within a --budget"),
        (["7", "1s", "2", "3"], "wanted is [TARGET] [INTERVAL [COUNT]], not: 1s 2 3"),
    ],
)
def test_words_of_an_interval_that_make_no_sense_are_refused(
    words: list[str], said: str, good_host: None, capsys: pytest.CaptureFixture
):
    """
    Interval and count stand behind TARGET or are options, and do not go with what streams.
    """
    assert 2 == cli.main(words)
    assert capsys.readouterr().err.startswith(f"scope-trace: {said}")


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_a_command_without_standard_streams_ends_with_its_code(closed: str):
    """
    Python has None in the place of a stream that the process was started without.
    """
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c"]
    done = subprocess.run([*command, "from scope_ebpf.cli import main; main._leave(23)"])
    assert 23 == done.returncode


def test_what_exit_functions_print_is_there():
    """
    They are called before the output is written out.
    """
    script = "import atexit; from scope_ebpf.cli import main; atexit.register(print, 'end'); "
    done = subprocess.run(
        [sys.executable, "-c", script + "main._leave(23)"], capture_output=True, text=True
    )
    assert (23, "end\n", "") == (done.returncode, done.stdout, done.stderr)


def test_no_command_starts_threads_for_linear_algebra():
    """
    Whichever imports numpy: its library starts one for each CPU.
    """
    script = (
        "import os, sys; from scope_ebpf.cli import main; main.parser_of(sys.argv[1]); "
        "print(os.environ['OPENBLAS_NUM_THREADS'], len(os.listdir('/proc/self/task')))"
    )
    environment = {name: value for name, value in os.environ.items() if "OPENBLAS" not in name}
    for command in ("summary", "top"):
        done = subprocess.run(
            [sys.executable, "-c", script, command],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert ("1 1\n", "") == (done.stdout, done.stderr), command
