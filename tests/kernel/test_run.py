# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import re
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import beams_run
import pytest
import tracing
from beams_run import PATIENCE, require
from tracing import SCOPE_TRACE, Run, is_full, scope_trace, wait_until

from scope_ebpf import events
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.kernel.bpf import stats
from scope_ebpf.user_probes import hooks, source

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = Path(__file__).parents[2] / "docs/examples/run"

EVERY_SEND = """
#include "beam.h"

BEAM_EVENT(sent, eterm receiver; eterm tag; char thread[16];);

int on_send_local(struct pt_regs *ctx, u64 sender, u64 receiver, u64 locks, u64 message)
{
        struct sent event = {};

        if (FILTER && !beam_same(beam_tag(beam_term(message)), beam_atom("planted_call")))
                return 0;
        event.receiver = beam_pid(receiver);
        event.tag = beam_tag(beam_term(message));
        bpf_get_current_comm(event.thread, sizeof(event.thread));
        beam_emit(sent, beam_pid(sender), event);
        return 0;
}
"""


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    """
    Without bcc there is nothing to be tested but that it is missing.
    """
    tracing.require_root()
    found = list(Path("/usr/lib/python3").glob("dist-packages/bcc/__init__.py"))
    require(found, "python3-bpfcc is not installed; packaging/install-deps.sh test installs it")


@pytest.fixture(scope="module", params=["stock25", "trixie27"])
def inserting(request: pytest.FixtureRequest) -> Iterator[beams_run.Beam]:
    with beams_run.start_beam(request.param, "-s", "inserting") as beam:
        beam.expect("ready")
        yield beam


@pytest.fixture
def every_send(tmp_path: Path) -> Path:
    path = tmp_path / "every_send.c"
    path.write_text(EVERY_SEND)
    return path


@contextmanager
def running(
    pid: int,
    probe: Path,
    *words: str,
    form: str = "jsonl",
    output: int | None = None,
    **more,
) -> Iterator[Run]:
    """
    A run of *probe* without an end, attached.
    """
    words = ("run", str(probe), "--pid", str(pid), "--duration", "0", "--format", form, *words)
    run = Run([*SCOPE_TRACE, *words], output, **more)
    try:
        run.wait_for_counting()
        yield run
    finally:
        run.close()


def refused(pid: int, folder: Path, text: str, code: int) -> str:
    """
    What is said of a probe that must end with *code* and without a trace of Python.
    """
    path = folder / "bad.c"
    path.write_text(text)
    done = scope_trace("run", str(path), "--pid", str(pid), "--duration", "1")
    assert code == done.code, done.errors
    assert done.errors.startswith("scope-trace: "), done.errors
    assert "Traceback" not in done.errors
    return done.errors


def test_big_gc_sees_each_collection(stock: beams_run.Beam):
    """
    The example counts the 23 planted collections of one process, with its name and its heap.
    """
    with running(stock.pid, EXAMPLES / "big_gc.c", "-D", "LEAST_WORDS=100000") as run:
        stock.plant("gc_major 23")
        outcome = run.stop()
    mine = [line for line in outcome.lines if line["who"] == "planted_main"]
    assert 23 == len(mine)
    assert {"big_gc"} == {line["event"] for line in mine}
    # The VM rounds 100,000 words up to the next size that it has.
    assert all(line["heap_words_bytes"] >= 800_000 for line in mine)
    assert all(0 < line["duration_seconds"] < 60 for line in mine)
    assert all(re.fullmatch(r"<0\.\d+\.0>", line["caller"]) for line in mine)


def test_who_sends_what_counts_by_receiver_and_tag(inserting: beams_run.Beam):
    """
    The example distinguishes the tags of messages, tuples and atoms, and names both ends.
    """
    _, main, sink = inserting.ask("who").split()
    with running(inserting.pid, EXAMPLES / "who_sends_what.c") as run:
        inserting.plant("calls 23")
        outcome = run.stop()
    from_main = {
        line["tag"]: (line["sender"], line["receiver"], line["n"])
        for line in outcome.lines
        if line["count"] == "messages" and line["sender"].startswith(main)
    }
    ends = (f"{main} planted_main", f"{sink} planted_sink", 23)
    assert {"planted_call": ends, "planted_cast": ends} == from_main


