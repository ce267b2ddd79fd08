# SPDX-License-Identifier: Apache-2.0
"""
What distinguishes VMs in ``scope-trace list``.
"""

from __future__ import annotations

import argparse
import json
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from scope_ebpf.beam.vm.command import application_of, command_words, own_words
from scope_ebpf.cli import list_beams
from scope_ebpf.cli.list_beams import table
from scope_ebpf.cli.trouble import Health
from scope_ebpf.cli.vms import cpu_seconds
from scope_ebpf.errors import NoSuchProcessError, ReadRefusedError

if TYPE_CHECKING:
    from pathlib import Path

ERL = "/usr/lib/erlang/erts-13.1.5/bin/beam.smp -K true -- -root /usr/lib/erlang -bindir /usr/lib"
ERL = f"{ERL} -progname erl -- -home /root --"
RELEASE = "-boot /srv/shop/releases/0.1.0/start -boot_var RELEASE_LIB /srv/shop/lib"
ROW = {
    "pid": 4711,
    "node": "shop@localhost",
    "application": "shop 0.1.0",
    "cpu_share": 0.234,
    "resident_bytes": 98_100_000,
    "user": "shop",
    "uptime_seconds": 3723.0,
    "container": None,
    "otp_release": "25",
    "flavor": "jit",
    "hooks": "symbols",
    "command": "-noshell -mode embedded -config /srv/shop/releases/0.1.0/sys",
}
OTHER = {
    **ROW,
    "pid": 23,
    "node": None,
    "application": None,
    "cpu_share": None,
    "container": "ab" * 32,
}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (RELEASE, "shop 0.1.0"),
        ("-noshell -config /opt/a/releases/1.2.3-rc.1/sys -s x", "a 1.2.3-rc.1"),
        ("-sname rabbit -s rabbit boot -noshell", "rabbit"),
        ("-noshell -s elixir start_cli -extra /usr/bin/mix run --no-halt", "mix run"),
        ("-noshell -s init stop", None),
        ("-noshell", None),
        ("-s", None),
        ("", None),
    ],
)
def test_a_vm_is_known_by_what_it_was_started_for(words: str, expected: str | None):
    """
    A release by its boot file, a started module, a script; nothing is made up.
    """
    assert expected == application_of(f"{ERL} {words}".split())


def test_the_command_is_without_what_erl_adds_and_without_the_cookie():
    """
    What a person has typed is left, and the cookie, which is a password, is not.
    """
    words = f"{ERL} -noshell -setcookie swordfish -s shop".split()
    assert ["-noshell", "-setcookie", "***", "-s", "shop"] == own_words(words)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("-setcookie shop@host swordfish -s shop", "-setcookie *** *** -s shop"),
        ("-setcookie a swordfish -setcookie b", "-setcookie *** *** -setcookie ***"),
        ("-setcookie swordfish +S 2", "-setcookie *** +S 2"),
        ("-setcookie -odd", "-setcookie ***"),
        ("-setcookie", "-setcookie"),
    ],
)
def test_the_cookie_of_one_node_is_left_out_as_well(words: str, expected: str):
    """
    The option may name a node before the cookie; the options behind it are still there.
    """
    assert expected.split() == own_words(f"{ERL} {words}".split())


def test_a_command_line_that_cannot_be_read_has_no_words(tmp_path: Path):
    """
    A process that has gone and a status that makes no sense have no command line.
    """
    assert [] == command_words(tmp_path, None)
    (tmp_path / "stat").write_text("1 (beam) R 1 2 3")
    assert [] == command_words(tmp_path, None)


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
def test_the_table_fits_and_constants_go_first(width: int):
    """
    At any width PID and node are there, and the release of OTP only if everything before it is.
    """
    lines = table([ROW, OTHER], width)
    heading = lines[0].split()
    assert max(map(len, lines)) <= width
    assert ["PID", "NODE"] == heading[:2]
    order = ["PID", "NODE", "APPLICATION", "CPU%", "MEM", "USER", "UP", "CONTAINER", "COMMAND"]
    order += ["OTP", "VM", "HOOKS"]
    assert set(heading) == set(order[: len(heading)])
    assert all(line.split()[0] in ("PID", "4711", "23") for line in lines)


