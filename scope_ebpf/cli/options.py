# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and the parsers of their texts."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from scope_ebpf.errors import UsageError
from scope_ebpf.units import seconds

if TYPE_CHECKING:
    from collections.abc import Collection

#: The default budget of a summary, and the value that means none.
DEFAULT_BUDGET, COUNT_ALL = 0.01, float("inf")
#: Digits of a number that count.
_DIGITS = 18
#: The cost at which a run ends itself, percent of the VM's CPU.
_DEFAULT_MAX_COST = "20"


class Agreeing(argparse.Action):
    """
    An option that sets the same as others, to its value or to *const*.

    Two of them that say different things are an error; of one that is given twice the last counts.
    """

    def __call__(
        self,
        _: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        _option: str | None = None,
    ) -> None:
        """Set the value, or refuse it."""
        value = values if self.const is None else self.const
        name, by = self.option_strings[-1], f"{self.dest}_given_by"
        other = getattr(namespace, by, name)
        if other != name and getattr(namespace, self.dest) != value:
            raise argparse.ArgumentError(self, f"not with {other}, which says something else")
        setattr(namespace, self.dest, value)
        setattr(namespace, by, name)


def add_duration(
    parser: argparse.ArgumentParser,
    default: str = "10s",
    action: str | type[argparse.Action] = "store",
) -> None:
    """``--duration``: seconds; None for no end."""
    parser.add_argument(
        "-d",
        "--duration",
        action=action,
        type=duration,
        default=default,
        metavar="TIME",
        help="how long: 10, 10s, 500ms, 2m (default: %(default)s); 0 for as long as Ctrl-C lets it",
    )


def add_interval(parser: argparse.ArgumentParser, default: str | None, text: str) -> None:
    """``--interval``: seconds above 0, None where it is not given and *default* is None."""
    parser.add_argument(
        "-i", "--interval", type=interval, default=default, metavar="TIME", help=text
    )


def add_count(parser: argparse.ArgumentParser, what: str) -> None:
    """``--count``: how many of *what* are printed before the end; None for no end."""
    parser.add_argument(
        *("-n", "--count"),
        action=Agreeing,
        type=above_zero,
        metavar="N",
        help=f"end after N {what}",
    )


def add_once(parser: argparse.ArgumentParser) -> None:
    """``--once``: the same as ``--count 1``."""
    parser.add_argument(
        "--once", dest="count", action=Agreeing, nargs=0, const=1, help="print once and end"
    )


def add_events_config(parser: argparse.ArgumentParser) -> None:
    """``--config``: a file with specifications of telemetry events; None for the daemon's own."""
    # Most commands have no use for these.
    from pathlib import Path

    from scope_ebpf.runs.telemetry import DEFAULT_CONFIG

    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"with [[telemetry.event]] for your own events (default: {DEFAULT_CONFIG}, if it is "
        "there)",
    )


def add_format(parser: argparse.ArgumentParser, *formats: str, text: str = "") -> None:
    """``--format``, one of *formats*; the first is the default."""
    about = f"{text} (default: %(default)s)".lstrip()
    parser.add_argument("-f", "--format", choices=formats, default=formats[0], help=about)


def add_output(parser: argparse.ArgumentParser) -> None:
    """``--output`` and ``--force``: a file instead of standard output."""
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="write there instead of standard output"
    )
    add_force(parser)


def add_events(parser: argparse.ArgumentParser, default: Collection[str]) -> None:
    """``--events``: a text for :func:`parse_events`; None means *default*."""
    from scope_ebpf.attach.plan import EVENTS

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
        type=milliseconds,
        metavar="TIME",
        help="long_call counts NIFs and BIFs that take so long or longer; a number alone is "
        "milliseconds (default: 1ms; 0: all)",
    )


def add_budget(parser: argparse.ArgumentParser) -> None:
    """``--budget`` and ``--exact``: a part of 1, :data:`COUNT_ALL`, or None where not given."""
    parser.add_argument(
        "--budget",
        action=Agreeing,
        type=budget,
        metavar="SHARE",
        help="of the VM's CPU, what hooks may take: what is rare is counted, what is frequent "
        "estimated from moments, with its error (default: 1%%); none counts everything",
    )
    parser.add_argument(
        "--exact",
        dest="budget",
        action=Agreeing,
        nargs=0,
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
    from scope_ebpf.attach.plan import DEFAULT_EVENTS, EVENTS

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


def duration(text: str) -> float | None:
    """Seconds of a time such as ``10s``; None for 0, which means no end."""
    return time(text) or None


def interval(text: str) -> float:
    """Seconds of a time above 0."""
    return time(text, least=0.001)


def milliseconds(text: str) -> float:
    """Milliseconds of a time such as ``5ms``; a number alone is milliseconds."""
    return time(text, unit="ms") * 1e3


def time(text: str, *, unit: str = "s", least: float = 0.0) -> float:
    """Seconds of a time, see :func:`units.seconds`; its error is one of the command line."""
    try:
        return seconds(text, unit=unit, least=least)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def whole(text: str, least: int = 0) -> int:
    """A whole number of *least* or more, perhaps with separators."""
    digits = text.replace("_", "").replace(",", "")
    if not digits.isascii() or not digits.isdigit() or int(digits[:_DIGITS]) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of {least} or more")
    return int(digits[:_DIGITS])


def web_address(text: str) -> str:
    """A URL of http or https."""
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} is no URL of http or https")
    return text


def above_zero(text: str) -> int:
    """A whole number of 1 or more."""
    return whole(text, 1)


def ring_megabytes(text: str) -> int:
    """A power of two from 1 to 1024."""
    value = int(text)
    if value not in [1 << n for n in range(11)]:
        raise ValueError(text)
    return value


def add_event_budget(parser: argparse.ArgumentParser) -> None:
    """``--budget`` of commands that see telemetry: a part of 1, or :data:`COUNT_ALL`."""
    parser.add_argument(
        "--budget",
        type=budget,
        default="1",
        metavar="SHARE",
        help="of the VM's CPU, what hooks may take: where that is not enough, events are counted "
        "in windows, and rates have errors (default: %(default)s%%); none counts everything",
    )


def add_event_via(parser: argparse.ArgumentParser) -> None:
    """``--via`` of commands that see telemetry: a hook, None for the one that costs least."""
    parser.add_argument(
        "--via",
        choices=("lookups", "breakpoint"),
        help="see events at the lookups of their handlers, or by a hardware breakpoint on "
        "telemetry:execute/3 (default: what costs the VM less)",
    )
