# SPDX-License-Identifier: Apache-2.0
"""
The cost of reading every process of a VM: from outside, and from inside.

    bench/snapshot.py [PROCESSES]

Starts a VM with that many processes (default 200,000) and reads them all from
outside, as ``top`` does; then lets the VM ask ``erlang:process_info`` about each,
as ``etop`` and ``observer_cli`` do (the items that etop wants). Prints processes
per second, bytes, CPU seconds, and the reductions that the VM paid. One process
somewhere among them gets a large mailbox, and ``top --sort mailbox`` must find it.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from scope_ebpf.beam.processes.sweep import Sweep
from scope_ebpf.beam.processes.table import LOAD, ProcessTable
from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.beam.vm import discover

#: Makes N processes, says so, and for each line on stdin looks at them all from inside.
_INSIDE = """
    N = {count},
    Wait = fun W() -> receive never -> W() end end,
    Pids = [spawn(Wait) || _ <- lists:seq(1, N)],
    Full = lists:nth(max(1, N * 2 div 3), Pids),
    [Full ! {{planted, I}} || I <- lists:seq(1, {messages})],
    Items = [registered_name, initial_call, memory, reductions, current_function,
             message_queue_len],
    Cpu = fun() -> {{C, _}} = erlang:statistics(runtime), C end,
    Reds = fun() -> {{R, _}} = erlang:statistics(exact_reductions), R end,
    Look = fun L() ->
        case io:get_line("") of
            eof -> halt();
            _ ->
                C0 = Cpu(), R0 = Reds(),
                Rows = [erlang:process_info(P, Items) || P <- processes()],
                io:format("~b ~b ~b~n", [length(Rows), Cpu() - C0, Reds() - R0]),
                L()
        end
    end,
    io:format("~s~n", [pid_to_list(Full)]), Look().
"""
#: Messages in the one large mailbox.
_MESSAGES = 5000


def main(count: int) -> int:
    command = ["erl", "-noshell", "+P", str(max(262144, 2 * count)), "-eval"]
    vm = subprocess.Popen(
        [*command, _INSIDE.format(count=count, messages=_MESSAGES)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert vm.stdin is not None
    assert vm.stdout is not None
    try:
        full = vm.stdout.readline().strip()
        _outside(discover.inspect(vm.pid))
        _largest_mailbox(vm.pid, full)
        for attempt in ("first time", "again"):
            vm.stdin.write("\n")
            vm.stdin.flush()
            rows, milliseconds, reductions = map(int, vm.stdout.readline().split())
            print(
                f"inside, {attempt}: {rows} processes, {milliseconds / 1000:.2f} s of the VM's "
                f"CPU, {reductions:,} of its reductions"
            )
    finally:
        vm.kill()
        vm.wait()
    return 0


def _outside(target: discover.Beam) -> None:
    memory = target.memory
    viewer = Viewer(target)
    for what, table in (
        ("load (a turn of top)", ProcessTable(target, LOAD)),
        ("everything", viewer.table),
    ):
        seconds, calls, size = [], 0, 0
        for _ in range(3):
            before = memory.calls, memory.bytes_read
            snapshot = table.snapshot()
            seconds.append(snapshot.seconds)
            calls, size = memory.calls - before[0], memory.bytes_read - before[1]
        best = min(seconds)
        print(
            f"outside, {what}: {len(snapshot)} of {snapshot.total} processes, "
            f"torn {snapshot.torn}, {best:.2f} s of CPU, {len(snapshot) / best:,.0f} processes/s, "
            f"{size / 1e6:.0f} MB in {calls} calls, none of the VM's reductions"
        )
    began = time.process_time()
    rows = viewer.table.snapshot().rows
    _ = [viewer.names.registered(rows), viewer.names.identities(rows)]
    _ = viewer.names.current_functions(rows)
    print(f"outside, with names: {time.process_time() - began:.2f} s of CPU")
    sweep = Sweep(ProcessTable(target, LOAD), viewer.heaps, 0.1)
    del rows, snapshot
    costs = []
    for _ in range(12):
        began = time.process_time()
        state = sweep.turn()
        slots = sweep.top("mailbox", 20).slots
        viewer.describe(viewer.table.at(slots).rows, 200)
        costs.append(time.process_time() - began)
    print(
        f"top, each turn: {np.mean(costs[2:]):.3f} s of CPU, the table in {state.parts} parts; "
        f"peak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB"
    )


def _largest_mailbox(pid: int, full: str) -> None:
    """Let the command itself find it, as a user would, start and names included."""
    command = [sys.executable, "-m", "scope_ebpf.cli.main", "top", "--pid", str(pid), "--once"]
    before = _children_seconds()
    done = subprocess.run(
        [*command, "--sort", "mailbox", "--limit", "1"], capture_output=True, text=True, check=True
    )
    seconds = _children_seconds() - before
    first = done.stdout.splitlines()[-1]
    found = first.split()[0] == full
    print(
        f"top --once --sort mailbox: {'finds' if found else 'DOES NOT FIND'} {full} with "
        f"{_MESSAGES:,} messages, in {seconds:.2f} s of CPU: {first}"
    )


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000))
