# SPDX-License-Identifier: Apache-2.0
"""
How values, documents and bytes are changed: as someone would who wants the reader to fall.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from random import Random

#: Edges of the widths that readers have, their neighbours, and what is no number.
NUMBERS = (
    0, 1, -1, 2, 7, 8, 63, 64, 65, 127, 128, 255, 256, 4095, 4096, 65535, 65536,
    (1 << 31) - 1, 1 << 31, -(1 << 31), (1 << 32) - 1, 1 << 32, (1 << 47) - 8, 1 << 47,
    (1 << 53) + 1, (1 << 63) - 1, 1 << 63, -(1 << 63), (1 << 64) - 1, 1 << 64, -(1 << 64),
    10**30, 0.5, -0.0, 5e-324, 1e308, float("inf"), float("-inf"), float("nan"),
)  # fmt: skip
TEXTS = (
    "", " ", "\0", "\x1b[2J\x1b]0;x\x07", "\u202e\u2028", "\ud800", "\udcff\udcfe", "\x9b31m",
    "[bold]x[/bold]", "[/]", "[link=file:///etc]", "%s%n{0}", "a" * 300, "a" * 5000, "\n\n",
    "1", "symbol", "<script>", "\U0010ffff", "unavailable", "schedule", "..", "/dev/null",
    "\u0661\u0662", "1e5", "0.0.0",
)  # fmt: skip
_WORDS = tuple(n & 0xFFFFFFFFFFFFFFFF for n in NUMBERS if isinstance(n, int))


def word(random: Random) -> int:
    """
    A 64-bit word: a boundary value, one near it, or noise.
    """
    choice = random.random()
    if choice < 0.6:
        return random.choice(_WORDS)
    if choice < 0.8:
        return (random.choice(_WORDS) + random.randint(-9, 9)) & 0xFFFFFFFFFFFFFFFF
    return random.getrandbits(64)


def value(random: Random, depth: int = 0) -> Any:
    """
    Any value of JSON.
    """
    choice = random.random()
    if choice < 0.5:
        return random.choice(NUMBERS)
    if choice < 0.75:
        return random.choice(TEXTS)
    if choice < 0.85 or depth > 2:
        return random.choice((None, True, False, [], {}))
    if choice < 0.93:
        return [value(random, depth + 1) for _ in range(random.randint(0, 4))]
    if choice < 0.99:
        return {random.choice(TEXTS): value(random, depth + 1) for _ in range(3)}
    deep: Any = 0
    for _ in range(random.choice((10, 90, 400))):
        deep = [deep]
    return deep


def _paths(document: Any) -> list[tuple[Any, Any]]:
    """
    Every position in a document: the container, and the key in it.
    """
    found: list[tuple[Any, Any]] = []
    waiting = [document] if isinstance(document, (list, dict)) else []
    while waiting:
        container = waiting.pop()
        keys = range(len(container)) if isinstance(container, list) else list(container)
        for key in keys:
            found.append((container, key))
            if isinstance(container[key], (list, dict)):
                waiting.append(container[key])
    return found


def change(random: Random, document: Any, times: int) -> Any:
    """
    A document (a list or an object, which is changed) with some of its values otherwise.
    """
    if random.random() < 0.02:
        return value(random)
    for _ in range(times):
        paths = _paths(document)
        if not paths:
            break
        container, key = random.choice(paths)
        choice = random.random()
        if choice < 0.6:
            container[key] = value(random)
        elif choice < 0.7:
            del container[key]
        elif choice < 0.8:
            other, source = random.choice(paths)
            container[key] = copy.deepcopy(other[source])
        elif choice < 0.9 and isinstance(container, list):
            many = (1, 2) if isinstance(container[key], (list, dict)) else (1, 2, 100)
            container += [copy.deepcopy(container[key]) for _ in range(random.choice(many))]
        elif isinstance(container, dict):
            container[random.choice(TEXTS)] = container.pop(key)
        else:
            random.shuffle(container)
    return document


def spoil(random: Random, data: bytes, times: int) -> bytes:
    """
    Some bytes with bits flipped, words replaced, parts cut out, doubled or made up.
    """
    made = bytearray(data)
    for _ in range(times):
        offset, choice = random.randrange(len(made) + 1), random.random()
        if choice < 0.3 and offset < len(made):
            made[offset] ^= 1 << random.randrange(8)
        elif choice < 0.7:
            size = random.choice((1, 2, 4, 8))
            offset -= offset % size
            made[offset : offset + size] = (word(random) & (1 << 8 * size) - 1).to_bytes(
                size, "little"
            )
        elif choice < 0.8:
            del made[offset : offset + random.choice((1, 4, 8, 100, 5000))]
        elif choice < 0.9:
            made[offset:offset] = made[offset : offset + random.choice((1, 8, 100))]
        else:
            size = random.choice((1, 8, 64))
            made[offset : offset + size] = random.randbytes(size)
    return bytes(made)
