# SPDX-License-Identifier: Apache-2.0
"""
The only names of places in a target that anything is ever attached to.

It knows names and flavours, and nothing else of the BEAM: the session, which refuses every other
name, needs to know no more. There is no wildcard.
"""

from __future__ import annotations

from typing import Final

from scope_ebpf import events

#: The flavour of emulator that may have the probes at calls of functions; they crash a JIT.
INTERPRETER: Final = "emu"
#: Those probes. They are no ways of ``events.toml``, so that nothing else ever asks for them.
CALLS: Final = ("local__function__entry", "global__function__entry")
RETURNS: Final = ("function__return",)
_EVERYWHERE: Final = frozenset(hook.name for variant in events.VARIANTS for hook in variant.hooks)


def at_calls(flavor: str) -> frozenset[str]:
    """Names of the probes at calls that an emulator of *flavor* may have: of the JIT, none."""
    return frozenset({*CALLS, *RETURNS}) if flavor == INTERPRETER else frozenset()


def names(flavor: str) -> frozenset[str]:
    """Names of all that may be attached to an emulator of *flavor*."""
    return _EVERYWHERE | at_calls(flavor)
