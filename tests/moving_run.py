# SPDX-License-Identifier: Apache-2.0
"""
The truth about the processes of ``moving.erl``, to be compared with what is shown of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scope_ebpf.beam.processes.detail import FIELDS, detail, find
from scope_ebpf.beam.processes.view import Viewer

if TYPE_CHECKING:
    from scope_ebpf.beam.vm.target import Target

#: Every stack that these ever have: they run in no other functions.
STACKS: dict[str, set[tuple[str, ...]]] = {
    "moving_ping_1": {
        ("moving:nap/1", "moving:pinger/1"),
        ("moving:pinger/1",),
    },
    "moving_busy": {
        ("moving:nap/1", "moving:busy/0"),
        ("moving:busy/0",),
        ("moving:fold/1", "moving:busy/0"),
        # A process that was preempted waits at the entry of a function, most often here.
        ("moving:-fold/1-fun-0-/2", "lists:foldl_1/3", "moving:busy/0"),
        ("lists:foldl_1/3", "moving:busy/0"),
        ("lists:foldl/3", "moving:busy/0"),
        ("lists:foldl/3", "moving:fold/1", "moving:busy/0"),
        ("lists:seq/2", "moving:busy/0"),
        ("lists:seq_loop/3", "moving:busy/0"),
    },
    "moving_server": {
        ("gen_server:loop/7", "proc_lib:init_p_do_apply/3"),
    },
}
#: Stacks of moving_busy that it can have only between two of its turns.
PREEMPTED = {s for s in STACKS["moving_busy"] if "lists:foldl_1/3" in s}
#: The only messages of moving_slow.
CALL = "{'$gen_call', _, slow}"


def ask(target: Target, name: str) -> dict[str, Any]:
    """
    What ``ps`` finds, with nothing remembered from the time before.
    """
    viewer = Viewer(target, FIELDS)
    return dict(detail(viewer, find(viewer, name)))
