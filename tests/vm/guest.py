# SPDX-License-Identifier: Apache-2.0
"""
The checks that run inside a virtual machine, on the kernel that was booted there.

``run.sh`` starts it in the guest, as root, with the wheel on the path.
"""

# ruff: noqa: T201 - lines are what it is for

from __future__ import annotations

import ctypes
import platform
import signal
import subprocess
import sys
import time
from collections import Counter
from importlib import resources
from pathlib import Path

import beams_run
import numpy as np
import tracing
from checks import check, conclude, results, run_tests
from tracing import trace

from scope_ebpf import events
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.beam.vm.threads import threads
from scope_ebpf.daemon.readings.threads import WatchedThreads
from scope_ebpf.kernel.attach.uprobes import TRACE_UPROBE_MULTI, has_multi
from scope_ebpf.kernel.bpf.libbpf import LibbpfError, library, messages
from scope_ebpf.kernel.bpf.objects import BpfObject, object_bytes
from scope_ebpf.kernel.observers.thread_watch import ThreadWatch

#: The argument that says so.
INSIDE = "inside"
#: Seconds. All is ten times slower here than where the tests run.
ANSWER = beams_run.PATIENCE
MULTI = has_multi()


def families() -> list[str]:
    """
    The objects that the wheel carries.
    """
    folder = resources.files("scope_ebpf.kernel").joinpath("objects")
    return sorted(entry.name.removesuffix(".bpf.o") for entry in folder.iterdir())


STREAMED = (1 << len(events.KINDS)) - 1
#: What a program is loaded with decides which of its branches the verifier looks at.
SETTINGS = {
    "a summary": {"streamed": 0},
    "a stream": {"streamed": STREAMED},
    "a stream in a pid namespace": {"streamed": STREAMED, "pidns_ino": 8},
    "a stream of a VM that is not known": {
        **dict.fromkeys(events.SETTINGS.names, 0),
        "streamed": STREAMED,
    },
}


#: Objects with settings of their own, which are the same for whatever is asked for.
OWN = {
    "function": events.CALL_SETTINGS,
    "sample": events.SAMPLE_SETTINGS,
    "server": events.SERVER_SETTINGS,
    "wait": events.SAMPLE_SETTINGS,
}
BREAKPOINTS = {variant.family for variant in events.VARIANTS if variant.via != "tracepoint"} | {
    *("server", "wait")
}


def settings(family: str, given: dict[str, int]) -> bytes:
    """
    Settings in which all is known and 8, which is a register's place too, but for what is *given*.
    """
    made = np.zeros((), OWN.get(family, events.SETTINGS))
    for name in made.dtype.names:
        made[name] = given.get(name, 0 if name == "pidns_ino" else 8)
    return made.tobytes()


def attach_type(family: str) -> int | None:
    """
    How the programs of an object are attached: breakpoints by one link, where the kernel has it.
    """
    return TRACE_UPROBE_MULTI if MULTI and family in BREAKPOINTS else None


def loads(family: str) -> str:
    """
    Every program of an object goes through this kernel's verifier, whatever the settings are.
    """
    for what, given in SETTINGS.items():
        opened = BpfObject(family, object_bytes(family))
        messages.clear()
        try:
            opened.set_constants(settings(family, given))
            opened.load(opened.programs.keys(), attach_type(family))
            assert all(opened.program_fd(name) >= 0 for name in opened.programs)
        except LibbpfError:
            explain(family, settings(family, given))
            raise
        finally:
            opened.close()
        assert not messages, f"{what}: {list(messages)}"
    return f"{len(opened.programs)} programs in {len(SETTINGS)} ways"


