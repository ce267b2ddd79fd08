# SPDX-License-Identifier: Apache-2.0
"""A profile as a short document: the stacks and functions that took most."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from scope_ebpf.results.documents.answers import CodeFrame, ProfileDocument
    from scope_ebpf.results.documents.exports import SpeedscopeDocument, SpeedscopeFrame

#: Stacks and functions of a document.
STACKS, FUNCTIONS = 20, 40
#: Frames of a stack; the outermost ones are left out of a longer one, but for the first.
_FRAMES = 60
#: The name and the file of a function.
_Function = tuple[str, str]


def hottest(written: dict[str, Any]) -> dict[str, Any]:
    """Make a ``ProfileDocument`` of a file in speedscope's format, which ``profile`` wrote."""
    source = cast("SpeedscopeDocument", written)
    frames, (whole, *_) = source["shared"]["frames"], source["profiles"]
    stacks: Counter[tuple[int, ...]] = Counter()
    for stack, weight in zip(whole["samples"], whole["weights"], strict=True):
        stacks[tuple(stack)] += weight
    total = sum(stacks.values()) or 1
    own, inside = _times(stacks, frames)
    ranked = sorted(inside, key=lambda one: (-own[one], -inside[one], one))
    document: ProfileDocument = {
        "schema": 1,
        "title": source["name"],
        "samples": len(whole["samples"]),
        "seconds": sum(stacks.values()) / 1e9,
        "stacks_total": len(stacks),
        "stacks": [
            {
                "share": round(weight / total, 4),
                "frames": [_frame(frames[number]) for number in _cut(numbers)],
            }
            for numbers, weight in stacks.most_common(STACKS)
        ],
        "functions": [
            {
                "function": one[0],
                "file": one[1] or None,
                "own_share": round(own[one] / total, 4),
                "total_share": round(inside[one] / total, 4),
            }
            for one in ranked[:FUNCTIONS]
        ],
    }
    return cast("dict[str, Any]", document)


def _times(
    stacks: Counter[tuple[int, ...]], frames: list[SpeedscopeFrame]
) -> tuple[Counter[_Function], Counter[_Function]]:
    """The time of each function, without and with what it called, ns."""
    own, inside = Counter[_Function](), Counter[_Function]()
    for numbers, weight in stacks.items():
        functions = [(frames[n]["name"], frames[n].get("file", "")) for n in numbers]
        own.update(dict.fromkeys(functions[-1:], weight))
        inside.update(dict.fromkeys(functions, weight))
    return own, inside


def _cut(numbers: tuple[int, ...]) -> tuple[int, ...]:
    return numbers if len(numbers) <= _FRAMES else (numbers[0], *numbers[-_FRAMES + 1 :])


def _frame(frame: SpeedscopeFrame) -> CodeFrame:
    return {"function": frame["name"], "file": frame.get("file"), "line": frame.get("line")}
