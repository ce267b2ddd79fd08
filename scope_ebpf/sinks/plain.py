# SPDX-License-Identifier: Apache-2.0
"""Text from a VM, a host or a capture, made safe for a terminal: no control characters."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

from scope_ebpf.plain import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import TextIO

__all__ = ["of_target", "plain", "refusals", "say", "short", "spelled"]


#: A module of Elixir as Erlang writes it, quoted or not, and what is between it and a function.
_ELIXIR = re.compile(
    r"(?<![\w.'@])('?)Elixir\.([A-Z]\w*(?:\.[A-Z]\w*)*)\1(?![\w'@]|\.\w)(:(?=[^\s:]))?"
)


def spelled(text: str) -> str:
    """Write Elixir's modules and functions in *text* as Elixir does: ``Shop.Cart.add/3``."""
    if "Elixir." not in text:
        return text
    return _ELIXIR.sub(lambda found: found[2] + ("." if found[3] else ""), text)


def say(text: str, output: TextIO | None = None) -> None:
    """Print *text*, each of its lines plain, to stderr unless it is for another *output*."""
    print("\n".join(map(plain, text.split("\n"))), file=output or sys.stderr, flush=True)


def of_target(target: Mapping[str, Any]) -> tuple[str, str]:
    """The node's name, and what else a heading says of a target: a line of plain text."""
    return plain(str(target["node"] or "a node without a name")), plain(
        f"(pid {target['pid']}): OTP {target['otp_release']}, erts {target['erts_version']}, "
        f"{target['flavor']}, {target['schedulers']} schedulers"
    )


def refusals(reasons: Iterable[tuple[str, str]]) -> list[str]:
    """Lines of what was refused and why, ``a, b: reason``: what has one reason is in one line."""
    same: dict[str, list[str]] = {}
    for what, reason in reasons:
        same.setdefault(reason, []).append(what)
    return [f"{', '.join(parts)}: {reason}" for reason, parts in same.items()]


_SECONDS = ((1e-9, "ns"), (1e-6, "us"), (1e-3, "ms"), (1.0, "s"))
_BYTES = ((1.0, "B"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB"))


def duration(seconds: float, between: str = " ") -> str:
    """*seconds* with three digits and a unit, with *between* between them."""
    return _scaled(seconds, _SECONDS, between)


def size(count: float, between: str = " ") -> str:
    """The same of bytes."""
    return _scaled(count, _BYTES, between)


def _scaled(value: float, units: tuple[tuple[float, str], ...], between: str) -> str:
    # Three digits of 999.5 are 1000, which is one of the next unit.
    scale, unit = next((u for u in reversed(units) if value >= 0.9995 * u[0]), units[0])
    return f"{value / scale:.3g}{between}{unit}"


def short(number: float) -> str:
    """*number* in at most five characters: 999, 9.9k, 99M."""
    for unit in ("", "k", "M", "G", "T"):
        if number < 999.5:
            return f"{number:.1f}{unit}" if unit and number < 9.95 else f"{number:.0f}{unit}"
        number /= 1000
    return f"{number:.0f}P"