def test_the_table_is_this_text():
    """
    Figures have units for people, a container its short id, what is not known a dash.
    """
    assert [
        " PID  NODE            APPLICATION  CPU%  MEM  USER     UP  CONTAINER",
        "4711  shop@localhost  shop 0.1.0     23  98M  shop  1h 2m  -",
        "  23  -               -               -  98M  shop  1h 2m  abababababab",
    ] == table([ROW, OTHER], 72)


def test_a_column_without_a_value_takes_no_room():
    """
    Where no VM runs in a container, there is no such column.
    """
    assert "CONTAINER" not in table([ROW], 200)[0]
    assert "COMMAND" in table([ROW], 80)[0]


def test_names_of_a_stranger_cannot_write_to_the_terminal():
    """
    Escape sequences in a command line are no characters of a table, and it stays within its width.
    """
    hostile = {
        **ROW,
        "command": "\x1b[2J\n" * 40,
        "application": "\x1b]0;x\x07",
        "node": "a\nb" * 80,
    }
    lines = table([hostile], 100)
    assert len(lines) == 2
    assert all(line.isprintable() and len(line) <= 100 for line in lines)


def test_cpu_time_is_that_of_the_process():
    """
    Our own CPU time is what the kernel says elsewhere, and a process that has gone has none.
    """
    before = sum(os.times()[:2])
    found = cpu_seconds(os.getpid())
    assert before - 0.02 <= found <= sum(os.times()[:2]) + 0.02
    assert cpu_seconds(2**22 + 1) is None


@pytest.mark.parametrize(
    ("error", "said"),
    [(NoSuchProcessError("process 5 has ended"), ""), (ReadRefusedError("torn"), "torn")],
)
def test_a_vm_that_ends_meanwhile_ends_no_list(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """
    A VM that has ended since it was found is left out, one that cannot be read has its reason.
    """
    found = [SimpleNamespace(pid=4711), SimpleNamespace(pid=5)]

    def row(target: SimpleNamespace, _marks: object) -> dict[str, object]:
        if target.pid == 5:
            raise error
        return ROW

    monkeypatch.setattr(list_beams, "Beam", SimpleNamespace)
    monkeypatch.setattr(list_beams, "beams", lambda: found)
    monkeypatch.setattr(list_beams, "health", lambda vms: [Health(None, None, None) for _ in vms])
    monkeypatch.setattr(list_beams, "marks_of", lambda *_: None)
    monkeypatch.setattr(list_beams, "_row", row)
    assert 0 == list_beams.run(argparse.Namespace(format="text", libraries=False))
    printed = capsys.readouterr()
    assert "4711" in printed.out
    assert said in printed.err
    assert bool(said) == bool(printed.err)


@pytest.mark.parametrize("format_", ["text", "json"])
def test_libraries_are_below_the_table_or_in_the_document(
    format_: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """
    Their text is the VM's; one that cannot be read has its reason beside its other troubles.
    """
    good = [{"name": "Phoenix", "version": "1.7\x1b[2J"}, {"name": "Ecto", "version": None}]
    hook = {"hook": "ets_lookup_2", "why": None}
    found = {4711: (good, hook, []), 5: (None, None, ["no modules"])}

    def libraries_of(target: SimpleNamespace) -> tuple:
        return found[target.pid]

    monkeypatch.setattr(list_beams, "Beam", SimpleNamespace)
    monkeypatch.setattr(list_beams, "beams", lambda: [SimpleNamespace(pid=pid) for pid in found])
    monkeypatch.setattr(list_beams, "health", lambda vms: [Health(refused="torn") for _ in vms])
    monkeypatch.setattr(list_beams, "marks_of", lambda *_: None)
    monkeypatch.setattr(list_beams, "_row", lambda target, _: {**ROW, "pid": target.pid})
    monkeypatch.setattr(list_beams, "libraries_of", libraries_of)
    assert 0 == list_beams.run(argparse.Namespace(format=format_, libraries=True))
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    if format_ == "json":
        first, second = json.loads(printed)["beams"]
        assert (good, hook, "torn") == tuple(
            first[k] for k in ("libraries", "telemetry", "refused")
        )
        assert (None, "torn; no modules") == (second["libraries"], second["refused"])
        return
    assert "4711: libraries: Phoenix 1.7" in printed
    assert ", Ecto\n4711: `scope-trace telemetry`: ets_lookup_2\n" in printed
    assert "5: Could not be looked at: torn; no modules\n" in printed