def test_ets_inserts_times_a_bif(inserting: beams_run.Beam):
    """
    The example sees 23 inserts into a named table and 23 into another, and the time of all.
    """
    with running(inserting.pid, EXAMPLES / "ets_inserts.c") as run:
        inserting.plant("inserts 23")
        outcome = run.stop()
    tables = {line["table"]: line["n"] for line in outcome.lines if line.get("count") == "tables"}
    assert {"planted_table": 23, None: 23} == tables
    (histogram,) = [line for line in outcome.lines if line.get("histogram") == "insert"]
    assert 46 == histogram["count"]


def test_an_atom_can_be_compared_with(inserting: beams_run.Beam, every_send: Path):
    """
    beam_atom() is the VM's own word for that name: half of the messages have it.
    """
    with running(inserting.pid, every_send, "-D", "FILTER=1") as run:
        inserting.plant("calls 23")
        outcome = run.stop()
    assert ["planted_call"] * 23 == [line["tag"] for line in outcome.lines]
    assert all(re.match(r"(erts_sched|\d+_scheduler)", line["thread"]) for line in outcome.lines)


def test_a_text_report_names_and_counts(inserting: beams_run.Beam):
    """
    A person sees a table of what was counted, and at the end what was lost and what it cost.
    """
    with running(inserting.pid, EXAMPLES / "who_sends_what.c", form="text") as run:
        inserting.plant("calls 23")
        outcome = run.stop()
    assert re.search(r"planted_main .*planted_sink .*planted_call +23\n", outcome.output)
    assert all(len(line) <= 80 for line in outcome.output.splitlines())
    last = outcome.errors.splitlines()[-3:]
    assert last[0].startswith("stopped: interrupted, after ")
    assert "lost: 0 events" == last[1]
    assert re.match(r"cost: \d+ hits, 0\.\d{3} s of CPU", last[2])


def test_it_ends_after_so_many_events(stock: beams_run.Beam, every_send: Path):
    """
    --max-events is a promise, also under a storm: not one line more.
    """
    words = ("run", str(every_send), "--pid", str(stock.pid), "--duration", "0")
    words += ("-D", "FILTER=0", "--max-events", "23", "--format", "jsonl")
    assert "storming" == stock.ask("storm pingpong 2")
    try:
        done = scope_trace(*words)
    finally:
        stock.send("stop")
        assert stock.readline().startswith("done storm")
    assert 23 == len(done.lines)
    assert "stopped: 23 events" in done.errors


def test_what_is_lost_is_counted(stock: beams_run.Beam, every_send: Path):
    """
    Events seen and events lost are together as many as the probe's runs.
    """
    with running(stock.pid, every_send, "-D", "FILTER=0", "--ring", "1") as run:
        assert "storming" == stock.ask("storm pingpong 2")
        run.send(signal.SIGSTOP)
        room = (1 << 20) // source.RECORD.itemsize
        wait_until(lambda: hits_of(run.pid) > 3 * room, "more hits than the ring holds")
        stock.send("stop")
        assert stock.readline().startswith("done storm")
        run.send(signal.SIGCONT)
        outcome = run.stop()
    lost = int(
        re.search(r"^lost: ([\d,]+) events", outcome.errors, re.MULTILINE)[1].replace(",", "")
    )
    hits = int(re.search(r"^cost: ([\d,]+) hits", outcome.errors, re.MULTILINE)[1].replace(",", ""))
    assert lost > 0
    assert len(outcome.lines) + lost == hits


def hits_of(pid: int) -> int:
    """
    How often the programs of a process ran, as the kernel says.
    """
    total = 0
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        text = entry.read_text()
        if "prog_type:\t2" in text:
            total += int(re.search(r"^run_cnt:\s*(\d+)", text, re.MULTILINE)[1])
    return total