def explain(family: str, constants: bytes) -> None:
    """
    Print all that the verifier says of each program that it refuses.
    """
    set_log = library().bpf_program__set_log_buf
    set_log.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
    for name in BpfObject(family, object_bytes(family)).programs:
        opened = BpfObject(family, object_bytes(family))
        opened.set_constants(constants)
        log = ctypes.create_string_buffer(1 << 20)
        set_log(opened.programs[name], log, len(log))
        try:
            opened.load({name}, attach_type(family))
        except LibbpfError as error:
            print(f"{family}.{name}: {error}\n{log.value.decode()}")
        opened.close()


def doctor(pid: int) -> str:
    """
    The doctor finds nothing wrong with this host, and says how hooks are taken out here.
    """
    done = tracing.scope_trace("doctor", str(pid), "--format", "json")
    problems = [fact["problem"] for fact in done.document["host"] if fact["problem"]]
    assert problems == []
    assert MULTI == (done.document["detach"] == "together"), done.document["detach"]
    off = [row["event"] for row in done.document["hooks"] if row["state"] != "on"]
    assert off == [], "these are off"
    return f"{len(done.document['hooks'])} events, hooks are taken out {done.document['detach']}"


PLANTED = {
    "spawns 23": {"spawn": 23, "exit": 23},
    "exits killed 23": {"spawn": 23, "exit": 23},
    "messages 23": {"send": 23, "receive": 23},
    "hibernates 23": {"hibernate": 23, "send": 23, "receive": 23, "spawn": 1, "exit": 1},
    "ports 23": {"port_open": 23, "port_close": 23},
}
COUNTED = ("spawn", "exit", "send", "receive", "hibernate", "port_open", "port_close")


def expected() -> dict[str, int]:
    """
    How often each event was planted; each command line is a receive.
    """
    totals = dict.fromkeys(COUNTED, 0)
    for effects in PLANTED.values():
        totals["receive"] += 1
        for event, times in effects.items():
            totals[event] += times
    return totals


def plant(beam: beams_run.Beam) -> None:
    for command in PLANTED:
        beam.plant(command, ANSWER)


def counts(beam: beams_run.Beam, via: str) -> str:
    """
    What was planted is what the document says, with nothing lost and nothing refused.
    """
    places = tracing.hooked_addresses(beam.pid)
    with trace(beam.pid, "--via", via, "--events", ",".join(COUNTED)) as run:
        assert tracing.breakpoints(beam.pid, places) > 0, "there are no breakpoints"
        plant(beam)
        begun = time.monotonic()
        outcome = run.stop()
    took = time.monotonic() - begun
    found = {event: outcome.events[event]["count"] for event in COUNTED}
    assert found == expected(), f"counted {found}, planted {expected()}"
    assert outcome.document["lost_total"] == 0
    assert outcome.complaints == []
    assert 23 == outcome.events["exit"]["by_class"]["killed"]
    assert 0 == tracing.breakpoints(beam.pid, places), "breakpoints are left"
    return f"{sum(found.values())} events; ended in {took:.1f} s"


def collections(beam: beams_run.Beam, via: str) -> str:
    """
    The collections are those that the VM counts itself, and the planted ones are among them.
    """
    with trace(beam.pid, "--via", via, "--events", "gc") as run:
        before = stats(beam)["collections"]
        beam.plant("gc_minor 23", ANSWER)
        beam.plant("gc_major 23", ANSWER)
        after = stats(beam)["collections"]
        found = run.stop().events["gc"]["by_class"]
    assert after - before == found["minor"] + found["major"], f"{before}, {after}, {found}"
    assert (23, 23) == (found["minor"], found["major"]), found
    return f"the VM says {after - before}"


def stats(beam: beams_run.Beam) -> dict[str, int]:
    beam.send("stats")
    _, *pairs = beam.readline(ANSWER).split()
    return {key: int(value) for key, value in (pair.split("=") for pair in pairs)}


