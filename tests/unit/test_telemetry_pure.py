# SPDX-License-Identifier: Apache-2.0
"""
Specifications of telemetry events, their terms in a VM, and rows as results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from scope_ebpf import events
from scope_ebpf.beam.telemetry.encoding import Decoder, Encoder, other_row
from scope_ebpf.results.telemetry import Row, Telemetry, error_ratios, folded, judge
from scope_ebpf.runs.telemetry import row_of
from scope_ebpf.sinks.telemetry import lines
from scope_ebpf.telemetry import specs
from scope_ebpf.telemetry.specs import Spec, SpecError

if TYPE_CHECKING:
    from pathlib import Path

ATOM = 0x0B


class Table:
    """
    An atom table that can grow.
    """

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.searched: list[int] = []

    def __len__(self) -> int:
        return len(self.names)

    def indices(self, names: set[str], first: int = 0) -> dict[str, int]:
        self.searched.append(first)
        return {name: n for n, name in enumerate(self.names) if n >= first and name in names}

    def text_at(self, index: int) -> str:
        return self.names[index]


def test_the_shipped_specifications_are_good():
    """
    Every event of the package parses, and is there once.
    """
    found = {spec.name: spec for spec in specs.shipped()}
    assert len(found) >= 35
    assert ("conn", "status") == found["phoenix.endpoint.stop"].labels["status"]
    assert ("type", "ecto_sql_query") == found["*.query"].where


def test_a_user_adds_a_library_in_three_lines(tmp_path: Path):
    """
    A table of the config, which is taken instead of the package's for the same event.
    """
    config = tmp_path / "config.toml"
    config.write_text(
        'budget = "1%"\n[[telemetry.event]]\nevent = "oban.job.stop"\nlabels = { id = "job.id" }\n'
    )
    own = specs.of_config(config)
    assert [Spec(("oban", "job", "stop"), labels={"id": ("job", "id")})] == own
    merged = specs.merged(own, specs.shipped())
    assert 1 == sum(spec.name == "oban.job.stop" for spec in merged)
    assert len(specs.shipped()) == len(merged)


def test_a_config_that_is_missing_or_no_file_is_refused(tmp_path: Path):
    """
    The text says both, since either leaves nothing to read.
    """
    for path in (tmp_path, tmp_path / "missing.toml"):
        with pytest.raises(SpecError, match=r"there is no such file, or it is not a regular file"):
            specs.of_config(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("= 3", "is no TOML"),
        ("telemetry = 3", "[[telemetry.event]]"),
        ("[telemetry]\nevents = []", "nothing else"),
        ("[telemetry]\nevent = 3", "must be tables [[telemetry.event]]"),
        ("[[telemetry.event]]\nname = 'a'", "there is no key 'name'; the keys are classes, "),
        ("[[telemetry.event]]\nlabels = {}", "event must be"),
        ("[[telemetry.event]]\nevent = 'a.b.c.d.e.f.g.h.i'", "1 to 8 atoms"),
        ("[[telemetry.event]]\nevent = 'a.*'", "* stands for all atoms but the last"),
        ("[[telemetry.event]]\nevent = 'a'\nlabels = { A = 'b' }", "label 'A' must be of"),
        ("[[telemetry.event]]\nevent = 'a'\nlabels = { a = 'b.c.d.e.f' }", "1 to 4 keys"),
        ("[[telemetry.event]]\nevent = 'a'\nlabels = { a = '@.b' }", "@ is the last step"),
        ("[[telemetry.event]]\nevent = 'a'\nlabels = {a='a',b='b',c='c',d='d',e='e'}", "4 at most"),
        ("[[telemetry.event]]\nevent = 'a'\nnumbers = ['b','c','d','e']", "4 measurements at most"),
        ("[[telemetry.event]]\nevent = 'a'\nclasses = ['b']", "none of its labels"),
        ("[[telemetry.event]]\nevent = 'a'\nwhere = 'b'", "where must be"),
        ("[[telemetry.event]]\nevent = 'a.stop'\nwork = ['b']", "work: 'b' is none of its labels"),
        (
            "[[telemetry.event]]\nevent = 'a.b'\nlabels = {c='c'}\nwork = ['c']",
            "whose last atom is stop",
        ),
        ("[[telemetry.event]]\nevent = 'a'\n[[telemetry.event]]\nevent = 'a'", "twice"),
        ("[[telemetry.event]]\nevent = 'a'\n" * 257, "256 at most"),
    ],
)
def test_a_wrong_specification_is_refused(tmp_path: Path, text: str, said: str):
    """
    One line says which table is wrong, and what is expected.
    """
    config = tmp_path / "config.toml"
    config.write_text(text)
    with pytest.raises(SpecError) as caught:
        specs.of_config(config)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value).replace(text, "")


def test_a_config_that_is_none_is_refused(tmp_path: Path):
    """
    A file that is not there, a folder, and a file that is too large.
    """
    large = tmp_path / "large"
    large.write_text("#" * ((1 << 20) + 1))
    for path in (tmp_path, tmp_path / "none", large):
        with pytest.raises(SpecError):
            specs.of_config(path)


def test_atoms_may_come_later():
    """
    An event is specified once its atoms are there, again when those of its labels come.
    """
    spec = Spec(("app", "stop"), labels={"a": ("conn", "1"), "b": ("late", "@")})
    table = Table("false", "true", "app", "conn", "duration")
    encoder = Encoder([spec], table)
    assert [0] == [int(value["number"]) for _, value in encoder.update()]
    assert [] == list(encoder.update())
    table.names += ["stop"]
    ((key, value),) = encoder.update()
    assert [2, 5, 0] == key["atoms"][:3].tolist()
    assert 4 << 6 | ATOM == value["measure"][0]
    assert 3 << 6 | ATOM == value["path"][0]
    assert 1 << 4 | events.TELEMETRY_STEP_ELEMENT == value["path"][1]
    never = value["path"][events.TELEMETRY_STEPS]
    table.names += ["late"]
    ((_, value),) = encoder.update()
    assert 6 << 6 | ATOM == value["path"][events.TELEMETRY_STEPS] != never
    assert events.TELEMETRY_STEP_CLASS == value["path"][events.TELEMETRY_STEPS + 1]
    # Only what is new was searched.
    assert [0, 5, 6] == table.searched


def test_an_event_with_a_guard_waits_for_its_atoms():
    """
    Before that, no event can be meant.
    """
    table = Table("query", "total_time")
    encoder = Encoder([Spec(("*", "query"), where=("type", "ecto"))], table, everything=False)
    assert [] == list(encoder.update())
    table.names += ["type", "ecto"]
    ((key, value),) = encoder.update()
    assert [0xFFFFFFFF, 0, 0] == key["atoms"][:3].tolist()
    assert (2 << 6 | ATOM, 3 << 6 | ATOM) == (value["guard_key"], value["guard_value"])


def test_work_is_read_where_it_begins_and_ends_twice():
    """
    The event that ends in start has the labels that are work; stop and exception end it.
    """
    paths = {"route": ("route",), "status": ("conn", "status")}
    spec = Spec(("web", "stop"), labels=paths, work=("route",))
    table = Table("web", "start", "stop", "exception", "route", "conn", "status", "duration")
    alone = {
        tuple(key["atoms"][:2].tolist()): value
        for key, value in Encoder([spec], table, only_work=True).update()
    }
    assert {(0, 1): 1, (0, 2): 2, (0, 3): 2} == {n: int(v["starts"]) for n, v in alone.items()}
    assert {1} == {int(value["work"]) for value in alone.values()}
    assert [1, 0, 0] == [int(value["labels"]) for value in alone.values()]
    assert 4 << 6 | ATOM == alone[0, 1]["path"][0]
    failed = Spec(("web", "exception"))
    counted = [*Encoder([spec, failed], table, everything=False, work=True).update()]
    assert [(1, 0, 1), (2, 0, 1), (1, 1, 1)] == [
        tuple(int(value[name]) for name in ("number", "starts", "work")) for _, value in counted
    ]
    assert {0} == {int(value["work"]) for _, value in Encoder([spec, failed], table).update()}


def label(words: list[int], texts: list[bytes]) -> np.void:
    row = np.zeros(1, events.TELEMETRY_ROW)[0]
    row["spec"], row["label"][: len(words)] = 1, words
    for n, text in enumerate(texts):
        row["text"][n * 64 : n * 64 + len(text)] = list(text)
    return row


def test_labels_are_text_whatever_they_are():
    """
    Atoms, integers, empty lists, binaries that are cut; None for what was refused or is not there.
    """
    decoder = Decoder(Table("nil", "Elixir.Shop.Cart"))
    row = label([1 << 6 | ATOM, (-7 << 4 | 0xF) & (1 << 64) - 1, 0x3B], [])
    assert ("Shop.Cart", "-7", "[]") == decoder.labels(row, 3)
    cut = "x" * 63 + "é"
    row = label([3 << 4 | 4, 65 << 4 | 4, 4], [b"\x1b[2", cut.encode()[:64], b""])
    assert ("\x1b[2", "x" * 63 + "...", "") == decoder.labels(row, 3)
    row = label([0, events.LABEL_REFUSED, 0], [])
    assert (None, None) == decoder.labels(row, 2)
    assert decoder.labels(other_row(1)[()], 2) is None


def totals(count: int, *durations: int) -> np.void:
    made = np.zeros(1, events.TELEMETRY_TOTALS)[0]
    made["count"], made["measured"][0], made["sum"][0] = count, len(durations), sum(durations)
    for value in durations:
        power = value.bit_length() - 1
        made["slots"][4 * power + ((value << 2 >> power) & 3)] += 1
    return made


def row(event: str, count: int, *durations: int, **labels: str | None) -> Row:
    spec = Spec(tuple(event.split(".")), labels={name: (name,) for name in labels})
    made = row_of([spec], Decoder(Table()), label([0] * 3, []), totals(count, *durations))
    made.labels = tuple(labels.values())
    return made


def test_percentiles_are_within_an_eighth():
    """
    Of durations of all lengths, against the durations themselves.
    """
    durations = [int(1.01**n) + 3 for n in range(2500)]
    made = row("a.stop", 2500, *durations)
    for share in (0.5, 0.99):
        true = sorted(durations)[int(share * 2500) - 1] / 1e9
        assert true * 0.875 < made.percentile(share) < true * 1.126
    assert sum(durations) / 1e9 == pytest.approx(made.duration()["sum"])
    assert row("a.stop", 3).duration() is None


def test_rows_are_added_up_and_the_rest_is_one_row():
    """
    Equal labels are one row, and no event is lost beyond the rows that are shown.
    """
    rows = [row("a.stop", n, 1000, route=f"/{n}") for n in range(1, 8)]
    rows += [row("a.stop", 5, 1000, route="/1"), row("a.stop", 0, route="/none")]
    found = folded(rows, 2)
    assert [("/7", 7), ("/1", 6), (None, 20)] == [(r.named["route"], r.count) for r in found]
    assert [False, False, True] == [r.labels is None for r in found]
    assert [1, 2, 5] == [int(r.measured[0]) for r in found]


def test_errors_are_those_that_events_tell():
    """
    By exception, by result, by status; None where nothing shows it.
    """
    rows = [
        row("a.stop", 3, route="/a", plug="p"),
        row("a.stop", 1, route="/a", plug="q"),
        row("a.stop", 9, route="/b", plug="p"),
        row("a.exception", 1, route="/a", kind="error"),
        row("q", 4, result="error"),
        row("q", 4, result="ok"),
        row("h", 4, status="5xx"),
        row("h", 4, status="404"),
        row("other.stop", 4),
    ]
    assert [0.2, 0.2, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, None] == error_ratios(rows)


def failing() -> list[Row]:
    """
    Half of route /a fails, nothing of /b.
    """
    return [
        row("a.stop", 50, route="/a"),
        row("a.stop", 9, route="/b"),
        row("a.exception", 50, route="/a"),
        row("h", 4, status="5xx"),
    ]


def test_an_error_ratio_is_that_of_all_rows_and_not_of_those_that_are_shown():
    """
    Without the row of the failures, half of route /a has still failed; rows of both are not given.
    """
    rows = failing()
    judge(rows, whole=True)
    shown = [one for one in rows if one.event == "a.stop"]
    assert [0.5, 0.0] == [one.error_ratio for one in shown]
    assert [0.5, None] == [one.error_ratio for one in folded([*shown, row("a.stop", 1)], 1)]


def test_where_failures_may_be_missing_no_error_ratio_is_made_of_them():
    """
    What had no row of its own may have been a failure; a status says it of each event.
    """
    rows = failing()
    judge(rows, whole=False)
    assert [None, None, 1.0, 1.0] == [one.error_ratio for one in rows]
    mixed = [*failing(), row("a.exception", 1)]
    assert [None, None] == error_ratios(mixed)[:2]


def test_a_label_reaches_no_terminal():
    """
    Control characters are replaced, and no label begins a line.
    """
    target = {"node": None, "pid": 1, "otp_release": "25"}
    rows = [row("a.stop", 1, 1000, route="\x1b[2J\r\nroot:"), row("b\n.stop", 1, route="x" * 99)]
    counts = dict.fromkeys(events.TELEMETRY_COUNTS, 0) | {"label": 3}
    text = lines(Telemetry(target, "f", 1.0, rows, counts))
    assert all(line.isprintable() for line in text)
    assert any("route=?[2J??root:" in line for line in text)
    assert any(line.startswith("3 labels were neither") for line in text)