def test_an_expensive_probe_is_warned_about(stock: beams_run.Beam):
    """
    A probe that costs the VM more than a hundredth of its CPU says so while it runs.
    """
    assert "storming" == stock.ask("storm pingpong 2")
    try:
        done = scope_trace(
            *("run", str(EXAMPLES / "who_sends_what.c"), "--pid", str(stock.pid)),
            *("--duration", "2", "--format", "jsonl"),
        )
    finally:
        stock.send("stop")
        assert stock.readline().startswith("done storm")
    assert 0 == done.code
    assert 1 == len(re.findall("this probe costs the VM .* more than 1%", done.errors))


def test_a_target_that_ends_ends_the_run(every_send: Path):
    """
    What was seen until then is reported, and the exit code says that the target has ended.
    """
    with beams_run.planted("stock25") as beam, running(beam.pid, every_send, "-DFILTER=0") as run:
        beam.plant("messages 23")
        beam.stop()
        outcome = run.wait()
    assert 9 == outcome.code
    assert 23 == len([line for line in outcome.output.splitlines() if '"sent"' in line])
    assert "ended while it was traced" in outcome.errors


def test_a_kill_leaves_nothing(every_send: Path, private_emulator: Path):
    """
    After a SIGKILL there is no program, map, link or breakpoint, and the VM works on.
    """
    # A file of its own, so that every breakpoint in it is ours.
    with beams_run.planted("usdt25", env={"BINDIR": str(private_emulator)}) as beam:
        before = tracing.in_kernel()
        target = inspect(beam.pid)
        address = hooks.attachments(target.binary, target.flavor, "on_send_local")[0].address
        places = {target.base + address: target.binary.read(address, 1)[0]}
        with running(beam.pid, every_send, "-D", "FILTER=0") as run:
            assert 1 == tracing.breakpoints(beam.pid, places)
            run.send(signal.SIGKILL)
            run.process.wait()
        wait_until(lambda: not tracing.breakpoints(beam.pid, places), "the end of its breakpoint")
        tracing.nothing_left(before)
        beam.plant("messages 23")


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (
            "int on_gc_entry(struct pt_regs *ctx)\n{\n\treturn nonsense;\n}\n",
            18,
            "bad.c:3:9: error",
        ),
        ("int on_full_moon(struct pt_regs *ctx) { return 0; }", 18, "is the name of no hook"),
        ("int usdt__gc_minor__start(struct pt_regs *ctx) { return 0; }", 18, "USDT probes cannot"),
        (
            "int uprobe__process_port_unblocked(struct pt_regs *ctx) { return 0; }",
            11,
            "the VM has no function process_port_unblocked",
        ),
        ("int uprobe__erts_atom_table(struct pt_regs *ctx) { return 0; }", 11, "has no function"),
        (
            'BPF_TABLE_PINNED("hash", u64, u64, kept, 8, "/sys/fs/bpf/kept");',
            18,
            "pins a map (BPF_TABLE_PINNED)",
        ),
        (
            'struct { __uint(type, 1); __uint(pinning, 1); } kept SEC(".maps");',
            18,
            "pins a map (pinning)",
        ),
        ("int kprobe__do_exit(struct pt_regs *ctx) { return 0; }", 18, "is the name of no hook"),
        (
            '#include "beam.h"\nBEAM_EVENT(big, u64 a[13];);int on_gc_entry(void *c) { return 0; }',
            18,
            "big has more than 96 bytes",
        ),
        ("static inline int x(void) { return 0; }", 18, "has no function to attach"),
        (
            "int on_gc_entry(struct pt_regs *ctx) { while (1) bpf_ktime_get_ns(); return 0; }",
            18,
            "the kernel refused on_gc_entry",
        ),
    ],
)
def test_a_bad_probe_is_refused(
    stock: beams_run.Beam, tmp_path: Path, text: str, code: int, said: str
):
    """
    A probe that does not compile, fits no hook or is not there is an error with its cause.
    """
    assert said in refused(stock.pid, tmp_path, text, code)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("u64 x; bpf_probe_read_kernel(&x, 8, (void *)ctx->di);", "reads the kernel's memory"),
        ("struct task_struct *t = (void *)bpf_get_current_task(); return t->pid;", "task_struct"),
        ("u64 x = 0; bpf_probe_write_user((void *)ctx->di, &x, 8);", "writes into the VM"),
        ("bpf_send_signal(9);", "sends a signal"),
        ('bpf_trace_printk("x");', "use BEAM_EVENT"),
    ],
)
def test_a_probe_may_not_reach_beyond_the_vm(
    stock: beams_run.Beam, tmp_path: Path, statement: str, said: str
):
    """
    A probe cannot read the kernel, whose headers may be another's, nor write or signal anything.
    """
    probe = f"int on_gc_entry(struct pt_regs *ctx) {{ {statement} return 0; }}"
    text = f"#include <linux/sched.h>\n{probe}"
    errors = refused(stock.pid, tmp_path, text, 18)
    assert "on_gc_entry calls BPF helper" in errors
    assert said in errors


