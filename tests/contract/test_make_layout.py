# SPDX-License-Identifier: Apache-2.0
"""
The tool that makes layouts: planted structs are found, and what is no build of OTP is refused.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from beams_run import require

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "packaging"))

import make_layout  # noqa: E402

#: As much of an emulator as the tool has to know, with a gap of its own.
SOURCE = """
const char etp_erts_version[] = "{erts}";
const int etp_beamasm = {jit};
typedef struct process Process;
struct scheduler {{
    char gap[{gap}];
    long reductions;
    union {{ struct {{ long count; }} ets_tables; }} u;
}};
typedef const struct scheduler ErtsSchedulerData;
struct process {{
    struct {{ long id; }} common;
    {probe}
    union {{ struct {{ long module; }} initial; void *real_proc; }} u;
    unsigned flags : 3;
    short msg_frag;
}};
typedef struct atom {{ long slot; union {{ char *name; long bin; }} u; }} Atom;
Process *p; ErtsSchedulerData *s; Atom *a;
"""
FILE = """
tag = "OTP-25.2.3"
release = 25
erts = ["13.1.3", "13.1.5"]

[facts]
map_subtag = 0x3C

[Process]
sizeof = 40
"common.id" = 0
"u.initial.module" = 8
flags = 0
gone = 8

[ErtsSchedulerData]
sizeof = 24
reductions = 8
"ets_tables.count" = 16