def streams(beam: beams_run.Beam, via: str) -> str:
    """
    Every planted event is a line of its own, and the lines are as many as were counted.
    """
    with trace(beam.pid, "--via", via, "--events", ",".join(COUNTED), form="jsonl") as run:
        plant(beam)
        outcome = run.stop()
    found = dict.fromkeys(COUNTED, 0)
    for line in outcome.lines:
        found[line["event"]] += 1
    whose = Counter((line["event"], line["who"], line.get("sender")) for line in outcome.lines)
    assert found == expected(), f"streamed {found}, planted {expected()}: {whose}"
    return f"{len(outcome.lines)} lines"


def everything(beam: beams_run.Beam) -> str:
    """
    All hooks that this VM has go in and out, and it answers before and after.
    """
    places = tracing.hooked_addresses(beam.pid)
    with trace(beam.pid, "--events", "all") as run:
        hooks = tracing.breakpoints(beam.pid, places)
        beam.plant("spawns 23", ANSWER)
        begun = time.monotonic()
        outcome = run.stop()
    took = time.monotonic() - begun
    assert outcome.complaints == []
    assert 23 == outcome.events["spawn"]["count"]
    assert 0 == tracing.breakpoints(beam.pid, places), "breakpoints are left"
    beam.plant("spawns 23", ANSWER)
    return f"{hooks} breakpoints; ended in {took:.1f} s"


def killed(beam: beams_run.Beam, via: str) -> str:
    """
    After a kill -9 the kernel has no program, map or link of ours, and the VM no breakpoint.
    """
    before = tracing.in_kernel()
    places = tracing.hooked_addresses(beam.pid)
    with trace(beam.pid, "--via", via) as run:
        held = tracing.holdings(run.pid)
        assert held["prog_id"], "it holds no program"
        assert tracing.breakpoints(beam.pid, places) > 0, "there are no breakpoints"
        run.send(signal.SIGKILL)
        run.process.wait()
    tracing.wait_until(lambda: tracing.in_kernel() == before, "the end of what it loaded", 120)
    tracing.wait_until(
        lambda: not tracing.breakpoints(beam.pid, places), "the end of its breakpoints", 120
    )
    beam.plant("spawns 23", ANSWER)
    return f"{len(held['prog_id'])} programs went"


def scheduling(beam: beams_run.Beam) -> str:
    """
    Turns on a CPU are those that the kernel counts, and a VM that waits for a command is idle;
    so it is again after the tracepoints were out for a while.
    """
    watch = ThreadWatch()
    try:
        place = watch.add()
        seen = WatchedThreads(watch, inspect(beam.pid), place)
        said = [same_turns(beam, watch, place)]
        seen.tick()
        off = dict(zip(events.OFF_REASONS, seen.totals["off_ns"].sum(axis=0).tolist(), strict=True))
        assert off["idle"] > 10 * off["blocked"], f"{off}"
        watch.pause()
        before = watch.totals(place).copy()
        for _ in range(20):
            beam.plant("messages 23", ANSWER)
        assert before["switches"].tolist() == watch.totals(place)["switches"].tolist()
        watch.resume()
        seen.resumed()
        said.append(same_turns(beam, watch, place))
        return "; ".join(said)
    finally:
        watch.close()


def same_turns(beam: beams_run.Beam, watch: ThreadWatch, place: int) -> str:
    """
    While a VM gets commands its threads are put on a CPU as often as the kernel says.
    """
    for _ in range(20):
        beam.plant("messages 23", ANSWER)
    first, before = turns(beam.pid), watch.totals(place)["switches"].sum()
    for _ in range(20):
        beam.plant("messages 23", ANSWER)
    last, now = turns(beam.pid), watch.totals(place)["switches"].sum()
    ours, theirs = int(now - before), last - first
    # One reading is a moment after the other, and a scheduler goes to sleep in between.
    assert abs(ours - theirs) <= 8, f"{ours} of {theirs} turns"
    return f"{ours} turns, the kernel says {theirs}"