@pytest.mark.parametrize(
    ("instruction", "said"),
    [
        (".byte 0x85,0x20,0,0; .long 65504", "calls function 65504 of the kernel's"),
        (".byte 0x18,0x31,0,0; .long 7; .long 0; .long 0", "takes a variable of the kernel's"),
        (".byte 0x85,0,0,0; .long 181", "calls BPF helper 181, which may stop"),
    ],
    ids=["function", "variable", "loop"],
)
def test_an_instruction_may_not_reach_beyond_the_vm(
    stock: beams_run.Beam, tmp_path: Path, instruction: str, said: str
):
    """
    What inline assembly puts into a probe is judged like all else: kernel functions and variables.
    """
    text = f'asm volatile("{instruction}");'
    probe = f"int on_gc_entry(struct pt_regs *ctx) {{ {text} return 0; }}"
    assert f"on_gc_entry {said}" in refused(stock.pid, tmp_path, probe, 18)


def test_a_hit_that_would_last_is_refused(stock: beams_run.Beam, tmp_path: Path):
    """
    A loop that the kernel follows to its end, but that would keep the VM, is refused; half is not.
    """
    text = """
        int on_gc_entry(struct pt_regs *ctx)
        {
            u64 n;
            for (n = 0; n < TURNS; n++)
                asm volatile("" : "+r"(n));
            return 0;
        }"""
    path = tmp_path / "loop.c"
    path.write_text(text)
    words = ("run", str(path), "--pid", str(stock.pid), "--duration", "0.1", "-D")
    done = scope_trace(*words, "TURNS=20000")
    assert 0 == done.code, done.errors
    done = scope_trace(*words, "TURNS=200000")
    assert 18 == done.code
    assert re.search(r"one hit of on_gc_entry may run \d\d\d,\d+ instructions", done.errors)


def test_a_missing_atom_is_noted(stock: beams_run.Beam, tmp_path: Path):
    """
    A name for which the VM has no atom is 0, and a note says so.
    """
    path = tmp_path / "atom.c"
    path.write_text(
        '#include "beam.h"\nint on_gc_entry(struct pt_regs *ctx)\n'
        '{ return beam_atom("no such atom, surely").word; }\n'
    )
    done = scope_trace("run", str(path), "--pid", str(stock.pid), "--duration", "0.1")
    assert 0 == done.code
    assert "the VM has no atom 'no such atom, surely' yet" in done.errors


def test_every_name_of_a_hook_leads_somewhere(stock: beams_run.Beam):
    """
    Each on_ name that is listed has attachments on a stock build, and --hooks lists them.

    But for those of copies that a compiler makes of a function: stock builds have none.
    """
    target = inspect(stock.pid)
    copies = {f"on_{h.program}" for v in events.VARIANTS for h in v.hooks if h.copy_of}
    assert {"on_port_busy_copy"} == copies
    for name in hooks.named().keys() - copies:
        assert hooks.attachments(target.binary, target.flavor, name), name
    listed = scope_trace("run", "--hooks", "--pid", str(stock.pid)).output
    assert "on_send_local            erts_send_message\n" in listed


