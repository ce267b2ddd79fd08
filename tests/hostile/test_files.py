# SPDX-License-Identifier: Apache-2.0
"""
Programs, debug files and libraries that a tenant chose: what is opened, and what a look may take.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pty
import re
import selectors
import shutil
import stat
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from beams_run import PATIENCE, require
from bombs import BOMBS, frames, look
from fakes import running, with_section
from test_beam_elf import STRTAB, SYMTAB, elf, note, stapsdt, table
from test_daemon import daemon
from tracing import require_root, wait_until

from scope_ebpf.beam.elf import binary
from scope_ebpf.beam.elf.binary import Binary
from scope_ebpf.errors import RefusedFileError
from scope_ebpf.sandbox import files, limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_IN_OPEN = 0x20
_EVENT = struct.Struct("iIII")


class Witness:
    """
    Sees each open of one of some files; an ``O_PATH`` descriptor is no open.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._names: dict[int, str] = {}

    def watch(self, path: Path) -> None:
        number = self._libc.inotify_add_watch(self._fd, os.fsencode(path), _IN_OPEN)
        assert number >= 0, path
        self._names[number] = path.name

    def opened(self) -> set[str]:
        """
        The names of those that were opened since the last time.
        """
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._fd, 1 << 16)
            rows = (_EVENT.unpack_from(data, at) for at in range(0, len(data), _EVENT.size))
            return {self._names[number] for number, *_ in rows}
        return set()

    def close(self) -> None:
        os.close(self._fd)


class Tenant(NamedTuple):
    """
    A folder with programs that have no symbols, each with a debug file of its own.

    They look like no BEAM: an older daemon that observes this host would read their files.
    """

    programs: dict[str, Path]
    witness: Witness


@pytest.fixture(scope="module")
def tenant(hostile_folder: Path) -> Iterator[Tenant]:
    require_root()
    folder = hostile_folder / "tenants-files"
    folder.mkdir()
    ours, theirs = pty.openpty()
    witness, programs = Witness(), {}
    for name, make in ODD.items():
        debug = folder / f"{name}.debug"
        make(debug, theirs)
        programs[name] = stripped(Path("/bin/sleep"), folder, name)
        if name not in ("magic", "terminal"):
            witness.watch(debug)
    witness.watch(Path(os.ttyname(theirs)))
    yield Tenant(programs, witness)
    witness.close()
    os.close(ours)
    os.close(theirs)
    shutil.rmtree(folder)


def debug_file() -> bytes:
    rows, names = table({"secret": (0x1000, 8, 2)})
    return elf({".symtab": (SYMTAB, 0, rows), ".strtab": (STRTAB, 0, names)})


