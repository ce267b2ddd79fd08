# SPDX-License-Identifier: Apache-2.0
"""The server: the tools by the reference implementation of the protocol, over stdio."""

from __future__ import annotations

import logging
import os
import stat
from importlib import metadata
from typing import TYPE_CHECKING, Any, cast

import anyio
import mcp_types as types
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from mcp.server import Server
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError

from scope_ebpf.errors import ScopeError
from scope_ebpf.mcp.answers import NOTICE, answer, output_schema, text
from scope_ebpf.mcp.redaction import Redaction
from scope_ebpf.mcp.running import Runner, refusal
from scope_ebpf.mcp.tools import TOOLS
from scope_ebpf.plain import plain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from scope_ebpf.mcp.tools import Tool

#: Bytes of a request; a longer line is left out, up to its end.
MOST_LINE = 1 << 20
#: Bytes that are read at once.
PIECE = 1 << 16
#: What stands instead of a line that is too long: no JSON, so it is answered as such.
_TOO_LONG = "too long\n"
_MOST_ERROR = 2000
_INSTRUCTIONS = (
    "Looks into running Erlang and Elixir VMs of this host from outside; nothing changes them. "
    "Begin with list, which gives the pid that the other tools want. " + NOTICE
)


class Tools:
    """
    Answers requests for tools.

    With *redact* names and texts of the application are replaced in every answer; else in those
    for which the client asks it.
    """

    def __init__(self, *, redact: bool, runner: Runner | None = None) -> None:
        self._redact = redact
        self._runner = runner or Runner()
        self._redaction = Redaction()

    async def list(self, _context: Any, _params: Any) -> types.ListToolsResult:
        """Every tool, with the schemas of its arguments and of its answer."""
        hints = types.ToolAnnotations(
            read_only_hint=True, destructive_hint=False, open_world_hint=False
        )
        found = [
            types.Tool(
                name=name,
                description=tool.description,
                input_schema=tool.input_schema(),
                output_schema=output_schema(tool.schema),
                annotations=hints,
            )
            for name, tool in TOOLS.items()
        ]
        return types.ListToolsResult(tools=found)

    async def call(
        self, _context: Any, params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        """The answer of one tool; an error with cause and remedy where it has none."""
        tool = TOOLS.get(params.name)
        if tool is None:
            raise MCPError(
                types.INVALID_PARAMS,
                f"no tool {plain(params.name[:80])!r}; there are: {', '.join(TOOLS)}",
            )
        given = params.arguments or {}
        try:
            wrong = _wrong(tool, given)
            return _error(wrong) if wrong else await self._answer(params.name, tool, given)
        except ScopeError as error:
            return _error(str(error))

    async def _answer(self, name: str, tool: Tool, given: dict[str, Any]) -> types.CallToolResult:
        redacted = self._redact or given.get("redact") is True
        ended = await self._runner.run(tool, given)
        if ended.document is None:
            return _error(refusal(ended, redacted=redacted), NOTICE)
        document = ended.document
        said = "" if ended.code == 0 else refusal(ended, redacted=redacted)
        if redacted:
            document = self._redaction.document(document)
        made = answer(name, document, said, redacted=redacted)
        content = types.TextContent(type="text", text=text(made))
        return types.CallToolResult(
            content=[content], structured_content=cast("dict[str, Any]", made), is_error=False
        )


def _wrong(tool: Tool, given: dict[str, Any]) -> str | None:
    """What is wrong with arguments; None if nothing is."""
    error = best_match(Draft202012Validator(tool.input_schema()).iter_errors(given))
    if error is None:
        return None
    where = "".join(f"{part}: " for part in error.path)
    return f"wrong arguments: {where}{error.message}"


def _error(why: str, *more: str) -> types.CallToolResult:
    texts = (plain(why[:_MOST_ERROR]), *more)
    content = [types.TextContent(type="text", text=one) for one in texts]
    return types.CallToolResult(content=list(content), is_error=True)


class Lines:
    """The lines of a file descriptor, as text; of MOST_LINE bytes at most."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        mode = os.fstat(descriptor).st_mode
        # A file or /dev/null is always readable, and the kernel refuses to wait for one.
        self._waits = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)

    async def __aiter__(self) -> AsyncIterator[str]:
        """Yield each line with its newline, those that are too long as no JSON."""
        pending, skipping = bytearray(), False
        while chunk := await self._chunk():
            pending += chunk
            *lines, rest = pending.split(b"\n")
            pending = bytearray(rest)
            for line in lines:
                yield _TOO_LONG if skipping or len(line) > MOST_LINE else _decoded(line)
                skipping = False
            if len(pending) > MOST_LINE:
                pending.clear()
                skipping = True
        if pending and not skipping:
            yield _decoded(pending)

    async def _chunk(self) -> bytes:
        if self._waits:
            await anyio.wait_readable(self._descriptor)
        return os.read(self._descriptor, PIECE)


def _decoded(line: bytes | bytearray) -> str:
    return line.decode("utf-8", "replace") + "\n"


def serve(*, redact: bool) -> None:
    """Serve the client on stdin and stdout until it closes stdin."""
    # What a client sends is quoted in logs, and stderr may be a terminal.
    logging.disable(logging.CRITICAL)
    anyio.run(_serve, Tools(redact=redact))


async def _serve(tools: Tools) -> None:
    server: Server[Any] = Server(
        "scope-ebpf",
        version=metadata.version("scope-ebpf"),
        instructions=_INSTRUCTIONS,
        on_list_tools=tools.list,
        on_call_tool=tools.call,
    )
    stdin = cast("anyio.AsyncFile[str]", Lines(0))
    async with stdio_server(stdin) as (incoming, outgoing):
        await server.run(incoming, outgoing, server.create_initialization_options())
