# SPDX-License-Identifier: Apache-2.0
"""
Functions of a file that hides its symbols: learned from one build, found in another.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from beams_run import require

from scope_ebpf.beam.elf.binary import Binary, Symbol
from scope_ebpf.beam.elf.bounds import UnprovenPlaceError, require_in_function
from scope_ebpf.beam.hidden import memory, shelf
from scope_ebpf.beam.hidden.learn import learn, of_debug_file
from scope_ebpf.beam.hidden.memory import Functions, Place
from scope_ebpf.beam.hidden.reference import WANTED, BadReferenceError, Build, packed, parse
from scope_ebpf.beam.hidden.resolve import (
    Hidden,
    _Background,
    _done,
    _known,
    _matched,
    hidden_of,
    match,
    prove,
    resolve,
    reveal,
)
from scope_ebpf.cli import learn as learn_command
from scope_ebpf.cli import main as cli
from scope_ebpf.errors import OutputError, UsageError
from scope_ebpf.sandbox.client import Parser, UnreadableFileError
from scope_ebpf.sandbox.questions import Questions

BANNER = "Erlang/OTP %s [erts-%s] [source] [64-bit] [smp] [jit:ns]"
HELPERS = [f"helper_{n}" for n in range(60)]


def program(release: str, erts: str) -> str:
    """
    A C program with the wanted functions and others, which call each other; with a greeting.
    """
    random_of = random.Random(7)
    names = [*HELPERS, *WANTED]
    lines = ["#include <stdio.h>", "#include <stdlib.h>", "#include <string.h>"]
    lines += [f"__attribute__((noinline)) long {name}(long a, long *b);" for name in names]
    lines.append(f'const char banner[] = "{BANNER % (release, erts)}";')
    for number, name in enumerate(names):
        body = []
        if number % 3 == 0:
            body.append(f'printf("what {name[::-1]} says: %ld\\n", a);')
        body.append(f"b[{random_of.randrange(20, 900)}] += a * {random_of.randrange(100, 9999)};")
        body += [
            f"if (a > {random_of.randrange(40, 999)}) b[1] += {callee}(a - 1, b);"
            for callee in random_of.sample(names, random_of.randrange(2, 7))
        ]
        if number % 4 == 0:
            body.append("b[2] += strlen((char *)b) + (long)malloc(a);")
        lines.append(f"long {name}(long a, long *b) {{ {' '.join(body)} return b[0] + a; }}")
    calls = " ".join(f"n += {name}(c, b);" for name in names)
    lines.append(f"int main(int c, char **v) {{ long b[1000] = {{0}}, n = 0; {calls} ")
    lines.append('printf("%s %ld", banner, n); return 0; }')
    return "\n".join(lines)


def built(folder: Path, name: str, *flags: str, release: str = "29", erts: str = "17.1") -> Path:
    require(shutil.which("gcc"), "there is no C compiler")
    source = folder / "program.c"
    source.write_text(program(release, erts))
    made = folder / name
    subprocess.run(["gcc", "-fvisibility=hidden", *flags, "-o", made, source], check=True)
    return made


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """
    A build with symbols, another compiler's settings' build of it, and that one stripped.
    """
    folder = tmp_path_factory.mktemp("hidden")
    teacher = built(folder, "teacher", "-O2")
    named = built(folder, "named", "-O1", "-fstack-protector-all", "-fno-omit-frame-pointer")
    stripped = folder / "stripped"
    subprocess.run(["strip", "-o", stripped, named], check=True)
    return SimpleNamespace(folder=folder, teacher=teacher, named=named, stripped=stripped)


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """
    Empty folders of references and of what was found before.
    """
    folders = SimpleNamespace(shelf=tmp_path / "shelf", cache=tmp_path / "cache")
    _done.clear()  # what this process has matched itself
    folders.shelf.mkdir(mode=0o755)
    folders.cache.mkdir(mode=0o755)
    monkeypatch.setenv(shelf.VARIABLE, str(folders.shelf))
    monkeypatch.setenv("SCOPE_EBPF_CACHE", str(folders.cache))
    return folders


@pytest.fixture(scope="module")
def reference(builds: SimpleNamespace) -> bytes:
    """
    What the build with symbols teaches, as a file.
    """
    return packed(learn(Binary.open(builds.teacher)))


def test_the_command_writes_the_reference_of_a_file(
    builds: SimpleNamespace, reference: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """
    A TARGET beside it, a file and a folder that are not there are refused.
    """
    words = ["learn", "--from", str(builds.teacher), "-o", str(tmp_path / "taught")]
    assert 0 == learn_command.run(cli.parsed(words))
    assert reference == (tmp_path / "taught").read_bytes()
    assert f"{len(reference):,} bytes in {tmp_path}/taught" in capsys.readouterr().out
    for more, error, text in (
        (["shop"], UsageError, "takes no TARGET"),
        (["--from", str(tmp_path / "none")], UsageError, "No such file"),
        (["-o", str(tmp_path / "no" / "folder")], OutputError, "cannot be written: No such file"),
    ):
        with pytest.raises(error, match=text):
            learn_command.run(cli.parsed([*words, *more]))


def truth(path: Path) -> dict[str, int]:
    lines = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in lines.splitlines())
    return {row[2]: int(row[0], 16) for row in rows if len(row) == 3}


def target_of(path: Path, release: str = "29", erts: str = "17.1") -> Any:
    return SimpleNamespace(
        binary=Binary.open(path), otp_release=release, erts_version=erts, flavor="jit"
    )


def put(folders: SimpleNamespace, reference: bytes) -> Path:
    path = folders.shelf / shelf.name_of(parse(reference, "it").build)
    path.write_bytes(reference)
    path.chmod(0o644)
    return path


def test_functions_are_found_where_they_are(builds, reference, own_folders):
    """
    Nearly all wanted functions are found in a stripped build of other settings, and none elsewhere.
    """
    put(own_folders, reference)
    target = target_of(builds.stripped)
    resolve(target)
    places = truth(builds.named)
    found = {name: symbol.address for name in WANTED if (symbol := target.binary.symbol(name))}
    assert {name: places[name] for name in found} == found
    assert len(found) >= len(WANTED) * 3 // 4


def test_what_was_found_is_remembered_for_that_file_only(builds, reference, own_folders):
    """
    The second start takes what is kept of the same file, also without its reference's rows, and a
    file of other bytes is matched anew.
    """
    put(own_folders, reference)
    resolve(target_of(builds.stripped))
    (entry,) = (own_folders.cache / "functions").iterdir()
    kept = json.loads(entry.read_text())
    kept["places"] = {"erts_schedule": kept["places"]["erts_schedule"]}
    entry.write_text(json.dumps(kept))
    _done.clear()
    again = target_of(builds.stripped)
    resolve(again)
    assert ["erts_schedule"] == [name for name in WANTED if again.binary.symbol(name)]
    other = own_folders.cache / "other"
    other.write_bytes(builds.stripped.read_bytes() + b"\0")
    different = target_of(other)
    resolve(different)
    assert len([name for name in WANTED if different.binary.symbol(name)]) > 1


def test_an_entry_that_others_may_change_is_not_used(builds, reference, own_folders):
    """
    What is kept counts only if root or the user alone may write it.
    """
    put(own_folders, reference)
    resolve(target_of(builds.stripped))
    (entry,) = (own_folders.cache / "functions").iterdir()
    assert memory.recall(entry.stem) is not None
    entry.chmod(0o666)
    assert memory.recall(entry.stem) is None
    entry.chmod(0o600)
    entry.parent.chmod(0o777)
    assert memory.recall(entry.stem) is None


def test_a_reference_that_others_may_change_is_not_used(builds, reference, own_folders):
    """
    A reference that any user may write is refused with the reason.
    """
    put(own_folders, reference).chmod(0o666)
    hidden = resolve(target_of(builds.stripped))
    assert "others than root may change it" in hidden.why


def test_another_release_teaches_only_what_a_counter_can_judge(builds, own_folders):
    """
    By a reference of another major release the functions of sends stay unknown, with the reason.
    """
    teacher = built(builds.folder, "teacher27", "-O2", release="27", erts="15.2")
    put(own_folders, packed(learn(Binary.open(teacher))))
    target = target_of(builds.stripped)
    hidden = resolve(target)
    assert target.binary.symbol("erl_create_process") is not None
    assert target.binary.symbol("erts_send_message") is None
    assert "another OTP release" in hidden.reasons["erts_send_message"]


def test_an_address_within_a_function_is_no_place_for_a_hook(builds):
    """
    Only the start and the size that call frame information describes are accepted.
    """
    binary = Binary.open(builds.stripped)
    start = truth(builds.named)["erts_schedule"]
    size = next(size for size in range(1, 4096) if binary.is_start(start, size))
    require_in_function(binary, Symbol("it", start, size, True, "found"), start)
    for address, length in ((start + 1, size - 1), (start + 4, size), (start, size - 1)):
        symbol = Symbol("it", address, length, True, "found")
        with pytest.raises(UnprovenPlaceError, match="no function begins"):
            require_in_function(binary, symbol, address)


def test_a_planted_address_within_a_function_is_never_revealed(builds, reference, own_folders):
    """
    An entry whose addresses lie within functions gives none, and names each.
    """
    put(own_folders, reference)
    resolve(target_of(builds.stripped))
    (entry,) = (own_folders.cache / "functions").iterdir()
    kept = json.loads(entry.read_text())
    for place in kept["places"].values():
        place[0] += 3
    entry.write_text(json.dumps(kept))
    _done.clear()
    target = target_of(builds.stripped)
    hidden = resolve(target)
    assert [] == [name for name in WANTED if target.binary.symbol(name)]
    assert hidden.reasons["erts_schedule"] == "no function begins where it was found"


def changed(reference: bytes, **values: Any) -> bytes:
    return gzip.compress(json.dumps(json.loads(gzip.decompress(reference)) | values).encode())


HOSTILE = {
    "cut short": lambda r: r[:-20],
    "no reference": lambda _: b"\x7fELF and more",
    "not packed": gzip.decompress,
    "another file": lambda _: gzip.compress(b'{"a": 1}'),
    "no table": lambda _: gzip.compress(b"[1]"),
    "deep": lambda _: gzip.compress(b"[" * 100_000),
    "a bomb": lambda _: gzip.compress(b" " * (64 << 20)),
    "another version": lambda r: changed(r, scope_ebpf_reference=99),
    "control characters": lambda r: changed(r, compiler="\x1b[2J"),
    "a call beyond the rows": lambda r: changed(r, rows=[["a", 1, 1, [], [7], [], []]]),
    "a name beyond the names": lambda r: changed(
        r, called=[], rows=[["a", 1, 1, [], [-2], [], []]]
    ),
    "a mark that is a text": lambda r: changed(r, unique=["x"]),
    "a mark of 65 bits": lambda r: changed(r, unique=[1 << 64]),
    "too many rows": lambda r: changed(r, rows=[["a", 1, 1, [], [], [], []]] * 5000),
    "infinite": lambda r: changed(r, unique=[float("inf")]),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_bad_reference_is_one_line(reference, how):
    """
    A reference that is cut, hostile or of another form is refused in one line.
    """
    with pytest.raises(BadReferenceError) as caught:
        parse(HOSTILE[how](reference), "its name")
    assert str(caught.value).startswith("its name cannot be used: ")
    assert str(caught.value).isprintable()


def test_a_reference_of_another_processor_is_not_taken(builds, reference, own_folders):
    """
    The references of another architecture and of another flavour are not for this program.
    """
    for key, value in (("machine", "AArch64"), ("flavor", "emu")):
        put(own_folders, changed(reference, **{key: value}))
    hidden = resolve(target_of(builds.stripped))
    assert "no reference of jit emulators" in hidden.why
    lying = own_folders.shelf / shelf.name_of(parse(reference, "it").build)
    lying.write_bytes(changed(reference, machine="AArch64"))
    lying.chmod(0o644)
    assert "it is of OTP 29 (erts 17.1, jit, AArch64" in resolve(target_of(builds.stripped)).why


def test_the_nearest_reference_comes_first():
    """
    The same major release comes before another one, and the nearest version of ERTS first.
    """
    versions = {"17.1.2": "29", "17.0": "29", "16.2": "28", "15.2": "27", "17.1": "29"}
    among = [
        shelf.Entry(Path(erts), Build(otp, erts, "jit", "x64", ""))
        for erts, otp in versions.items()
    ]
    found = shelf.nearest("29", "17.1.1", "jit", "x64", among)
    assert ["17.1", "17.1.2"] == sorted(entry.build.erts for entry in found[:2])
    assert ["16.2", "15.2"] == [entry.build.erts for entry in found[3:]]


def test_a_stripped_program_teaches_nothing(builds):
    """
    A program without symbols, and one that is no BEAM, are refused in one line.
    """
    with pytest.raises(BadReferenceError, match="it is stripped"):
        learn(Binary.open(builds.stripped))
    with pytest.raises(BadReferenceError, match="is no BEAM"):
        learn(Binary.open(Path(shutil.which("gcc") or "/bin/true")))


def test_a_debug_file_counts_for_its_own_build_only(builds):
    """
    The symbols of a debug file are taken by its build id, and a file of another build is refused.
    """
    debug = builds.folder / "own.debug"
    subprocess.run(["objcopy", "--only-keep-debug", builds.named, debug], check=True)
    binary = Binary.open(builds.stripped)
    found = of_debug_file(binary, os.open(debug, os.O_RDONLY))
    places = truth(builds.named)
    assert {name: places[name] for name in WANTED} == {
        name: place.start for name, place in found.places.items()
    }
    with pytest.raises(BadReferenceError, match="its build id is another one"):
        of_debug_file(binary, os.open(builds.teacher, os.O_RDONLY))


def test_a_program_with_symbols_is_left_alone(builds, reference, own_folders):
    """
    Where the file names its functions, nothing is looked for.
    """
    put(own_folders, reference)
    target = target_of(builds.named)
    assert "" == resolve(target).source
    assert not (own_folders.cache / "functions").exists()


def test_two_functions_are_not_found_at_one_place(builds, own_folders):
    """
    An entry that has two functions at one place gives the first of them only.
    """
    binary = Binary.open(builds.stripped)
    start = truth(builds.named)["erts_schedule"]
    size = next(size for size in range(1, 4096) if binary.is_start(start, size))
    place = Place(start, size)
    found = {"erl_create_process": place, "erts_do_exit_process": place}
    hidden = reveal(binary, Functions("f", "r", "reference", True, found))
    assert hidden is hidden_of(binary) is _known[binary]
    assert binary.symbol("erl_create_process") is not None
    assert "found at the same place" in hidden.reasons["erts_do_exit_process"]


def test_what_is_kept_is_revealed_by_one_question(
    builds, reference, own_folders, monkeypatch: pytest.MonkeyPatch
):
    """
    All places are checked at once, and none again when hooks are planned.
    """
    kept = Binary.open(builds.stripped)
    parser = kept.apart(6.0, 60.0)
    found = _matched(parser, "29", parser.ask("digest", str), parse(reference, "it"))
    parser.close()
    asked: list[str] = []
    ask = Parser._exchange

    def counted(self: Parser, question: str, *rest: object) -> object:
        asked.append(question)
        return ask(self, question, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Parser, "_exchange", counted)
    binary = Binary.open(builds.stripped)
    reveal(binary, found)
    symbol = binary.symbol("erts_schedule")
    require_in_function(binary, symbol, symbol.address)
    assert 1 == asked.count("starts")


def test_a_file_that_changes_is_matched_as_it_was_digested_or_not_at_all(
    builds, reference, own_folders
):
    """
    Once its digest is taken, other bytes of the file teach nothing, and are kept nowhere.
    """
    path = own_folders.cache / "beam"
    path.write_bytes(builds.stripped.read_bytes())
    binary = Binary.open(path)
    parser = binary.apart(6.0, 60.0)
    digest = parser.ask("digest", str)
    whole = match(parser, digest, parse(reference, "it"))
    parser.close()  # as a child that was idle ends
    path.write_bytes(builds.teacher.read_bytes())
    with pytest.raises(UnreadableFileError, match="it changed while it was read"):
        _matched(parser, "29", digest, parse(reference, "it"))
    assert memory.recall(digest) is None
    parser.close()
    path.write_bytes(builds.stripped.read_bytes())
    assert whole == match(parser, digest, parse(reference, "it"))
    path.write_bytes(b"\x7fELF")
    assert len(parser.ask("starts", list, [(0, 1)])) == 1
    parser.close()


def test_only_the_functions_that_were_compared_are_proven(own_folders):
    """
    What another process has kept meanwhile is not proven by a run that used other places.
    """
    used = Functions("f" * 8, "r", "reference", True, {"erts_schedule": Place(4096, 23)})
    assert memory.keep(used._replace(places={"erts_schedule": Place(8192, 23)}))
    hidden = Hidden(used)
    prove(hidden, {"schedule"})
    assert {"schedule"} == hidden.proven
    assert () == memory.recall(used.file).proven
    assert memory.keep(used)
    prove(Hidden(used), {"schedule"})
    assert ("schedule",) == memory.recall(used.file).proven


def test_a_function_of_no_event_is_not_one_that_a_counter_judges(builds):
    """
    What decides whether a connection is busy must be found as surely as what no counter shows.
    """
    binary = Binary.open(builds.stripped)
    places = {}
    for name in ("erl_create_process", "erts_dsig_send", "erts_init_gc"):
        start = truth(builds.named)[name]
        size = next(size for size in range(1, 4096) if binary.is_start(start, size))
        places[name] = Place(start, size, 0.65, 0.15)
    hidden = reveal(binary, Functions("f", "r", "reference", True, places))
    assert "not like enough (score 0.65" in hidden.reasons["erts_dsig_send"]
    assert binary.symbol("erl_create_process")
    assert binary.symbol("erts_init_gc")


def test_the_entries_that_were_used_longest_ago_make_room(own_folders, monkeypatch):
    """
    A user who runs many copies of a program takes no room from what others run now.
    """
    monkeypatch.setattr(memory, "_ENTRIES", 3)
    folder = own_folders.cache / "functions"
    for number, name in enumerate(("a", "b", "c", "d", "e")):
        assert memory.keep(Functions(name, "r", "reference", True, {}))
        os.utime(folder / f"{name}.json", (number + 1, number + 1))
        assert memory.recall("a") is not None
    assert {"a.json", "d.json", "e.json"} == {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(("patient", "waits"), [(True, 60.0), (False, None)])
def test_a_look_of_the_daemon_waits_no_longer_for_a_digest(builds, monkeypatch, patient, waits):
    """
    A command waits for as long as a matching takes, and the daemon as for any other answer.
    """
    given = []

    def apart(self: Binary, seconds: float, patience: float | None = None) -> Any:
        given.append((seconds, patience))
        raise UnreadableFileError("enough")

    monkeypatch.setattr(Binary, "apart", apart)
    target = target_of(builds.stripped)
    target.binary = Binary.open(builds.stripped, debug_files=patient)
    with pytest.raises(UnreadableFileError):
        resolve(target)
    ((seconds, patience),) = given
    assert patience == waits
    assert (seconds > 1) == patient


def test_owners_of_programs_take_turns(monkeypatch):
    """
    Who has new programs all the time gets every other turn, and who asks no more gets none.
    """
    now, taken = [0.0], []
    background = _Background(lambda: now[0])

    def run(binary: Any, release: str, file: str, reference: Any) -> None:
        taken.append(file)
        background._busy = False

    monkeypatch.setattr(background, "_run", run)
    monkeypatch.setattr(threading, "Thread", lambda target, **_: SimpleNamespace(start=target))
    target = SimpleNamespace(binary=None, otp_release="29")

    def ask(seconds: float, *owners: str) -> None:
        for _ in range(round(seconds / 50)):
            now[0] += 50
            for owner in owners:
                background.start(target, owner, None, owner)

    ask(1500, "evil", "good")
    # Eight at once, and one more each five minutes.
    assert ["evil", "good"] * 6 == taken
    ask(1200, "evil")
    assert ["evil"] * 3 == taken[-3:]


def test_the_references_of_the_package_know_every_function_that_is_hooked():
    """
    One that was made before a hook came in would hide its event on a stripped OTP 29.
    """
    found = {path.name: parse(path.read_bytes(), path.name) for path in shelf.SHIPPED.iterdir()}
    assert {"27", "29"} == {one.build.major for one in found.values()}
    # OTP 29 sends to aliases and to names elsewhere (dist.c, erl_proc_sig_queue.c); in 27 the one
    # was not there yet, and the other is inlined in Debian's build.
    gone = {
        "27": {"erts_proc_sig_send_altact_msg", "proc_queue_signal"},
        "29": {"erts_proc_sig_send_to_alias", "erts_dsig_send_reg_msg"},
    }
    for name, one in found.items():
        # The BIFs that are markers are found by the table of BIFs.
        left = {*WANTED} - {"erts_internal_cmp_term_2", "ets_is_compiled_ms_1"}
        assert gone[one.build.major] == left - {*one.wanted}, name


def test_a_confined_process_learns_and_finds_what_this_one_does(
    builds: SimpleNamespace, reference: bytes
):
    """
    What one build teaches, and where these functions are in another build.
    """
    known = parse(reference, "it")
    with builds.teacher.open("rb") as teacher, builds.stripped.open("rb") as stripped:
        taught = Questions("teacher", teacher.fileno()).ask("learn", [list(WANTED)], [])
        own = Questions("stripped", stripped.fileno())
        digest = str(own.ask("digest", [], []))
        question = [digest, list(known.wanted), known.rows, known.called, known.unique]
        found: Any = own.ask("match", question, [])
    binaries = [Binary.open(path) for path in (builds.teacher, builds.stripped)]
    learner, finder = (binary.apart(30.0, 120.0) for binary in binaries)
    # As JSON: a confined process answers with lists.
    assert json.dumps(taught) == json.dumps(learner.ask("learn", lambda a: a, list(WANTED)))
    assert match(finder, digest, known) == {
        name: Place(start, size, score / 1000, margin / 1000)
        for name, (start, size, score, margin) in found.items()
    }
    assert len(found) >= len(WANTED) - 3
    learner.close()
    finder.close()
