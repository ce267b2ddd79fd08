# SPDX-License-Identifier: Apache-2.0
"""
Where the functions of a user's probe are attached, by their names.

    on_PROGRAM       at the hooks of the program of that name in probes/, such as on_gc_entry
    uprobe__NAME     at the entry of a function of the VM
    uretprobe__NAME  at its return

USDT probes are not offered: those of OTP format their arguments inside the VM, and two of them end
it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf import events
from scope_ebpf.errors import NothingToAttachError, ProbeError
from scope_ebpf.planning.planner import symbol_attachments

if TYPE_CHECKING:
    from scope_ebpf.attach.plan import Attachment
    from scope_ebpf.beam.elf.binary import Binary

_FAMILY = "user"
_FUNCTION = {"uprobe__": False, "uretprobe__": True}


def named() -> dict[str, tuple[events.Variant, ...]]:
    """Each ``on_`` name, and the attach methods that its program is part of."""
    variants = [variant for variant in events.VARIANTS if variant.via == "symbol"]
    programs = dict.fromkeys(hook.program for variant in variants for hook in variant.hooks)
    return {
        f"on_{program}": tuple(v for v in variants if any(h.program == program for h in v.hooks))
        for program in programs
    }


def attachments(binary: Binary, flavor: str, function: str) -> tuple[Attachment, ...]:
    """
    Every attachment of *function* in an emulator of *flavor*.

    Raises ProbeError if *function* is not the name of a hook, and NothingToAttachError if this VM
    does not have the hook.
    """
    if function in named():
        return _own(binary, flavor, function)
    prefix = next((p for p in _FUNCTION if function.startswith(p)), None)
    if prefix is None:
        raise ProbeError(_unknown(function))
    name = function.removeprefix(prefix)
    hook = events.Hook(function, name, returns=_FUNCTION[prefix], mangled=True)
    symbol = binary.symbol(name)
    variable = symbol is not None and not symbol.is_function
    found = [] if variable else symbol_attachments(binary, _variant(hook), hook)
    if not found:
        raise NothingToAttachError(f"{function}: the VM has no function {name} that can be seen")
    return tuple(found)


def _own(binary: Binary, flavor: str, function: str) -> tuple[Attachment, ...]:
    program = function.removeprefix("on_")
    found: list[Attachment] = []
    missing: list[str] = []
    for variant in named()[function]:
        if variant.flavor not in (None, flavor):
            missing.append(f"{variant.event} has no hook in an emulator of flavor {flavor}")
            continue
        for hook in variant.hooks:
            if hook.program == program:
                # The probe reads its arguments where the function has them.
                plain = hook._replace(program=function, call=None, at_call=(), arguments=())
                sites = symbol_attachments(binary, variant, plain)
                found += sites
                if not sites and not hook.optional:
                    missing.append(f"the VM has no function {hook.name} that can be seen")
    if missing or not found:
        reasons = "; ".join(missing) or "nothing to attach to"
        raise NothingToAttachError(f"{function}: {reasons}")
    return tuple(dict.fromkeys(found))


def _variant(hook: events.Hook) -> events.Variant:
    return events.Variant(hook.program, "symbol", _FAMILY, (hook,))


def _unknown(function: str) -> str:
    if function.startswith("usdt"):
        return (
            f"{function}: USDT probes cannot be used by a probe of yours; take the function "
            "behind it, `scope-trace run --hooks` lists those that we use"
        )
    return (
        f"{function} is the name of no hook: there are uprobe__FUNCTION, uretprobe__FUNCTION and "
        "those that `scope-trace run --hooks` lists; a function that is none is `static inline`"
    )
