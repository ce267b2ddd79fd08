# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import termios
from typing import IO, TYPE_CHECKING

import pytest

from scope_ebpf.errors import OutputError
from scope_ebpf.runs.terminal import alone, keep_old, open_output, output_error

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("written", "left"),
    [
        ("one\ntwo\n", "one\ntwo\n"),
        ("one\ntwo\nhal", "one\ntwo\n"),
        ("hal", ""),
        ("", ""),
        ("one\n" + "x" * 200_000, "one\n"),
        ("x" * 200_000, ""),
    ],
    ids=["whole", "cut", "no line", "nothing", "long", "long and no line"],
)
def test_a_file_ends_with_a_whole_line(tmp_path: Path, written: str, left: str):
    """
    What was cut off in the middle of a line is taken back when the file is closed.
    """
    path = tmp_path / "events.jsonl"
    with open_output(str(path)) as output:
        output.write(written)
    assert left == path.read_text()


def test_a_pipe_is_not_cut(tmp_path: Path):
    """
    A FIFO as output is written and nothing else is done to it.
    """
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open_output(str(path)) as output:
        output.write("hal")
    assert b"hal" == os.read(reader, 100)
    os.close(reader)


def test_a_folder_that_is_not_there_is_said(tmp_path: Path):
    """
    An output that cannot be opened is an error of ours, with its cause and its path.
    """
    path = tmp_path / "no" / "events.jsonl"
    with pytest.raises(OutputError) as error, open_output(str(path)):
        pass
    assert str(error.value).startswith(
        f"cannot write the output {path}: No such file or directory; "
    )


def test_a_full_disk_is_said():
    """
    The message names the file and the cause, and says that what is there is whole.
    """
    expected = (
        "cannot write the output x.jsonl: No space left on device; "
        "what was written before is whole, free some space or choose another --output"
    )
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert expected == str(output_error(full, "x.jsonl"))


PROGRAM = """
import signal, sys
from scope_ebpf.runs.terminal import open_output
signal.signal(signal.SIGINT, lambda *_: None)
with open_output(None) as output:
    print("go", file=sys.stderr, flush=True)
    output.write("x" * 99 + "\\n" + "y" * 400_000 + "\\n")
    output.flush()
"""


def waiting_bytes(pipe: IO[bytes]) -> int:
    """
    How many bytes lie in a pipe that nobody reads yet.
    """
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_a_signal_does_not_cut_what_is_written_without_a_buffer():
    """
    With PYTHONUNBUFFERED a signal during a write to a slow pipe loses nothing.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    assert b"go\n" == program.stderr.readline()
    room = fcntl.fcntl(program.stdout, fcntl.F_GETPIPE_SZ)
    while waiting_bytes(program.stdout) < room:
        assert program.poll() is None
    program.send_signal(2)
    text, _ = program.communicate()
    assert b"x" * 99 + b"\n" + b"y" * 400_000 + b"\n" == text


def test_a_second_trace_of_the_same_target_knows_it_is_the_second():
    """
    The second run notes the first, for as long as the first is there.
    """
    pid = 2**22 + os.getpid()
    note = f"another scope-trace observes process {pid}: both count right, costs add up"
    with alone(pid) as first, alone(pid) as second:
        assert ([], [note]) == (first, second)
    with alone(pid) as later:
        assert [] == later


def test_what_can_be_done_about_an_output_depends_on_what_is_wrong():
    """
    A folder that is not there is not made by freeing space.
    """
    missing = str(output_error(OSError(errno.ENOENT, "No such file or directory"), "/no/x.html"))
    assert "there is no such folder" in missing
    assert "free some space" not in missing
    assert "free some space" in str(output_error(OSError(errno.ENOSPC, "full"), "x"))


def test_a_capture_that_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """
    The file of the last recording has another name when the next one begins, and that is said.
    """
    path = tmp_path / "run.scope"
    keep_old(str(path))
    assert "" == capsys.readouterr().err
    path.write_bytes(b"the only one")
    keep_old(str(path))
    assert b"the only one" == (tmp_path / "run.scope.old").read_bytes()
    assert not path.exists()
    assert f"{path}.old" in capsys.readouterr().err


def test_what_ends_a_second_trace_keeps_its_cause():
    """
    Beside another trace of the same target, an end has the cause that it has alone.
    """
    pid = 2**22 + os.getpid()
    end = SystemExit(1)
    end.__context__ = BrokenPipeError()  # as rich ends a program whose reader has gone
    with alone(pid), pytest.raises(SystemExit), alone(pid):
        raise end
    assert isinstance(end.__context__, BrokenPipeError)
