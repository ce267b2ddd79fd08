# SPDX-License-Identifier: Apache-2.0
"""
The USDT probes at calls of Erlang functions: in which VMs they are used, and their sites.

They are used in an interpreter only. Under the JIT ``global__function__entry`` mistakes a
trampoline for a function and crashes the VM, and ``function__return`` is not compiled in
(OTP-25.2.3 erts/emulator/beam/beam_common.h, DTRACE_GLOBAL_CALL_FROM_EXPORT; the same from 24 to
29). They are not in ``events.toml``, so no event uses them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from scope_ebpf import events
from scope_ebpf.attach import allowlist
from scope_ebpf.beam.elf import usdt
from scope_ebpf.beam.elf.bounds import UnprovenPlaceError
from scope_ebpf.errors import NothingToAttachError
from scope_ebpf.planning.planner import usdt_attachments

if TYPE_CHECKING:
    from scope_ebpf.attach.plan import Attachment
    from scope_ebpf.planning.planner import Executable

FAMILY: Final = "interpreted"
#: Length at which the VM cuts M:F/A texts, bytes (DTRACE_TERM_BUF_SIZE, dtrace-wrapper.h).
MOST_BYTES: Final = events.FUNCTION_TEXT_BYTES - 1
#: Functions that look up the function of an apply and fire a probe; then the instruction that
#: called them fires it again (beam_common.c, and DISPATCH_EXPORT in emu/macros.tab). The second one
#: is counted as the call.
_LOOK_UP: Final = ("apply", "fixed_apply")


_VARIANT: Final = events.Variant(
    "call",
    "usdt",
    FAMILY,
    flavor=allowlist.INTERPRETER,
    hooks=(
        *(events.Hook("function_called", name) for name in allowlist.CALLS),
        *(events.Hook("function_returned", name) for name in allowlist.RETURNS),
    ),
)


def attachments(binary: Executable, flavor: str, *, returns: bool) -> tuple[Attachment, ...]:
    """
    Attachments for every site of the probes at calls, and with *returns* of those at returns.

    Each call fires one site once. NothingToAttachError for another flavour, and for a build that
    lacks one of the probes.
    """
    found: list[Attachment] = []
    names = allowlist.at_calls(flavor)
    twice = _look_ups(binary) if names else []
    for hook in _VARIANT.hooks:
        try:
            sites = usdt_attachments(binary, _VARIANT, hook) if hook.name in names else []
        except (usdt.ArgumentError, UnprovenPlaceError) as error:
            raise NothingToAttachError(f"the USDT probe {hook.name}: {error}") from error
        if not sites:
            # Also those at returns if they are not wanted: a JIT build lacks them.
            raise NothingToAttachError(f"the emulator has no USDT probe {hook.name} to attach to")
        if returns or hook.name not in allowlist.RETURNS:
            found += (s for s in sites if not any(s.address in function for function in twice))
    return tuple(found)


def _look_ups(binary: Executable) -> list[range]:
    """The address ranges of functions in which a site would count a call a second time."""
    found = [binary.symbol(name) for name in _LOOK_UP]
    if None in found:
        raise NothingToAttachError(
            f"the emulator hides its {' and '.join(_LOOK_UP)}, whose calls would count twice"
        )
    return [range(s.address, s.address + s.size) for s in found if s is not None]


def text(module: str, function: str, arity: int) -> bytes:
    """
    The text of a function in the probes' arguments, at most MOST_BYTES.

    As print_atom_name makes it (erl_printf_term.c). ValueError for a name with control characters.
    """
    return f"{_atom(module)}:{_atom(function)}/{arity}".encode()[:MOST_BYTES]


def _atom(name: str) -> str:
    if any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in name):
        raise ValueError(name)
    if _is_lower(name[:1]) and all(_is_word(c) for c in name):
        return name
    return "'" + name.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _is_lower(c: str) -> bool:
    return "a" <= c <= "z" or ("\xdf" <= c <= "\xff" and c != "\xf7")


def _is_word(c: str) -> bool:
    upper = "A" <= c <= "Z" or ("\xc0" <= c <= "\xde" and c != "\xd7")
    return _is_lower(c) or upper or "0" <= c <= "9" or c == "_"