[Atom]
name = 8
"u.bin" = 8
"""


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    Planted builds: two versions of ERTS, and one with a field more for probes.
    """
    require(shutil.which("gcc"), "there is no gcc")
    folder = tmp_path_factory.mktemp("objects") / "otp/erts/emulator"
    folder.mkdir(parents=True)
    for name, erts, gap, jit, probe in (
        ("jit", "13.1.5", 8, 1, ""),
        ("usdt", "13.1.5", 8, 1, "long dt_utag;"),
        ("emu", "13.1.5", 8, 0, "long dt_utag;"),
        ("later", "13.2", 24, 1, ""),
        ("last", "13.2.1", 24, 1, ""),
        ("new", "18.0", 32, 1, ""),
    ):
        source = folder / f"{name}.c"
        source.write_text(SOURCE.format(erts=erts, gap=gap, jit=jit, probe=probe))
        subprocess.run(["gcc", "-g", "-c", "-o", folder / f"{name}.o", source], check=True)
    shutil.copy(folder / "jit.o", folder / "stripped.o")
    subprocess.run(["strip", "-g", folder / "stripped.o"], check=True)
    good = (folder / "jit.o").read_bytes()
    (folder / "arm.o").write_bytes(good[:18] + b"\xb7\0" + good[20:])
    (folder / "text.o").write_bytes(b"no ELF file at all")
    (folder / "cut.o").write_bytes(good[: len(good) // 2])
    assembled = subprocess.run(
        ["gcc", "-g", "-S", "-o", "-", folder / "jit.c"], check=True, capture_output=True, text=True
    ).stdout
    other = assembled.replace('"GNU C', '"TCC C')
    assert other != assembled
    (folder / "tcc.s").write_text(other)
    subprocess.run(["gcc", "-c", "-o", folder / "tcc.o", folder / "tcc.s"], check=True)
    return folder


@pytest.fixture
def layouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """
    A folder with one layout file, which the tool takes for its own.
    """
    (tmp_path / "otp-25.toml").write_text(FILE)
    monkeypatch.setattr(make_layout, "LAYOUTS", tmp_path)
    return tmp_path


def made(tag: str, objects: Path, *names: str) -> dict:
    """
    Make one version's layout, write it, and read it again.
    """
    path, text, _ = make_layout.make(tag, [objects / f"{name}.o" for name in names])
    path.write_text(text)
    return tomllib.loads(text)


def test_fields_are_where_the_compiler_put_them(layouts: Path, objects: Path):
    """
    Through typedefs and unions; a bit field and a field that is gone have no offset.
    """
    data = made("25.2.3", objects, "jit", "usdt", "emu")
    assert {"sizeof": 24, "common.id": 0, "u.initial.module": 8} == data["Process"]
    assert {"sizeof": 24, "reductions": 8, "ets_tables.count": 16} == data["ErtsSchedulerData"]
    assert {"u.bin": 8} == data["Atom"]  # a name is a member of the union alone
    assert "# OTP-25.2.3 erts/emulator/jit.c\n[Process]" in (layouts / "otp-25.toml").read_text()
    moved = {"sizeof": 32, "u.initial.module": 16}
    assert {"usdt": {"Process": moved}, "emu": {"Process": moved}} == {
        build: data[build] for build in ("usdt", "emu")
    }
    assert (["13.1.3", "13.1.5"], {"map_subtag": 0x3C}) == (data["erts"], data["facts"])


def test_what_was_made_is_made_again_byte_for_byte(layouts: Path, objects: Path):
    """
    With an overlay in it, too.
    """
    made("25.2.3", objects, "jit", "usdt", "emu")
    made("25.3", objects, "later")
    before = (layouts / "otp-25.toml").read_text()
    made("25.2.3", objects, "jit", "usdt", "emu")
    assert before == (layouts / "otp-25.toml").read_text()
    made("25.3", objects, "later")
    assert before == (layouts / "otp-25.toml").read_text()


def test_a_version_within_the_range_of_a_file_leaves_it_as_it_was(layouts: Path, objects: Path):
    """
    Also where the release has no overlay.
    """
    made("25.2.3", objects, "jit", "usdt", "emu")
    before = (layouts / "otp-25.toml").read_text()
    made("25.2.2", objects, "jit", "usdt", "emu")
    assert before == (layouts / "otp-25.toml").read_text()


def test_other_versions_are_overlays_whose_ranges_grow(layouts: Path, objects: Path):
    """
    A version that differs gets one, and the next that is the same lengthens it.
    """
    made("25.2.3", objects, "jit")
    [part] = made("25.3", objects, "later")["overlays"]
    fields = {"sizeof": 40, "reductions": 24, "ets_tables.count": 32}
    assert (["13.2", "13.2"], fields) == (part["erts"], part["ErtsSchedulerData"])
    [part] = made("25.3.1", objects, "last")["overlays"]
    assert (["13.2", "13.2.1"], ["25.3", "25.3.1"]) == (part["erts"], part["otp"])


def test_a_new_release_gets_a_file_with_the_facts_of_the_nearest(layouts: Path, objects: Path):
    """
    Its only version is its own.
    """
    data = made("30.0", objects, "new")
    assert (30, "OTP-30.0", ["18.0", "18.0"]) == (data["release"], data["tag"], data["erts"])
    assert (32, 0x3C) == (data["ErtsSchedulerData"]["reductions"], data["facts"]["map_subtag"])


@pytest.mark.parametrize(
    ("tag", "names", "message"),
    [
        ("25.2.3", ["stripped"], "no debug information"),
        ("25.2.3", ["arm"], "is for AArch64"),
        ("25.2.3", ["text"], "no ELF file"),
        ("25.2.3", ["cut"], "cut.o"),
        ("25.2.3", ["tcc"], "a compiler unknown here"),
        ("25.2.3", ["none"], "No such file"),
        ("25.2.3", ["usdt"], "one JIT without USDT is needed"),
        ("25.2.3", ["jit", "jit"], "others once"),
        ("25.2.3", ["jit", "usdt", "later"], "others once"),
        ("new", ["jit"], "is no version of OTP"),
    ],
)
def test_what_is_no_build_is_refused_in_one_line(  # noqa: PLR0917 - fixtures and cases
    layouts: Path,
    objects: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tag: str,
    names: list[str],
    message: str,
):
    """
    Nothing is written, and the command says why and ends with 1.
    """
    arguments = [str(objects / f"{name}.o") for name in names]
    monkeypatch.setattr(sys, "argv", ["make_layout.py", tag, *arguments])
    assert 1 == make_layout.main()
    printed = capsys.readouterr()
    assert (1, "") == (printed.err.count("\n"), printed.out)
    assert re.search(message, printed.err), printed.err
    assert FILE == (layouts / "otp-25.toml").read_text()
    assert 1 == len([*layouts.iterdir()])
