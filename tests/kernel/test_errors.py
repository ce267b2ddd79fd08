# SPDX-License-Identifier: Apache-2.0
"""
Each error is one clear line with its own exit code, and nothing is left behind.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import beams_run
import pytest
from tracing import (
    PATIENCE,
    SCOPE_TRACE,
    Outcome,
    in_kernel,
    nothing_left,
    require_root,
    scope_trace,
    starting,
    trace,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65534
#: What BPF itself takes, without the right to look into processes.
BPF_ONLY = "-all,+sys_admin,+bpf,+perfmon,+sys_resource"


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    require_root()
    before = in_kernel()
    yield
    nothing_left(before)


def refused(outcome: Outcome) -> tuple[int, str]:
    """
    Exit code and message of a command that did nothing; the message must be all that it said.
    """
    assert "" == outcome.output
    assert 1 == outcome.errors.count("\n"), outcome.errors
    return outcome.code, outcome.errors.strip()


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_pid_that_is_gone():
    """
    A process that has ended and was reaped is said not to exist, with exit code 3.
    """
    process = subprocess.Popen(["true"])
    process.wait()
    expected = (3, f"scope-trace: there is no process {process.pid}")
    assert expected == refused(scope_trace("--pid", str(process.pid)))


def test_a_zombie():
    """
    A process that has ended, but was not reaped, has a message of its own, with exit code 3.
    """
    process = subprocess.Popen(["true"])
    wait_until(lambda: state(process.pid) == "Z", "the end of true")
    outcome = scope_trace("--pid", str(process.pid))
    process.wait()
    said = f"scope-trace: process {process.pid} has ended; its parent has not noticed yet"
    assert (3, said) == refused(outcome)


def test_a_process_that_is_no_beam():
    """
    A process that runs something else is named by its program, with exit code 4.
    """
    process = subprocess.Popen(["sleep", "600"])
    try:
        exe = Path(f"/proc/{process.pid}/exe")
        wait_until(lambda: exe.readlink().name != Path(sys.executable).resolve().name, "sleep")
        outcome = scope_trace("--pid", str(process.pid))
        said = f"scope-trace: process {process.pid} runs {exe.readlink()}, which is no BEAM"
    finally:
        process.kill()
        process.wait()
    assert (4, said) == refused(outcome)


def kernel_thread() -> int | None:
    """
    A thread of the kernel, which has the kthreadd of pid 2 as its parent.
    """
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[6]) & 0x00200000:  # PF_KTHREAD
                return int(entry.name)
    return None


def test_a_thread_of_the_kernel():
    """
    A thread of the kernel is no BEAM, with exit code 4.
    """
    pid = kernel_thread()
    beams_run.require(pid, "this pid namespace has no kernel threads")
    expected = (4, f"scope-trace: process {pid} is a thread of the kernel, no BEAM")
    assert expected == refused(scope_trace("--pid", str(pid)))


def test_a_thread_of_a_beam(stock: beams_run.Beam):
    """
    The number of a thread is refused with the number of its process, exit code 3.
    """
    threads = sorted(int(p.name) for p in Path(f"/proc/{stock.pid}/task").iterdir())
    thread = next(tid for tid in threads if tid != stock.pid)
    said = f"scope-trace: {thread} is a thread of process {stock.pid}: use that number"
    assert (3, said) == refused(scope_trace("--pid", str(thread)))


def test_without_root(stock: beams_run.Beam):
    """
    Without privileges nothing is tried: one line that says how, exit code 5.
    """
    drop = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    said = "scope-trace: attaching BPF programs needs root: run the same with sudo"
    assert (5, said) == refused(scope_trace("--pid", str(stock.pid), prefix=drop))


@contextmanager
def somebody_elses_beam() -> Iterator[beams_run.Beam]:
    """
    A VM that runs as the user nobody.
    """
    this = beams_run.build("stock25")
    become = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    modules = str(beams_run.compiled("stock25"))
    command = [*become, *this.erl, "-noinput", "-pa", modules, "-s", "planted"]
    environment = {**this.environment, "HOME": "/tmp"}
    with beams_run._started(command, nested=False, env=environment) as beam:
        beam.expect("ready")
        yield beam


def test_another_users_beam_with_the_right_to_look():
    """
    Root traces the VM of any user.
    """
    with somebody_elses_beam() as beam, trace(beam.pid, "--events", "spawn") as run:
        beam.plant("spawns 23")
        assert 23 == run.stop().events["spawn"]["count"]


def test_another_users_beam_without_the_right_to_look():
    """
    A user who may load BPF programs, but not look into other users' processes, learns what is
    missing, with exit code 6.
    """
    drop = ("setpriv", f"--bounding-set={BPF_ONLY}", "--inh-caps=-all")
    with somebody_elses_beam() as beam:
        outcome = scope_trace("--pid", str(beam.pid), prefix=drop)
        said = (
            f"scope-trace: process {beam.pid} may not be looked into: "
            "root lacks CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH here"
        )
        assert (6, said) == refused(outcome)


def test_root_of_a_user_namespace_is_reported():
    """
    It has every capability there, and may not look outside.
    """
    with somebody_elses_beam() as beam:
        outcome = scope_trace("--pid", str(beam.pid), prefix=("unshare", "--map-root-user"))
        said = (
            f"scope-trace: process {beam.pid} is outside of the user namespace of this root: run "
            "as the host's root"
        )
        assert (6, said) == refused(outcome)


def test_an_event_that_no_hook_can_see(stock: beams_run.Beam):
    """
    A trace for which no hook is there ends at once with the reasons, exit code 11.
    """
    outcome = scope_trace("--pid", str(stock.pid), "--events", "spawn", "--via", "usdt")
    said = (
        f"scope-trace: process {stock.pid} (OTP 25) has no hook for what was asked for "
        "(spawn: the binary has no USDT probe process__spawn); "
        f"`scope-trace doctor {stock.pid}` lists every hook"
    )
    assert (11, said) == refused(outcome)


@pytest.fixture
def upgradable(private_emulator: Path, tmp_path: Path) -> Path:
    """
    Another copy of the emulator, which a test may replace.
    """
    folder = tmp_path / "bin"
    shutil.copytree(private_emulator, folder)
    return folder


@pytest.mark.parametrize("how", ["another file", "no file"])
def test_a_beam_that_was_replaced_on_disk(upgradable: Path, how: str):
    """
    A VM whose file an upgrade has replaced or removed is traced by the file that it runs.
    """
    with beams_run.planted("usdt25", env={"BINDIR": str(upgradable)}) as beam:
        if how.startswith("another"):
            new = upgradable / "beam.smp.dpkg-new"
            shutil.copy("/bin/true", new)
            new.rename(upgradable / "beam.smp")
        else:
            (upgradable / "beam.smp").unlink()
        with trace(beam.pid, "--events", "spawn,exit") as run:
            beam.plant("spawns 23")
            document = run.stop().document
    counts = {name: event["count"] for name, event in document["events"].items()}
    assert {"spawn": 23, "exit": 23} == counts
    assert f"{upgradable}/beam.smp (deleted)" == document["target"]["exe"]


def test_a_beam_in_another_mount_and_pid_namespace():
    """
    A VM in a container of another distribution is traced from the host, whose files it has not:
    every event of its release, each as often as it was planted.
    """
    wanted = "spawn,exit,send,receive,hibernate,port_open,port_close"
    with beams_run.planted("trixie27") as beam:
        with trace(beam.pid, "--events", wanted) as run:
            for command in (
                "spawns 23",
                "exits error 7",
                "messages 46",
                "hibernates 5",
                "ports 11",
            ):
                beam.plant(command)
            document = run.stop().document
            for kind in ("mnt", "pid"):
                ours, its = (Path(f"/proc/{who}/ns/{kind}") for who in ("self", beam.pid))
                assert ours.readlink() != its.readlink()
        with trace(beam.pid, "--events", "code_load,port_busy") as run:
            beam.plant("code_loads 3")
            beam.plant("busy_port 4")
            others = run.stop().document
    assert ("27", "jit") == (document["target"]["otp_release"], document["target"]["flavor"])
    events = document["events"] | others["events"]
    found = {name: event["count"] for name, event in events.items()}
    # A hibernation takes one process, and a message each time; each command is received.
    planted = {
        "spawn": 23 + 7 + 1,
        "exit": 23 + 7 + 1,
        "send": 46 + 5,
        "receive": 46 + 5 + 5,
        "hibernate": 5,
        "port_open": 11,
        "port_close": 11,
        "code_load": 3,
        "port_busy": 1,
    }
    assert planted == found
    assert (24, 7) == tuple(events["exit"]["by_class"][name] for name in ("normal", "error"))


def test_scope_trace_in_a_pid_namespace_of_its_own():
    """
    Within a container scope-trace sees the VM of that container, by the number it has there.
    """
    this = beams_run.build("stock25")
    unshare = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    modules = str(beams_run.compiled("stock25"))
    command = [*unshare, *this.erl, "-noinput", "-pa", modules, "-s", "planted"]
    with beams_run._started(command, nested=True, env=this.environment) as beam:
        beam.expect("ready")
        status = Path(f"/proc/{beam.pid}/status").read_text()
        inner = status.partition("NSpid:")[2].split("\n")[0].split()[-1]
        enter = ("nsenter", "--target", str(beam.pid), "--pid", "--mount")
        with trace(int(inner), "--events", "spawn,exit", prefix=enter) as run:
            beam.plant("spawns 23")
            (child,) = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
            os.kill(int(child), signal.SIGINT)
            document = run.wait().document
    assert int(inner) == document["target"]["pid"] != beam.pid
    counts = {name: event["count"] for name, event in document["events"].items()}
    assert {"spawn": 23, "exit": 23} == counts


def test_two_traces_of_one_target(stock: beams_run.Beam):
    """
    Two traces at once count both right, and the second says that it is not alone.
    """
    with (
        trace(stock.pid, "--events", "spawn,send") as first,
        trace(stock.pid, "--events", "spawn,exit") as second,
    ):
        stock.plant("spawns 23")
        one, two = first.stop().document, second.stop().document
    assert (23, 23) == tuple(d["events"]["spawn"]["count"] for d in (one, two))
    assert (0, 23) == (one["events"]["send"]["count"], two["events"]["exit"]["count"])
    note = f"another scope-trace observes process {stock.pid}: both count right, costs add up"
    assert ([], [note]) == (one["notes"], two["notes"])


def test_the_end_of_one_trace_leaves_the_other(stock: beams_run.Beam):
    """
    A trace that ends, or is killed, takes nothing from another one of the same target.
    """
    with trace(stock.pid, "--events", "spawn,exit") as lasting:
        with trace(stock.pid, "--events", "spawn") as ending:
            ending.stop()
        stock.plant("spawns 23")
        with trace(stock.pid, "--events", "spawn") as killed:
            killed.close()
        stock.plant("spawns 23")
        assert 46 == lasting.stop().events["spawn"]["count"]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """
    A file system with room for some hundred events.
    """
    folder = tmp_path / "tiny"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tiny", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_under_a_stream(stock: beams_run.Beam, tiny_disk: Path):
    """
    A full disk ends a stream with exit code 10; what is in the file is whole lines, and the report
    of all that was seen is there.
    """
    path = tiny_disk / "events.jsonl"
    with trace(stock.pid, "--events", "spawn", "--output", str(path), form="jsonl") as run:
        stock.plant("spawns 23000")
        outcome = run.wait()
    said = (
        f"scope-trace: cannot write the output {path}: No space left on device; "
        "what was written before is whole, free some space or choose another --output"
    )
    assert (10, said) == (outcome.code, outcome.complaints[-1])
    text = path.read_text()
    assert text.endswith("}\n")
    lines = [json.loads(line) for line in text.splitlines()]
    assert 100 < len(lines) < 23000
    assert {"spawn"} == {line["event"] for line in lines}
    assert "stopped: output failed, after" in outcome.errors
    assert 100 < outcome.reported("spawn")[0] <= 23000


def test_a_full_disk_under_a_document(stock: beams_run.Beam, tiny_disk: Path):
    """
    A document for which there is no room is an error with exit code 10, not half a document.
    """
    (tiny_disk / "filler").write_bytes(bytes(60 * 1024))
    path = tiny_disk / "run.json"
    path.touch()
    (tiny_disk / "more").write_bytes(bytes(4 * 1024))
    with trace(stock.pid, "--events", "spawn", "--output", str(path)) as run:
        outcome = run.stop()
    assert 10 == outcome.code
    assert f"cannot write the output {path}: No space left on device" in outcome.complaints[-1]
    assert "" == path.read_text()


def test_an_output_in_a_folder_that_is_not_there(stock: beams_run.Beam, tmp_path: Path):
    """
    An output that cannot be opened is said before anything is attached, exit code 10.
    """
    path = tmp_path / "no" / "run.json"
    outcome = scope_trace("--pid", str(stock.pid), "--output", str(path))
    code, said = refused(outcome)
    assert (10, True) == (code, f"{path}: No such file or directory" in said)


@pytest.mark.parametrize("library", ["numpy", "libbpf", "libelf"] * 3)
def test_ctrl_c_before_it_counts(stock: beams_run.Beam, library: str):
    """
    Ctrl-C at any moment of the start ends it without a traceback, and with nothing attached.
    """
    with starting(stock.pid) as run:
        wait_until(
            lambda: library in Path(f"/proc/{run.pid}/maps").read_text() or run.process.poll(),
            "the start",
        )
        outcome = run.stop()
    assert "Traceback" not in outcome.errors
    assert outcome.code in (0, 130)


def test_the_host_is_fine(stock: beams_run.Beam):
    """
    The doctor finds nothing wrong with a host on which all the other tests pass, and shows a hook
    for each event that is there.
    """
    outcome = scope_trace("doctor", str(stock.pid), "--format", "json")
    assert [] == [fact for fact in outcome.document["host"] if fact["problem"]]
    hooks = {row["event"]: (row["state"], row["via"]) for row in outcome.document["hooks"]}
    assert ("on", "tracepoint") == hooks.pop("thread")
    assert {("on", "symbol")} == set(hooks.values())
    assert stock.pid == outcome.document["target"]["pid"]


def test_every_beam_is_listed(stock: beams_run.Beam):
    """
    The list has the VM with its release, its kind of emulator and what kind of hooks it has.
    """
    rows = scope_trace("list", "--format", "json").document["beams"]
    (row,) = [row for row in rows if row["pid"] == stock.pid]
    expected = {"otp_release": "25", "flavor": "jit", "hooks": "symbols", "node": "nonode@nohost"}
    assert expected == {key: row[key] for key in expected}
    assert len(os.sched_getaffinity(stock.pid)) == row["schedulers"]
    assert 0 < row["uptime_seconds"]


def test_the_installed_command_is_the_same():
    """
    The console script of the package runs the command that the other tests run.
    """
    script = Path(sys.executable).with_name("scope-trace")
    beams_run.require(script.exists(), "the package is not installed")
    by_name = subprocess.run([script, "--version"], capture_output=True, text=True)
    by_module = subprocess.run([*SCOPE_TRACE, "--version"], capture_output=True, text=True)
    assert (0, by_module.stdout) == (by_name.returncode, by_name.stdout)


#: A command line for each command; @ stands for the VM.
READ_BY_NOBODY = (
    "@ -d 300ms", "@ -d 300ms -f json", "@ 200ms 9", "@ --stream", "list", "list -f json",
    "doctor @", "top @", "top @ --once", "ps @ init", "schedulers @", "schedulers @ -f json",
    "profile @ -d 300ms", "calls @ lists:map/2 -d 500ms", "run --hooks", "--help", "--version",
)  # fmt: skip


@pytest.mark.parametrize("both", [False, True], ids=["stdout", "both"])
def test_every_command_ends_well_when_nobody_reads_it(stock: beams_run.Beam, both: bool):
    """
    A reader that has gone, of standard output or of both, is no error of any command: it ends by
    itself with 0 and without a word.
    """
    reader, pipe = os.pipe()
    os.close(reader)
    try:
        runs = {
            line: subprocess.Popen(
                [*SCOPE_TRACE, *line.replace("@", str(stock.pid)).split()],
                stdout=pipe,
                stderr=pipe if both else subprocess.PIPE,
            )
            for line in READ_BY_NOBODY
        }
    finally:
        os.close(pipe)
    said = {line: run.communicate(timeout=PATIENCE)[1] or b"" for line, run in runs.items()}
    assert {} == {line: said[line].decode() for line, run in runs.items() if run.returncode}
    assert [] == [line for line, text in said.items() if b"Traceback" in text]
