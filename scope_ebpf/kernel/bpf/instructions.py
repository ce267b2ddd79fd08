# SPDX-License-Identifier: Apache-2.0
"""
The rules for a user's probe, checked on the BPF instructions that the kernel gets.

The C text is not checked: inline assembly, a macro or a header may call anything. So every call and
every load of an address must be on a list.
"""

from __future__ import annotations

import numpy as np

from scope_ebpf.errors import ProbeError

#: ``struct bpf_insn``, include/uapi/linux/bpf.h: the source register is the upper half of
#: *registers*.
INSTRUCTION = np.dtype(
    [("code", "u1"), ("registers", "u1"), ("offset", "<i2"), ("immediate", "<i4")]
)
#: Instructions of one function: the examples have less than 300.
MOST_INSTRUCTIONS = 16_384
#: Instructions that the verifier may follow in one function, and so the most that a hit runs.
#: At 1 ns each a hit stays below 0.1 ms; the kernel itself would allow a million.
MOST_VERIFIED = 100_000

#: Operation codes: class, mode and size or operation in one byte (bpf_common.h, bpf.h).
_CALL = 0x85
_LOAD_ADDRESS = 0x18
#: BPF_JMP | BPF_JCOND: ``may_goto`` (Linux 6.9), a loop that the verifier does not see the end of.
_MAY_GOTO = 0xE5
#: The class of loads that name no register: the address of something, or of a network packet.
_CLASS, _LOADS = 0x07, 0x00
#: Source register of a call: a helper, or BPF_PSEUDO_CALL, a function of the program itself.
#: Otherwise it is BPF_PSEUDO_KFUNC_CALL, any function of the kernel.
_HELPER, _OWN_CALL = 0, 1
#: Source register of a loaded address: a number, BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_VALUE. Others
#: are variables of the kernel (3), callback functions (4), and maps by index (5, 6).
_ADDRESSES = (0, 1, 2)
_KERNEL_VARIABLE = 3

#: Helpers that a probe may call (include/uapi/linux/bpf.h, enum bpf_func_id): maps, clocks, current
#: thread and CPU, the target's memory, the ring. Not allowed are helpers that read the kernel's
#: memory, because the headers may be another kernel's; that write memory or send signals, because
#: they change the target; and that call back (for_each_map_elem, loop), because one hit may make
#: eight million turns.
ALLOWED = {
    1: "map_lookup_elem",
    2: "map_update_elem",
    3: "map_delete_elem",
    5: "ktime_get_ns",
    7: "get_prandom_u32",
    8: "get_smp_processor_id",
    14: "get_current_pid_tgid",
    15: "get_current_uid_gid",
    16: "get_current_comm",
    80: "get_current_cgroup_id",
    87: "map_push_elem",
    88: "map_pop_elem",
    89: "map_peek_elem",
    112: "probe_read_user",
    114: "probe_read_user_str",
    118: "jiffies64",
    120: "get_ns_current_pid_tgid",
    125: "ktime_get_boot_ns",
    130: "ringbuf_output",
    131: "ringbuf_reserve",
    132: "ringbuf_submit",
    133: "ringbuf_discard",
    134: "ringbuf_query",
    160: "ktime_get_coarse_ns",
    173: "get_func_ip",
    174: "get_attach_cookie",
    182: "strncmp",
}
_LOOP = "may stop the VM's scheduler for as long as it likes; write a loop with a constant bound"
#: Helpers that users call by mistake, with the reason and the alternative.
_INSTEAD = {
    4: "reads through a pointer of the kernel's; use beam_word(), or bpf_probe_read_user()",
    6: "prints into a file that all programs share; use BEAM_EVENT",
    35: "looks at the kernel's task_struct; only helpers and the VM's memory may be used",
    36: "writes into the VM",
    45: "reads a string of the kernel's; use bpf_probe_read_user_str()",
    109: "sends a signal",
    113: "reads the kernel's memory; only helpers and the VM's memory may be used",
    115: "reads the kernel's memory; only helpers and the VM's memory may be used",
    117: "sends a signal",
    158: "looks at the kernel's task_struct; only helpers and the VM's memory may be used",
    164: _LOOP,
    181: _LOOP,
}


def judge(function: str, code: bytes) -> None:
    """Raise ProbeError if the *code* of *function* calls or loads anything that is not allowed."""
    found = np.frombuffer(code, INSTRUCTION)
    if len(found) > MOST_INSTRUCTIONS:
        raise ProbeError(
            f"{function} has {len(found):,} instructions, {MOST_INSTRUCTIONS:,} are allowed"
        )
    sources = found["registers"] >> 4
    _judge_calls(function, found, sources)
    _judge_loads(function, found, sources)
    if (found["code"] == _MAY_GOTO).any():
        raise ProbeError(f"{function} has a loop that {_LOOP}")


def _judge_calls(
    function: str, found: np.ndarray[tuple[int], np.dtype[np.void]], sources: np.ndarray
) -> None:
    calls = found["code"] == _CALL
    foreign = calls & (sources != _HELPER) & (sources != _OWN_CALL)
    for number in found["immediate"][foreign].tolist():
        raise ProbeError(
            f"{function} calls function {number} of the kernel's, which is no BPF helper; "
            "only helpers and the VM's memory may be used"
        )
    helpers = found["immediate"][calls & (sources == _HELPER)]
    for helper in dict.fromkeys(helpers.tolist()):
        if helper not in ALLOWED:
            what = _INSTEAD.get(helper, "is not on the list of what a probe may call")
            raise ProbeError(f"{function} calls BPF helper {helper}, which {what}")


def _judge_loads(
    function: str, found: np.ndarray[tuple[int], np.dtype[np.void]], sources: np.ndarray
) -> None:
    loads = found["code"] & _CLASS == _LOADS
    # The second half of an address has the code 0, and no other instruction has it.
    packets = loads & (found["code"] != _LOAD_ADDRESS) & (found["code"] != 0)
    if packets.any():
        raise ProbeError(f"{function} loads from a network packet, of which a probe has none")
    addresses = loads & (found["code"] == _LOAD_ADDRESS)
    for kind in sources[addresses & ~np.isin(sources, _ADDRESSES)].tolist():
        what = "a variable of the kernel's" if kind == _KERNEL_VARIABLE else f"an address ({kind})"
        raise ProbeError(
            f"{function} takes {what}; only its own maps and the VM's memory may be used"
        )


def require_bounded(function: str, verified: int) -> None:
    """
    Raise ProbeError if one run of *function* may take more than MOST_VERIFIED instructions.

    *verified* is the result of ``stats.verified_instructions``; 0, which is unknown, passes.
    """
    if verified > MOST_VERIFIED:
        raise ProbeError(
            f"one hit of {function} may run {verified:,} instructions, {MOST_VERIFIED:,} are "
            "allowed; shorten its loops"
        )
