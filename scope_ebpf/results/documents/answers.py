# SPDX-License-Identifier: Apache-2.0
"""Documents that only programs get, from ``scope-trace mcp``."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict


class CodeFrame(TypedDict):
    """One frame of a stack."""

    #: M:F/A of Erlang code, a symbol of native code or the kernel, or a process or thread.
    function: str
    #: Source file or binary; null where it is not known.
    file: str | None
    line: int | None


class HotStack(TypedDict):
    """One stack, and how long it ran."""

    #: The part of the time of all samples.
    share: float
    #: From the outermost frame, which is a process or a thread, to the innermost.
    frames: list[CodeFrame]


class HotFunction(TypedDict):
    """One function, process or thread."""

    function: str
    #: Source file or binary; null where it is not known.
    file: str | None
    #: The part of the time without what it called.
    own_share: float
    #: The part of the time with what it called.
    total_share: float


class ProfileDocument(TypedDict):
    """The answer of the tool profile: stacks and functions that took most, in that order."""

    schema: Literal[1]
    #: What was profiled, and for how long.
    title: str
    samples: int
    #: The time that all samples stand for.
    seconds: float
    #: Stacks that differ; those that took most are in stacks.
    stacks_total: int
    stacks: list[HotStack]
    functions: list[HotFunction]


class Answer(TypedDict):
    """The answer of a tool of scope-trace mcp."""

    tool: str
    #: What a reader of the document must know.
    notice: str
    #: Whether names and texts of the application are replaced.
    redacted: bool
    #: Why the command ended early; empty if it did not.
    said: str
    #: How many items were left out of which list, because the answer would be too large.
    left_out: dict[str, int]
    #: The document of the command.
    document: dict[str, Any]
