# SPDX-License-Identifier: Apache-2.0
"""Where the programs of ``server.bpf.c`` are attached in a target's binary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.beam.elf import bounds
from scope_ebpf.beam.elf.contents import UnreadableElfError
from scope_ebpf.events import Hook, Variant
from scope_ebpf.planning.planner import symbol_attachments

if TYPE_CHECKING:
    from scope_ebpf.attach.plan import Attachment
    from scope_ebpf.planning.planner import Executable

#: Programs that see the end of the work on messages without a reply, and callers that gave up: what
#: takes longer than a window, or most hits.
_WHOLE = ("server_out", "server_exit")
#: All hooks. At the call in the first the message is in a register; the next two are the same
#: function, which OTP 28 renamed (erl_proc_sig_queue.c).
_HOOKS = (
    Hook(
        "server_send",
        "erts_send_message",
        call="erts_queue_proc_message",
        at_call=(("send_message_register", "rcx"),),
    ),
    Hook("server_reply", "erts_proc_sig_send_to_alias", optional=True),
    Hook("server_reply", "erts_proc_sig_send_altact_msg", optional=True),
    Hook("server_take", "beam_jit_remove_message", mangled=True),
    Hook("server_out", "erts_schedule"),
    Hook("server_exit", "erts_do_exit_process"),
)


def server_hooks(binary: Executable, flavor: str, *, whole: bool) -> tuple[list[Attachment], str]:
    """
    Every attachment for *binary*, an emulator of *flavor*; or none, and the reason.

    With *whole* also those by which messages without a reply are timed, and callers that end are
    seen.
    """
    hooks = tuple(hook for hook in _HOOKS if whole or hook.program not in _WHOLE)
    variant = Variant("receive", "symbol", "server", hooks)
    found: list[Attachment] = []
    if flavor != "jit":
        return [], "messages of servers can be seen where the emulator is the JIT only"
    for hook in hooks:
        try:
            attachments = symbol_attachments(binary, variant, hook)
        except (UnreadableElfError, bounds.UnprovenPlaceError) as error:
            return [], f"{hook.name}: {error}"
        if hook.call and attachments and not attachments[0].registers:
            return [], f"{hook.name} does not call {hook.call} at one place"
        if not attachments and not hook.optional:
            return [], f"the binary has no function symbol {hook.name}"
        found += attachments
    if not any(hook.program == "server_reply" for hook in found):
        return [], "the binary has no function symbol of those that send replies to aliases"
    return found, ""
