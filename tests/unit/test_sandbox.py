# SPDX-License-Identifier: Apache-2.0
"""
The process that parses files of other users: its rights, and its end when it lies or hangs.
"""

from __future__ import annotations

import errno
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from beams_run import require
from test_beam_elf import STRTAB, SYMTAB, elf, table

from scope_ebpf.beam.elf.binary import Binary
from scope_ebpf.errors import RefusedFileError
from scope_ebpf.sandbox import answers, child, client, limits
from scope_ebpf.sandbox.confine import confine
from scope_ebpf.sandbox.forkserver import Server
from scope_ebpf.sandbox.questions import Questions
from scope_ebpf.sandbox.refusals import Refusals, key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

U64 = (1 << 64) - 1
FACTS = {
    "machine": "x64",
    "entry": 64,
    "relative": True,
    "build_id": None,
    "segments": [[4096, 176, 100, True, False]],
    "sections": {".text": [4096, 100]},
    "own": True,
    "link": ["", 0],
}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """
    A file with one symbol.
    """
    rows, names = table({"only": (0x1000, 8, 2)})
    path = tmp_path / "good"
    path.write_bytes(elf({".symtab": (SYMTAB, 0, rows), ".strtab": (STRTAB, 0, names)}))
    return path


def in_a_confined_child(act: Callable[[], object]) -> str:
    """
    The name of the error that *act* meets in a process that is confined; "done" if it meets none.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = "not confined"
        try:
            confine()
            act()
            said = "done"
        except OSError as error:
            said = errno.errorcode[error.errno]
        except (EOFError, MemoryError, ValueError) as error:
            said = type(error).__name__
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    return said if status == 0 else f"status {status:#x}"


def write_a_file(fd: int) -> None:
    while os.write(fd, b"x"):
        pass


#: Computes in a process of its own: in one that has imported much the limit may be reached by then.
COMPUTES = """
import os
from scope_ebpf.sandbox.confine import confine
file = os.open("/proc/self/exe", os.O_RDONLY)
confine()
bytearray(64 << 20), sorted(range(1000))
os.write(1, os.pread(file, 4, 0))
os._exit(0)
"""


def test_a_confined_process_may_still_compute():
    """
    What parsing needs goes on: memory, arithmetic, reading what is open.
    """
    done = subprocess.run([sys.executable, "-c", COMPUTES], capture_output=True)
    assert (0, b"\x7fELF", b"") == (done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    "act",
    [
        lambda: os.open("/etc/passwd", os.O_RDONLY),
        lambda: os.open("/tmp", os.O_TMPFILE | os.O_WRONLY),
        lambda: Path("/tmp/confined").mkdir(),
        lambda: Path("/tmp/nothing").unlink(),
        lambda: socket.socket(socket.AF_INET),
        lambda: socket.socket(socket.AF_UNIX),
        os.fork,
        lambda: os.execv("/bin/true", ["true"]),
        lambda: os.kill(os.getppid(), 0),
        lambda: os.pidfd_open(os.getppid()),
        lambda: os.setuid(0),
        lambda: os.sched_setaffinity(0, {0}),
        lambda: os.memfd_create("x"),
    ],
    ids=[
        *("open", "tmpfile", "mkdir", "unlink", "inet", "unix", "fork", "exec", "kill"),
        *("pidfd", "setuid", "affinity", "memfd"),
    ],
)
def test_a_confined_process_reaches_nothing(act: Callable[[], object]):
    """
    No file, socket, process or user: the system call itself is refused.
    """
    assert "EPERM" == in_a_confined_child(act)


def test_a_confined_process_has_limited_memory():
    """
    A reservation beyond the limit fails in the child, and nowhere else.
    """
    assert "MemoryError" == in_a_confined_child(lambda: bytearray(limits.MEMORY))


def test_a_confined_process_has_a_user_of_its_own(good: Path):
    """
    Another user for each file, no group, no capability, none to be had, no way to look into it.
    """
    require(os.geteuid() == 0, "becoming another user takes root")
    first, second = Binary.open(good), Binary.open(good)
    seen = []
    for binary in (first, second):
        lines = Path(f"/proc/{binary._parser._pid}/status").read_text().splitlines()
        facts = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        seen.append(facts["Uid"].split())
        assert 1 == len(set(facts["Uid"].split() + facts["Gid"].split()))
        assert "" == facts["Groups"].strip()
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert 0 == int(facts[name], 16), name
        assert ("1", "2") == (facts["NoNewPrivs"], facts["Seccomp"])
    assert seen[0] != seen[1]
    assert not {"0", "65534"} & {*seen[0], *seen[1]}


#: A command that forks the server: it prints the pids of server and child, and of what it reads.
FORKS = """
import os, resource, signal, sys
from pathlib import Path
from scope_ebpf.sandbox import client
signal.signal(signal.SIGTERM, lambda *_: None)
secret = os.open("/etc/hostname", os.O_RDONLY)
os.dup2(secret, 700)  # above the limit, once that is lower
resource.setrlimit(resource.RLIMIT_NOFILE, (600, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
client.ahead(fork=True)
from scope_ebpf.beam.elf.binary import Binary
binary = Binary.open(Path(sys.argv[1]))
print(client.server_pid(), binary._parser._pid, flush=True)
sys.stdin.read()
assert 0x1000 == binary.symbol("only").address
"""


def test_a_server_that_is_forked_is_as_one_that_starts_anew(good: Path):
    """
    No file, handler or environment of the command, a session of its own; the child is confined.
    """
    require(os.geteuid() == 0, "looking into another user's process takes root")
    command = [sys.executable, "-c", FORKS, str(good)]
    secret = {**os.environ, "SECRET": "twenty-three"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=secret
    ) as parent:
        server, child = (Path(f"/proc/{int(p)}") for p in parent.stdout.readline().split())
        for folder, files in ((server, ["socket"]), (child, [str(good), "socket"])):
            held = [str(fd.readlink()).partition(":")[0] for fd in (folder / "fd").iterdir()]
            assert ["/dev/null"] * 3 + files == sorted(held)
            assert b"" == (folder / "environ").read_bytes().strip(b"\0")
            assert Path("/") == (folder / "cwd").readlink()
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            assert server.name == fields[3]
        lines = (server / "status").read_text().splitlines()
        facts = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert 0 == int(facts["SigCgt"], 16) & 1 << signal.SIGTERM - 1
        assert 0 == int(facts["SigBlk"], 16)
        lines = (child / "status").read_text().splitlines()
        facts = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert ("1", "2", 0) == (facts["NoNewPrivs"], facts["Seccomp"], int(facts["CapEff"], 16))
        assert not {"0", "65534"} & {*facts["Uid"].split()}
        watch = os.pidfd_open(int(server.name))
        parent.stdin.close()
        assert 0 == parent.wait()
        _readable(watch)  # it ends with the command
        os.close(watch)


def test_a_child_holds_the_file_and_its_channel(good: Path):
    """
    Of its parent's files none is there, secrets and sockets among them; nor is its environment.
    """
    require(os.geteuid() == 0, "looking into another user's process takes root")
    secret = os.open("/etc/hostname", os.O_RDONLY)
    os.set_inheritable(secret, True)
    try:
        binary = Binary.open(good)
    finally:
        os.close(secret)
    folder = Path(f"/proc/{binary._parser._pid}")
    held = sorted(str(fd.readlink()).partition(":")[0] for fd in (folder / "fd").iterdir())
    assert ["/dev/null"] * 3 + [str(good), "socket"] == held
    assert b"" == (folder / "environ").read_bytes()


def test_a_child_ends_with_its_file_and_with_its_parent(good: Path):
    """
    Closing the file ends it; so does the end of the process that asked, killed or not.
    """
    binary = Binary.open(good)
    child = Path(f"/proc/{binary._parser._pid}")
    binary.close()
    assert not child.exists()
    script = (
        "import sys, time; from pathlib import Path\n"
        "from scope_ebpf.beam.elf.binary import Binary\n"
        f"binary = Binary.open(Path({str(good)!r})); print(binary._parser._pid, flush=True)\n"
        "time.sleep(100)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        pid = int(parent.stdout.readline())
        watch = os.pidfd_open(pid)
        parent.kill()
    ended = threading.Event()
    waiter = threading.Thread(target=lambda: (_readable(watch), ended.set()), daemon=True)
    waiter.start()
    assert ended.wait(20)
    os.close(watch)


def _readable(fd: int) -> None:
    select.select([fd], [], [])


def test_a_child_that_was_idle_is_replaced(good: Path):
    """
    After a while without a question it ends; the next question has its answer from another.
    """
    binary = Binary.open(good)
    first = binary._parser._pid
    watch = os.pidfd_open(first)
    used = client.cpu_seconds()
    _gone(watch, first)  # it ends by itself, after limits.IDLE seconds
    assert 0x1000 == binary.symbol("only").address
    assert client.cpu_seconds() - used < binary._parser._seconds  # the idle one took none of that
    assert binary._parser._pid != first


def _has_decoder(parser: client.Parser) -> bool:
    return b"capstone" in Path(f"/proc/{parser._pid}/maps").read_bytes()


def test_a_child_that_only_reads_is_replaced_when_code_is_disassembled():
    """
    It has no decoder; the answer about instructions is that of a child that has one.
    """
    require(os.geteuid() == 0, "looking into another user's process takes root")
    library = re.search(r"/\S+/libc\.so\.6", Path("/proc/self/maps").read_text())[0]
    client.stop()  # the next forkserver has no decoder yet
    client.ahead(limits.READS)
    try:
        reading = Binary.open(Path(library))
    finally:
        client.ahead()
    function = reading.symbol("qsort")
    assert not _has_decoder(reading._parser)
    entry = reading.cheap_entry(function.address, function.size)
    assert _has_decoder(reading._parser)
    other = Binary.open(Path(library))
    assert other.cheap_entry(function.address, function.size) == entry
    named = reading.references(function.address, function.size)
    assert other.references(function.address, function.size) == named


@pytest.mark.parametrize(
    ("number", "why", "lasting"),
    [
        (signal.SIGKILL, "was killed", False),
        (signal.SIGSEGV, "ended with status", True),
        (signal.SIGPROF, "CPU time", True),
    ],
)
def test_a_child_that_dies_is_a_refusal(good: Path, number: int, why: str, lasting: bool):
    """
    Whatever ends it, the reason is given; what another process did to it is not the file's fault.
    """
    binary = Binary.open(good)
    os.kill(binary._parser._pid, number)
    for _ in range(2):
        with pytest.raises(RefusedFileError, match=why) as refused:
            binary.symbol("only")
        assert lasting is refused.value.lasting


def test_the_time_of_a_child_is_charged_to_its_user(good: Path):
    """
    Its CPU time is that of the thread that asked; a child that only waits takes none.
    """
    before = client.cpu_seconds()
    binary = Binary.open(good)
    used = client.cpu_seconds()
    assert before < used
    others = []
    thread = threading.Thread(target=lambda: others.append((ask(binary), client.cpu_seconds())))
    thread.start()
    thread.join()
    assert others[0][1] > 0
    assert used == client.cpu_seconds()


def test_all_that_parses_is_counted_once(good: Path, monkeypatch: pytest.MonkeyPatch):
    """
    What this thread and another one had parsed, and what forks; no less once that has ended.
    """
    spent = client._Spent()
    server = Server(spent.add)
    monkeypatch.setattr(client, "_server", server)
    monkeypatch.setattr(client, "_spent", spent)
    before = client.cpu_seconds()
    binary = Binary.open(good)
    others = []
    thread = threading.Thread(target=lambda: others.append((ask(binary), client.cpu_seconds())))
    thread.start()
    thread.join()
    parsed = client.cpu_seconds() - before + others[0][1]
    forked = time.clock_gettime(~client.server_pid() << 3 | 2)
    all_of_it = client.all_cpu_seconds()
    assert 0 < parsed < parsed + forked <= all_of_it + 1e-9  # a sum of floats is no exact one
    binary.close()
    server.stop()
    assert client.server_pid() is None
    assert client.all_cpu_seconds() >= all_of_it


def ask(binary: Binary) -> None:
    assert 0x1000 == binary.symbol("only").address


@pytest.mark.parametrize("number", [signal.SIGPROF, signal.SIGKILL])
def test_a_child_that_has_ended_took_all_that_it_might(good: Path, number: int):
    """
    What it took is not reported, so its user is charged with the most.
    """
    binary = Binary.open(good)
    parser = binary._parser
    watch = os.pidfd_open(parser._pid)
    before = client.cpu_seconds()
    os.kill(parser._pid, number)
    _gone(watch, parser._pid)
    with pytest.raises(RefusedFileError):
        binary.symbol("only")
    assert pytest.approx(before + parser._seconds) == client.cpu_seconds()


def _gone(watch: int, pid: int) -> None:
    """
    Wait until the forkserver has taken note of the end of *pid*.
    """
    _readable(watch)
    os.close(watch)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "it stays a zombie"


def test_a_child_that_hangs_is_a_refusal(good: Path, monkeypatch: pytest.MonkeyPatch):
    """
    An answer that does not come in time ends the child; the file is tried again another time.
    """
    monkeypatch.setattr(client, "PATIENCE", 0.2)
    binary = Binary.open(good)
    pid = binary._parser._pid
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(RefusedFileError, match=r"no answer within 0\.2 s") as refused:
        binary.symbol("only")
    assert not refused.value.lasting
    assert not Path(f"/proc/{pid}").exists()


@pytest.fixture
def saying(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """
    Children that answer their questions with these bytes, one after the other, and then end.
    """
    threads = []

    def say(*messages: bytes) -> None:
        def fork(channel: socket.socket, _kind: int) -> tuple[int, int]:
            own = channel.dup()
            thread = threading.Thread(target=_talk, args=(own, messages))
            thread.start()
            threads.append(thread)
            return 0, 0

        monkeypatch.setattr(client, "_server", SimpleNamespace(fork=fork, end=lambda _: None))

    yield say
    for thread in threads:
        thread.join(20)


def _talk(channel: socket.socket, messages: tuple[bytes, ...]) -> None:
    with channel:
        for message in (b"", *messages):
            if not _heard(channel):
                return
            try:
                channel.sendall(message)
            except OSError:
                return


def _heard(channel: socket.socket) -> bool:
    """
    Whether there was a question: a child that is not the right one for the next is let go.
    """
    head, fds, _, _ = socket.recv_fds(channel, 4, 2)
    for fd in fds:
        os.close(fd)
    if not head:
        return False
    left = struct.unpack("<I", head)[0]
    while left > 0:
        left -= len(channel.recv(left)) or left
    return True


def framed(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def answer(found: object) -> bytes:
    return framed(json.dumps(["answer", found]).encode())


@pytest.mark.parametrize(
    "message",
    [
        struct.pack("<I", U64 >> 32),
        framed(b"{"),
        framed(b"\xff\xfe"),
        framed(b"[" * 100_000),
        framed(b"9" * 10_000),
        framed(b"7"),
        framed(b'["answer"]'),
        framed(b'["limit", 7]'),
        framed(b'["nothing", {}]'),
        answer(None),
        answer([]),
        answer({}),
        answer({**FACTS, "entry": -1}),
        answer({**FACTS, "entry": 1 << 64}),
        answer({**FACTS, "entry": 1.5}),
        answer({**FACTS, "entry": True}),
        framed(json.dumps(["answer", {**FACTS, "entry": 7}]).replace("7", "NaN").encode()),
        answer({**FACTS, "machine": "x" * 65}),
        answer({**FACTS, "machine": "\ud800"}),
        answer({**FACTS, "segments": [[0, 0, 0]]}),
        answer({**FACTS, "segments": [[0, 0, 0, True, False]] * (limits.SEGMENTS + 1)}),
        answer({**FACTS, "sections": {".text": [0]}}),
        answer({**FACTS, "build_id": "../../etc"}),
        answer({**FACTS, "link": ["x", 1 << 32]}),
        answer({**{str(n): n for n in range(20)}, **FACTS}),
    ],
)
def test_nonsense_is_a_refusal(saying: Callable[..., None], good: Path, message: bytes):
    """
    A child that was taken over gets nothing past the check of types and ranges.
    """
    saying(message)
    with pytest.raises(RefusedFileError, match=r"answer|sent|end"):
        Binary.open(good)


def test_what_is_checked_is_what_a_child_answers(saying: Callable[..., None], good: Path):
    """
    The facts that the cases above are made of are believed as they are.
    """
    saying(answer(FACTS), answer({"only": ["only", 4096, 8, True]}))
    binary = Binary.open(good)
    assert ("x64", 64, 176) == (binary.machine, binary.entry, binary.file_offset(4096))
    assert 4096 == binary.symbol("only").address


@pytest.mark.parametrize(
    ("ask", "found"),
    [
        (lambda b: b.symbol("only"), {"only": ["only", -1, 8, True]}),
        (lambda b: b.symbol("only"), {"only": ["only", 0, 8, 1]}),
        (lambda b: b.symbol("only"), {str(n): ["x", 0, 8, True] for n in range(999)}),
        (lambda b: b.function_at(1), [None, None]),
        (lambda b: b.function_at(1), []),
        (lambda b: b.matching(re.compile("x")), []),
        (lambda b: b.cheap_entry(4096, 8), []),
        (lambda b: b.usdt_sites, [["erlang", "x", 0, 0]]),
        (lambda b: b.usdt_sites, [["erlang", "x", 0, 0, "y" * 600]]),
        (lambda b: b.usdt_sites, [["erlang", "x", 0, 0, ""]] * (limits.ALL_SITES + 1)),
        (lambda b: b.read(4096, 4), "00"),
        (lambda b: b.read(4096, 4), "0g0g0g0g"),
        (lambda b: b.find(".text", b"x"), [0] * (limits.FOUND + 1)),
        (lambda b: b.cheap_entry(4096, 8), [[256, [None] * 6]]),
        (lambda b: b.cheap_entry(4096, 8), [[0, ["rip"] + [None] * 5]]),
        (lambda b: b.cheap_entry(4096, 8), [[0, [None] * 5]]),
        (lambda b: b.calls(4096, 8), [[0, 0]]),
        (lambda b: b.references(4096, 8), [1 << 64]),
        (lambda b: b.frames(4096), [0, 1, [[0, [7, 1 << 31, {}, False]]]]),
        (lambda b: b.frames(4096), [0, 1, [[0, [7, 8, {"17": 0}, False]]]]),
        (lambda b: b.frames(4096), [0, 1, [[0, [7, 8, {"x": 0}, False]]]]),
    ],
)
def test_a_wrong_answer_is_a_refusal(
    saying: Callable[..., None], good: Path, ask: Callable[[Binary], object], found: object
):
    """
    Each kind of answer is held against what it may be.
    """
    saying(answer(FACTS), answer(found))
    binary = Binary.open(good)
    with pytest.raises(RefusedFileError, match="an answer that is none"):
        ask(binary)


def test_a_refusal_is_remembered_for_an_hour_if_it_is_the_files_fault():
    """
    The same file is refused with the reason from then, until the hour is over; others are not.
    """
    now = [100.0]
    refusals = Refusals(seconds=3600.0, most=2, clock=lambda: now[0])
    first, second, third = (1, 2, 3, 4), (1, 2, 3, 5), (1, 3, 3, 4)
    refusals.add(first, RefusedFileError("too large"))
    refusals.add(second, RefusedFileError("was killed", lasting=False))
    refusals.check(second)
    now[0] += 3599
    with pytest.raises(RefusedFileError, match="too large"):
        refusals.check(first)
    now[0] += 1
    refusals.check(first)
    for key in (first, second, third):
        refusals.add(key, RefusedFileError("many"))
    refusals.check(first)  # the oldest of three where two are kept
    with pytest.raises(RefusedFileError, match="many"):
        refusals.check(third)


def test_a_file_that_was_refused_is_not_parsed_again(good: Path):
    """
    An open with the same memory of refusals has the reason at once, and no child.
    """
    refusals = Refusals()
    binary = Binary.open(good, refusals=refusals)
    refusals.add(binary.key, RefusedFileError("more than we look at"))
    with pytest.raises(RefusedFileError, match="more than we look at"):
        Binary.open(good, refusals=refusals)


def test_bytes_of_a_file_are_asked_for_once(good: Path, monkeypatch: pytest.MonkeyPatch):
    """
    The next VM of a program reads the same bytes, and no child is asked for them again.
    """
    asked: list[str] = []
    ask = client.Parser._exchange

    def counted(self: client.Parser, question: str, *rest: object) -> object:
        asked.append(question)
        return ask(self, question, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(client.Parser, "_exchange", counted)
    binary = Binary.open(good)
    first, *others = (binary.read(binary.segments[0].address, 16) for _ in range(3))
    assert [first, first] == others
    assert 1 == asked.count("read")
    binary.close()


def test_a_file_whose_owner_sets_its_time_back_is_another(good: Path):
    """
    Contents that changed are not those before, though size and time of change are as they were.
    """
    status, deadline = good.stat(), time.monotonic() + 10
    contents = bytes(reversed(good.read_bytes()))
    after = before = key_of(status)
    while after == before and time.monotonic() < deadline:  # the kernel's clock has ticks
        good.write_bytes(contents)
        os.utime(good, ns=(status.st_atime_ns, status.st_mtime_ns))
        after = key_of(good.stat())
    assert before[:4] == after[:4]
    assert before != after


def test_numbers_are_of_their_range():
    """
    The bounds: the first and the last that are taken.
    """
    assert (0, U64) == (answers.integer(0), answers.integer(U64))
    for wrong in (-1, 1 << 64, True, 1.0, "1", None):
        with pytest.raises(ValueError):
            answers.integer(wrong)


def test_every_question_has_an_answer_and_keeps_no_descriptor(good: Path):
    """
    Found, beyond a limit, or unreadable: an error of the parser is an answer, too.
    """
    given = os.open("/dev/null", os.O_RDONLY)
    with good.open("rb") as file:
        questions = Questions("good", file.fileno())
        found = [
            child._answered(questions, "symbols", [["only"]], []),
            child._answered(questions, "read", [0x1000, limits.CONTENT + 1], []),
            child._answered(questions, "facts", [], [given]),  # of no use for that
        ]
    assert ["answer", "limit", "unreadable"] == [kind for kind, _ in found]
    assert {"only": ("only", 0x1000, 8, True)} == found[0][1]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(given)


def test_the_clock_of_a_child_gives_what_was_not_used():
    """
    CPU time at once, a part of the time that passes, and never more than at first.
    """
    clock = child.Clock(1000.0)
    before = signal.getsignal(signal.SIGPROF)
    signal.signal(signal.SIGPROF, signal.SIG_IGN)
    try:
        clock.start()
        given, _ = signal.getitimer(signal.ITIMER_PROF)
        clock.stop()
        assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
    finally:
        signal.signal(signal.SIGPROF, before)
    assert 999.0 < given <= 1000.1
