# SPDX-License-Identifier: Apache-2.0
"""
The reference client of the Model Context Protocol, as a client of ``scope-trace mcp``.

    def use(ask):
        return ask("top", pid=beam.pid)["document"]

    rows = talk(use)
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import anyio.to_thread
from mcp import ClientSession, StdioServerParameters, stdio_client

if TYPE_CHECKING:
    from collections.abc import Callable

    from mcp_types import CallToolResult

WORDS = ("-m", "scope_ebpf.cli.main", "mcp")


class Refused(Exception):  # noqa: N818 - the answer of a tool
    """
    A tool answered with an error.
    """


class Asked:
    """
    A session in which tools are called one after the other.
    """

    def __init__(self, session: ClientSession) -> None:
        self._session = session

    def tools(self) -> dict[str, Any]:
        """
        The tools that the server offers, by name.
        """
        found = anyio.from_thread.run(self._session.list_tools)
        return {tool.name: tool for tool in found.tools}

    def __call__(self, name: str, **arguments) -> dict[str, Any]:
        """
        The answer of a tool; Refused with its words where it is an error.
        """
        result: CallToolResult = anyio.from_thread.run(self._session.call_tool, name, arguments)
        content, *notices = result.content
        if result.is_error:
            raise Refused(content.text, *(notice.text for notice in notices))
        assert [] == notices
        assert result.structured_content == json.loads(content.text)
        return result.structured_content


def talk(use: Callable[[Asked], Any], *words: str) -> Any:
    """
    What *use* returns, which is called with a session of a fresh server.
    """

    async def session() -> Any:
        server = StdioServerParameters(command=sys.executable, args=[*WORDS, *words])
        async with stdio_client(server) as streams, ClientSession(*streams) as made:
            await made.initialize()
            await made.list_tools()  # the client validates answers by the schemas in it
            return await anyio.to_thread.run_sync(use, Asked(made))

    return anyio.run(session)
