# SPDX-License-Identifier: Apache-2.0
"""
How nodes are distinguished: a colour, a dash and a short name for each.

Grafana gives a line its dash by overrides, and an override finds a line by its name. Names of nodes
are not known when a dashboard is made. So a query gives each chosen node a number, its slot, by age:
0 is the oldest. It is computed at the end of the shown time and holds for all of it, so that a line
keeps its looks. The slot is the first word of a line's name; overrides find it there, and show the
line without it.

The query is the text of a hidden variable, so that each panel only has ``$looks`` in its expression.
Grafana replaces variables within the "all" value of another variable, and leaves that value as it is
(legacy ``template_srv.replace``, ``CustomAllValue`` of its scenes library).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from boards.colours import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY

VARIABLE: Final = "looks"
#: In a legend: the name, and the name after the slot.
LEGEND: Final = "{{who}}"
SLOTTED: Final = "{{slot}} {{who}}"
#: What a line with a slot is shown as.
SHOWN: Final = "${__field.labels.who}"


@dataclass(frozen=True, slots=True)
class Look:
    """How the line of a slot is drawn; *dash* is pixels drawn and left out."""

    colour: str
    fill: Literal["solid", "dash", "dot"]
    dash: tuple[int, ...] = ()


#: Further nodes have a colour by name, and a solid line.
LOOKS: Final = (
    Look(SKY, "solid"),
    Look(ORANGE, "dash", (12, 6)),
    Look(GREEN, "dot", (0, 6)),
    Look(PURPLE, "dash", (24, 6)),
    Look(BLUE, "dash", (4, 4)),
    Look(GREY, "dash", (16, 5, 2, 5)),
)

#: When each chosen VM started; in raw strings, since names are escaped for a regular expression.
_STARTED: Final = (
    "max by (instance, node) (last_over_time(beam_start_time_seconds"
    "{instance=~`${host:regex}`, node=~`${node:regex}`}[$__range] @ end()))"
)


def slots() -> str:
    """PromQL: 1 for each chosen VM, with the labels instance, node, slot and who."""
    among = [
        f'label_replace(bottomk({most}, {_STARTED}), "of", "{most}", "", "")'
        for most in range(1, len(LOOKS) + 1)
    ]
    # The oldest is among the oldest 1, the oldest 2 and so on; further ones are in the last alone.
    among.append(f'label_replace({_STARTED}, "of", "all", "", "")')
    slot = f"{len(among)} - count by (instance, node) ({' or '.join(among)})"
    namesakes = f'count_values by (node) ("namesakes", count by (node) ({_STARTED}))'
    joined = (
        f'count_values by (instance, node) ("slot", {slot})'
        f" * on (node) group_left (namesakes) {namesakes}"
    )
    both = f'label_join({joined}, "who", " ", "node", "instance")'
    alone = f'label_join({both}, "all", " ", "namesakes", "node", "instance")'
    named_ = f'label_replace({alone}, "who", "$1", "all", "1 (.*) [^ ]*")'
    return f"group by (instance, node, slot, who) ({named_})"


def named(expression: str) -> str:
    """*expression*, whose series have instance and node, with the labels slot and who as well."""
    return f"({expression}) * on (instance, node) group_left (slot, who) ${VARIABLE}"
