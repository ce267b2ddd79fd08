# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATE = ROOT / "probes/generate.py"


@pytest.fixture
def generate():
    spec = importlib.util.spec_from_file_location("generate", GENERATE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_files_are_what_the_description_says():
    """
    The C header and the Python module are those that events.toml makes.
    """
    done = subprocess.run(
        [sys.executable, str(GENERATE), "--check"], capture_output=True, text=True
    )
    assert (0, "") == (done.returncode, done.stderr)


def test_layouts_are_read_as_they_are_written(tmp_path: Path):
    """
    The JSON that commands read has what the TOML of each layout says; what differs is named.
    """
    command = [sys.executable, str(ROOT / "packaging/pack_data.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (0, "") == (done.returncode, done.stderr)
    layouts = sorted((ROOT / "scope_ebpf/beam/layouts").glob("otp-*.toml"))
    for path in layouts:
        assert tomllib.loads(path.read_text()) == json.loads(path.with_suffix(".json").read_text())
    (tmp_path / "packaging").mkdir()
    copy = tmp_path / "packaging/pack_data.py"
    copy.write_text((ROOT / "packaging/pack_data.py").read_text())
    stale = tmp_path / "scope_ebpf/beam/layouts/otp-25.toml"
    stale.parent.mkdir(parents=True)
    stale.write_text("field = 23\n")
    stale.with_suffix(".json").write_text('{"field":24}\n')
    command[1] = str(copy)
    done = subprocess.run(command, capture_output=True, text=True)
    expected = f"{stale.with_suffix('.json')} is not what otp-25.toml says: run `make generate`\n"
    assert (1, expected) == (done.returncode, done.stderr)


def test_a_stale_file_is_found(generate, tmp_path: Path, monkeypatch, capsys):
    """
    The check names a file that was changed by hand, and fails.
    """
    stale = tmp_path / "events.generated.h"
    stale.write_text(generate.HEADER.read_text() + "/* by hand */\n")
    monkeypatch.setattr(generate, "HEADER", stale)
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert 1 == generate.main()
    expected = f"{stale} is not what probes/events.toml says: run `make generate`\n"
    assert expected == capsys.readouterr().err


def test_the_length_of_an_array_is_a_product_of_constants(generate):
    """
    Constants in a length are replaced by their product; an unknown name is an error.
    """
    numbers = {"ROWS": 3, "COLUMNS": 8}
    assert "u64[24]" == generate.with_length("u64[ROWS * COLUMNS]", numbers)
    assert "u64[2]" == generate.with_length("u64[2]", numbers)
    with pytest.raises(SystemExit) as error:
        generate.with_length("u64[LAYERS]", numbers)
    assert "events.toml: 'u64[LAYERS]' needs LAYERS, which is no constant" == str(error.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ([("a", "u32"), ("b", "u64")], "events.toml: a hole before 'b'"),
        ([("a", "u128")], "events.toml: 'u128' is no type"),
        ([(f"w{n}", "u64") for n in range(5)], "events.toml: 'a test' does not fit"),
        ([("a", "u32")], "events.toml: 'a test' does not fit"),
    ],
    ids=["hole", "type", "too long", "ends in a hole"],
)
def test_a_record_that_cannot_be_laid_out_is_refused(generate, fields, said: str):
    """
    Holes, unknown types and records that do not fit are refused by name.
    """
    rows = [{"name": name, "type": kind, "doc": ""} for name, kind in fields]
    with pytest.raises(SystemExit) as error:
        generate.record_fields(generate.load(), {"doc": "a test", "fields": rows})
    assert said == str(error.value)