def stripped(program: Path, folder: Path, name: str) -> Path:
    """
    *program* without symbols, with a link to ``NAME.debug`` and the checksum of an honest one.
    """
    bare, link = folder / f"{name}.bare", folder / f"{name}.link"
    subprocess.run(
        ["objcopy", "--strip-all", "--remove-section=.note.gnu.build-id", program, bare], check=True
    )
    text = f"{name}.debug".encode() + b"\0"
    link.write_bytes(text.ljust(-(-len(text) // 4) * 4, b"\0") + struct.pack("<I", crc()))
    return with_section(bare, folder / name, ".gnu_debuglink", link)


def crc() -> int:
    return zlib.crc32(debug_file())


def hole(path: Path, size: int) -> None:
    path.write_bytes(debug_file())
    os.truncate(path, size)


def device(major: int, minor: int) -> Callable[..., None]:
    return lambda path, _: os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(major, minor))


#: What a tenant puts where its debug file should be.
ODD: dict[str, Callable[[Path, int], None]] = {
    "honest": lambda path, _: path.write_bytes(debug_file()),
    "hole": lambda path, _: hole(path, 4 << 40),
    "fifo": lambda path, _: os.mkfifo(path),
    "null": device(1, 3),
    "zero": device(1, 5),
    "console": device(136, 0),
    "terminal": lambda path, theirs: path.symlink_to(os.ttyname(theirs)),
    "magic": lambda path, _: path.symlink_to("/proc/self/exe"),
}


@contextlib.contextmanager
def all_running(programs: dict[str, Path], *words: str) -> Iterator[dict[str, int]]:
    """
    Each program as nobody; their pids, once each runs its own file.
    """
    with contextlib.ExitStack() as stack:
        pids = {}
        for name, path in programs.items():
            pid = pids[name] = stack.enter_context(running(path, *words)).pid
            wait_until(lambda e=Path(f"/proc/{pid}/exe"), p=path: e.readlink() == p, "the exec")
        yield pids


def test_of_debug_files_only_a_file_below_the_root_is_opened(tenant: Tenant):
    """
    A command opens the debug file that is one, and finds its symbol; no other is opened at all.
    """
    tenant.witness.opened()
    with all_running(tenant.programs, "1000") as pids:
        exes = {name: Path(f"/proc/{pid}/exe") for name, pid in pids.items()}
        found = {name: Binary.open(exe).symbol("secret") for name, exe in exes.items()}
    assert {"honest"} == {name for name, symbol in found.items() if symbol}
    assert {"honest.debug"} == tenant.witness.opened()


def test_of_libraries_only_a_file_below_the_root_is_opened(tenant: Tenant):
    """
    A library's path is the tenant's word: what is no file is refused, and not opened.
    """
    tenant.witness.opened()
    with all_running({"honest": tenant.programs["honest"]}, "1000") as pids:
        for name in tenant.programs:
            path = str(tenant.programs[name].with_name(f"{name}.debug"))
            if name == "honest":
                assert Binary.below_root(pids["honest"], path).symbol("secret")
                continue
            with pytest.raises((RefusedFileError, OSError)):
                Binary.below_root(pids["honest"], path)
    assert {"honest.debug"} == tenant.witness.opened()


_LEADER = """
import sys; from pathlib import Path
from scope_ebpf.beam.elf.binary import Binary
from scope_ebpf.errors import RefusedFileError
from scope_ebpf.sandbox import files, limits
program, pid, library = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
assert Binary.open(program).symbol("secret") is None
try: Binary.below_root(pid, library)
except (OSError, RefusedFileError): pass
print(open("/proc/self/stat").read().rpartition(")")[2].split()[4])
"""


def test_a_link_to_a_terminal_gives_it_to_no_process(tenant: Tenant):
    """
    A debug file and a library that are a tenant's terminal do not become that of their reader.
    """
    program = tenant.programs["terminal"]
    with all_running({"terminal": program}, "1000") as pids:
        words = (f"/proc/{pids['terminal']}/exe", str(pids["terminal"]), f"{program}.debug")
        done = subprocess.run(
            [sys.executable, "-c", _LEADER, *words],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    assert "0\n" == done.stdout


#: Prints each file that a daemon and its children open; the daemon keeps its process number.
_STRACE = ("setsid", "strace", "-D", "-f", "-qq", "-s", "4096", "-e", "trace=open,openat,openat2")


def test_the_daemon_opens_no_debug_file_and_refuses_a_bomb(
    hostile_folder: Path, fake: Path, tmp_path: Path
):
    """
    Fakes with odd debug files are observed without those; one that is a bomb is refused by name.
    """
    require_root()
    require(shutil.which("strace"), "strace is the witness")
    folder = hostile_folder / "fakes"
    folder.mkdir()
    programs = {name: stripped(fake, folder, name) for name in ("hole", "fifo", "null")}
    # As little as is too large: an older daemon that observes this host reads all of it.
    hole(folder / "hole.debug", files.MAX_DEBUG_FILE + 1)
    os.mkfifo(folder / "fifo.debug")
    ODD["null"](folder / "null.debug", 0)
    notes = folder / "notes"
    notes.write_bytes(note(b"stapsdt\0", 3, stapsdt(1, 2, 3)) * (limits.SITES + 1))
    bomb = with_section(programs["hole"], folder / "bomb", ".note.stapsdt", notes)
    config = f'scan_interval = "200ms"\nmin_age = 0\ninclude_paths = ["^{folder}/"]\n'
    log = tmp_path / "strace"
    with daemon(config, tmp_path, (*_STRACE, "-o", str(log))) as started:
        with all_running({**programs, "bomb": bomb}) as pids:
            said = opened(started.process, pids["bomb"])
            for name in programs:
                started.until(pids[name], bool)
        assert 0 == started.end()[0]
    assert "more than 4,096 USDT sites" in said
    opens = log.read_text().splitlines()
    for pid in pids.values():
        of_exe = [line for line in opens if f'"/proc/{pid}/exe"' in line]
        assert of_exe
        assert [] == [line for line in of_exe if "O_PATH" not in line]
    assert [] == [line for line in opens if ".debug" in line or f'"{folder}' in line]


def opened(process: subprocess.Popen[bytes], pid: int) -> str:
    """
    Why a daemon refuses *pid*, by its log.
    """
    text, deadline = b"", time.monotonic() + PATIENCE
    with selectors.DefaultSelector() as selector:
        selector.register(process.stderr, selectors.EVENT_READ)
        while True:
            found = re.search(rf'refused.*pid={pid} why="([^"]*)"', text.decode())
            if found:
                return found[1]
            left = deadline - time.monotonic()
            assert selector.select(max(0.0, left)), f"never refused: {text.decode()}"
            text += os.read(process.stderr.fileno(), 1 << 16)


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.__name__)
def test_a_bomb_is_refused_by_the_limit_that_it_meets(
    tmp_path: Path, bomb: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
):
    """
    What is expensive to read is refused with the name of the limit, or read within all of them.
    """
    if "CPU time" not in BOMBS[bomb]:  # a slow machine meets the limit of time before any other
        monkeypatch.setattr(binary, "_LOOK", 60.0)
    path = tmp_path / "bomb"
    bomb(path)
    assert re.search(BOMBS[bomb] or "^$", look(path))


def test_a_frame_description_of_endless_rows_is_cut(tmp_path: Path):
    """
    The bomb of frames is a description that is read, so many rows of it.
    """
    path = tmp_path / "bomb"
    frames(path)
    start, end, rows = Binary.open(path).frames(0x1001)
    assert (0x1000, 0x1000 + 60_000, 4096) == (start, end, len(rows))