def turns(pid: int) -> int:
    """
    How often the threads that are watched were put on a CPU: the third figure of schedstat.
    """
    files = [Path(f"/proc/{pid}/task/{thread.tid}/schedstat") for thread in threads(pid)]
    return sum(int(file.read_text().split()[2]) for file in files)


def in_a_namespace() -> None:
    """
    In a pid namespace, as in a container, the same is counted: this program again, in one.
    """
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable]
    done = subprocess.run([*command, __file__, INSIDE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def inside() -> int:
    """
    What runs in the namespace.
    """
    with beams_run.planted("stock25") as beam:
        counts(beam, "symbol")
        streams(beam, "symbol")
    return 0


def kernel_is_well() -> str:
    """
    The kernel complained of nothing.
    """
    log = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    bad = ("WARNING:", "BUG:", "Oops", "Call Trace", "rcu_sched", "general protection")
    found = [line for line in log.splitlines() if any(word in line for word in bad)]
    assert found == [], "\n".join(found)
    return f"{len(log.splitlines())} lines of its log"


def vms() -> list[tuple[str, str]]:
    """
    The kinds of VM that are here, and the way to see each.
    """
    kinds = [("stock25", "symbol")]
    if any(beams_run.cache().glob("usdt-*/bin/beam.smp")):
        kinds.append(("usdt25", "usdt"))
    else:
        results["skipped"] += 1
        print("  skipped usdt25 (no such BEAM was built)")
    return kinds


#: What else must be the same on each kernel: profile, record, calls and the daemon.
TESTED = (
    "kernel/test_profile.py::test_a_planted_split_of_cpu_time_is_found_with_whole_stacks_to_the_line[25]",
    "kernel/test_profile.py::test_planted_waits_are_named_and_as_long_as_they_were[stock25]",
    "kernel/test_profile.py::test_native_code_stands_above_the_erlang_function_that_called_it[gc]",
    "kernel/test_record.py::test_the_summary_of_a_capture_is_that_of_its_trace[stock25]",
    "kernel/test_record.py::test_the_kernels_switches_are_those_that_it_counts",
    "vm/arrows_test.py::test_each_message_of_a_ring_is_an_arrow[stock25]",
    "kernel/test_calls.py::test_every_kind_of_call_of_a_function_counts_once[stock25]",
    "kernel/test_calls.py::test_the_limit_ends_the_run_and_the_cost[stock25]",
    "kernel/test_calls.py::test_a_function_that_is_called_all_the_time_is_counted[stock25]",
    "kernel/test_calls.py::test_a_duration_is_that_of_its_own_call[stock25]",
    "kernel/test_calls.py::test_a_code_upgrade_is_followed[stock25]",
    "kernel/test_daemon.py::test_planted_events_are_counted",
    "kernel/test_daemon.py::test_counters_are_those_of_the_vm",
    "kernel/test_program_pool.py::test_the_next_vm_of_a_build_takes_programs_that_are_as_new[stock25]",
    "kernel/test_daemon.py::test_sigterm_takes_everything_out_and_the_vm_goes_on",
)


def main() -> None:
    links = "one link for each program" if MULTI else "a perf event for each hook"
    print(f"Linux {platform.release()}, {links}")
    for family in families():
        check(f"object {family}", loads, family)
    for kind, via in vms():
        with beams_run.planted(kind) as beam:
            if kind == "stock25":
                check(f"{kind} doctor", doctor, beam.pid)
                check(f"{kind} everything", everything, beam)
                check(f"{kind} threads", scheduling, beam)
            check(f"{kind} {via} json", counts, beam, via)
            check(f"{kind} {via} jsonl", streams, beam, via)
            check(f"{kind} {via} collections", collections, beam, via)
            check(f"{kind} {via} killed", killed, beam, via)
    check("in a pid namespace", in_a_namespace)
    run_tests(TESTED)
    check("kernel log", kernel_is_well)


if __name__ == "__main__":
    if INSIDE in sys.argv:
        sys.exit(inside())
    conclude(main)