def test_hidden_functions_are_reported(tmp_path: Path):
    """
    A VM that hides its functions has no such hook, which is an error.
    """
    text = "int on_send_local(struct pt_regs *ctx) { return 0; }"
    with beams_run.start_beam("sid29", "-s", "planted") as beam:
        beam.expect("ready")
        assert "erts_send_message that can be seen" in refused(beam.pid, tmp_path, text, 11)


def test_before_linux_6_6_each_hook_is_an_event_of_its_own(
    inserting: beams_run.Beam, every_send: Path
):
    """
    Where the kernel has no uprobe_multi, perf events see the same 46 messages, and go.
    """
    from scope_ebpf.kernel.bpf.compiler import Compiled
    from scope_ebpf.kernel.observers.user_probes import UserProbeSession

    target = inspect(inserting.pid)
    made = source.prepare("x.c", every_send.read_text(), target, 16, ["FILTER=0"])
    compiled = Compiled("x.c", made.text, [f"-I{Path(source.__file__).parent}"])
    places = {"on_send_local": hooks.attachments(target.binary, target.flavor, "on_send_local")}
    given = (compiled, places, target.identity, source.RECORD, 65536)
    session = UserProbeSession(*given, counted=made.counted, multi=False)
    with stats.measuring(), session:
        inserting.plant("calls 23")
        session.detach()
        inserting.plant("calls 23")
        for measured in (True, False):
            assert {"on_send_local": 46} == session.hits(measured=measured)
        with session.ring.batch() as records:
            assert 46 == len(records)


def test_no_compiler_is_one_line(stock: beams_run.Beam, every_send: Path, tmp_path: Path):
    """
    Without bcc the run says in one line what to install, with an exit code of its own.
    """
    hide = f"mount -t tmpfs none /usr/lib/python3/dist-packages && cd {tmp_path}"
    command = " ".join(
        [*SCOPE_TRACE, "run", str(every_send), "--pid", str(stock.pid), "-DFILTER=0"]
    )
    run = Run(["unshare", "--mount", "sh", "-c", f"{hide} && exec {command}"], None)
    try:
        done = run.wait()
    finally:
        run.close()
    assert 17 == done.code
    assert 1 == len(done.errors.splitlines())
    assert "apt install python3-bpfcc" in done.errors


def test_no_headers_is_one_line(stock: beams_run.Beam, every_send: Path):
    """
    Without any kernel headers it is the same.
    """
    hide = "mount -t tmpfs none /usr/src && mount -t tmpfs none /lib/modules"
    command = " ".join(
        [*SCOPE_TRACE, "run", str(every_send), "--pid", str(stock.pid), "-DFILTER=0"]
    )
    environment = {k: v for k, v in os.environ.items() if k != "BCC_KERNEL_SOURCE"}
    run = Run(
        ["unshare", "--mount", "sh", "-c", f"{hide} && exec {command}"], None, env=environment
    )
    try:
        done = run.wait()
    finally:
        run.close()
    assert 17 == done.code
    assert 1 == len(done.errors.splitlines())
    assert "linux-headers-amd64" in done.errors


def test_a_stream_can_be_piped(inserting: beams_run.Beam, every_send: Path):
    """
    Every line is a JSON object with the fields of all events and those of the probe.
    """
    with running(inserting.pid, every_send, "-D", "FILTER=0") as run:
        inserting.plant("calls 1")
        lines = run.stop().output.splitlines()
    assert 2 == len(lines)
    for line in lines:
        keys = list(json.loads(line))
        assert ["time", "event", "tid", "pid", "who", "receiver", "tag"] == keys[:7]


def test_a_reader_that_does_not_read_keeps_no_run(inserting: beams_run.Beam, every_send: Path):
    """
    Once the pipe is full, one signal ends the run.
    """
    reading, writing = os.pipe()
    try:
        with running(inserting.pid, every_send, "-D", "FILTER=0", output=writing) as run:
            inserting.plant("calls 2000")
            wait_until(lambda: is_full(writing), "a full pipe")
            run.send(signal.SIGTERM)
            assert 0 == run.process.wait(PATIENCE)
    finally:
        os.close(reading)
        os.close(writing)
