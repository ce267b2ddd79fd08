# SPDX-License-Identifier: Apache-2.0
"""
The names of all functions and probes of a target to which anything may be attached.

The session refuses every other name; there is no wildcard. A name and the target's flavour decide,
so the session needs no other knowledge of the BEAM.
"""

from __future__ import annotations

from typing import Final

from scope_ebpf import events

#: The flavour of emulator that may have the probes at calls of functions; they crash a JIT.
INTERPRETER: Final = "emu"
#: These probes, at calls and at returns. They are not in ``events.toml``, so no event uses them.
CALLS: Final = ("local__function__entry", "global__function__entry")
RETURNS: Final = ("function__return",)
#: The functions by which telemetry:execute/3 finds handlers, for ``scope-trace telemetry``.
TELEMETRY: Final = ("ets_lookup_2", "persistent_term_get_1", "persistent_term_get_2")
#: The BIFs that are markers in code that ``scope-mark`` has marked, for ``scope-trace marks``.
MARKERS: Final = ("ets_is_compiled_ms_1", "erts_internal_cmp_term_2")
_EVERYWHERE: Final = frozenset(hook.name for variant in events.VARIANTS for hook in variant.hooks)


def at_calls(flavor: str) -> frozenset[str]:
    """Names of the probes at calls for an emulator of *flavor*: none for the JIT."""
    return frozenset({*CALLS, *RETURNS}) if flavor == INTERPRETER else frozenset()


def names(flavor: str) -> frozenset[str]:
    """All names that may be attached to in an emulator of *flavor*."""
    return _EVERYWHERE | at_calls(flavor)
