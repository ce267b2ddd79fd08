# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and the parsers of their texts."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from scope_ebpf.attach.plan import DEFAULT_EVENTS, EVENTS
from scope_ebpf.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection

#: The default budget of a summary, and the value that means none.
DEFAULT_BUDGET, COUNT_ALL = 0.01, float("inf")
#: The cost at which a run ends itself, percent of the VM's CPU.
_DEFAULT_MAX_COST = "20"


def add_duration(parser: argparse.ArgumentParser) -> None:
    """``--duration``: seconds; None for no end."""
    parser.add_argument(
        "--duration",
        type=positive,
        default=10.0,
        metavar="SECONDS",
        help="how long (default: %(default)g); 0 for as long as Ctrl-C lets it",
    )


def add_events(parser: argparse.ArgumentParser, default: Collection[str]) -> None:
    """``--events``: a text for :func:`parse_events`; None means *default*."""
    parser.add_argument(
        "--events",
        metavar="LIST",
        help=f"comma-separated, of: all, {', '.join(EVENTS)} "
        f"(default: all but {', '.join(e for e in EVENTS if e not in default)})",
    )


def add_force(parser: argparse.ArgumentParser) -> None:
    """``--force``: replace files that ``output`` refuses to replace without it."""
    parser.add_argument(
        "--force", action="store_true", help="replace the output where it is another user's file"
    )


def add_hooks(parser: argparse.ArgumentParser) -> None:
    """``--via``, the attach method, and ``--slow-call``, milliseconds."""
    parser.add_argument(
        "--via",
        choices=["auto", "symbol", "usdt"],
        default="auto",
        help="take this kind of hook only (default: the cheaper one of what is there)",
    )
    parser.add_argument(
        "--slow-call",
        type=not_negative,
        metavar="MS",
        help="long_call counts NIFs and BIFs of so many milliseconds or more (default: 1; 0: all)",
    )


def add_budget(parser: argparse.ArgumentParser) -> None:
    """``--budget`` and ``--exact``: a part of 1, :data:`COUNT_ALL`, or None where not given."""
    parser.add_argument(
        "--budget",
        type=budget,
        metavar="SHARE",
        help="of the VM's CPU, what hooks may take: what is rare is counted, what is frequent "
        "estimated from moments, with its error (default: 1%%); none counts everything",
    )
    parser.add_argument(
        "--exact",
        dest="budget",
        action="store_const",
        const=COUNT_ALL,
        help="count everything, as --budget none; it says before what that costs",
    )


def add_max_cost(parser: argparse.ArgumentParser) -> None:
    """``--max-cost``: a part of 1; None for no bound."""
    parser.add_argument(
        "--max-cost",
        type=max_cost,
        default=_DEFAULT_MAX_COST,
        metavar="SHARE",
        help="stop by itself when observing takes more of the VM's CPU for a second "
        "(default: %(default)s%%; 100%% for no bound)",
    )


def share(text: str) -> float:
    """A share such as ``1%`` or ``0.5%``, as a part of 1: more than 0, and 100% at most."""
    value = float(text.strip().removesuffix("%")) / 100
    if not 0 < value <= 1:
        raise ValueError(text)
    return value


def budget(text: str) -> float:
    """A share, or ``none``, which is :data:`COUNT_ALL`."""
    return COUNT_ALL if text.strip() == "none" else _share_of(text, ", or none")


def max_cost(text: str) -> float | None:
    """A share as a part of 1; None for ``100%``, which is no bound."""
    value = _share_of(text, "")
    return None if value == 1 else value


def _share_of(text: str, more: str) -> float:
    try:
        return share(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: wanted is a share of the VM's CPU such as 1%, more than 0% and 100% at "
            f"most{more}"
        ) from None


def parse_events(text: str | None) -> tuple[str, ...]:
    """The events that a comma-separated list names; None means the default ones."""
    if text is None:
        return DEFAULT_EVENTS
    if text == "all":
        return EVENTS
    wanted = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in wanted if name not in EVENTS]
    if unknown or not wanted:
        raise UsageError(
            f"no such event: {', '.join(unknown) or '(none given)'}; "
            f"there are: all, {', '.join(EVENTS)}"
        )
    return wanted


def not_negative(text: str) -> float:
    """A number of 0 or more."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


def whole(text: str) -> int:
    """A whole number of 0 or more."""
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def web_address(text: str) -> str:
    """A URL of http or https."""
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} is no URL of http or https")
    return text


def positive(text: str) -> float | None:
    """A number above 0; None for 0, which means no end."""
    return not_negative(text) or None


def ring_megabytes(text: str) -> int:
    """A power of two from 1 to 1024."""
    value = int(text)
    if value not in [1 << n for n in range(11)]:
        raise ValueError(text)
    return value
