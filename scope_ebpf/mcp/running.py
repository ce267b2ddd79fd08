# SPDX-License-Identifier: Apache-2.0
"""
One run of a command for a client: a process of its own, bounded in time and output.

A process of its own, so that nothing that a VM does to a command reaches the server.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

import scope_ebpf
from scope_ebpf import errors
from scope_ebpf.errors import ScopeError, TooMuchError, UsageError
from scope_ebpf.plain import plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anyio.abc import ByteReceiveStream

    from scope_ebpf.mcp.tools import Tool

#: Seconds that a command may take besides those for which it observes.
PATIENCE = 120.0
#: Bytes that a command may print as a document, and that are kept of what it says on stderr.
_MOST_OUTPUT, _MOST_SAID = 16 << 20, 8 << 10
#: Calls that may wait for the one that runs.
_WAITING = 8
#: Words that begin lines which say that all is well.
_STARTED = ("tracing process", "watching process", "profiling process", "checking process")
_USUAL = (*_STARTED, "this takes", "written: ")


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command left behind."""

    code: int
    #: Its document; None if it made none.
    document: dict[str, Any] | None
    #: What it said on stderr, without what it says each time.
    said: str


@dataclass(slots=True)
class Runner:
    """Runs one command at a time; *prefix* starts one."""

    prefix: tuple[str, ...] = (sys.executable, "-P", "-m", "scope_ebpf.cli.main")
    patience: float = PATIENCE
    _lock: anyio.Lock = field(default_factory=anyio.Lock)

    async def run(self, tool: Tool, given: Mapping[str, Any]) -> Ended:
        """
        Run the command of *tool* with arguments that its schema allows.

        Raises TooMuchError where it takes too long or prints too much, or too many calls wait.
        """
        if self._lock.statistics().tasks_waiting >= _WAITING:
            raise TooMuchError(
                f"{_WAITING} calls wait already, and VMs are observed one call at a time; ask "
                "again when they have answers"
            )
        async with self._lock:
            if not tool.ending:
                return await self._ended(tool, tool.words(given), tool.seconds(given), None)
            with tempfile.TemporaryDirectory(prefix="scope-trace-") as folder:
                path = Path(folder) / f"output{tool.ending}"
                words = [*tool.words(given), "-o", str(path)]
                return await self._ended(tool, words, tool.seconds(given), path)

    async def _ended(
        self, tool: Tool, words: list[str], seconds: float, path: Path | None
    ) -> Ended:
        code, output, said = await self._run(words, seconds + self.patience)
        if path is not None:
            output = _read(path)
        document = None
        with suppress(ValueError, RecursionError):
            document = json.loads(output)
        if document is not None and tool.convert is not None:
            document = tool.convert(document)
        return Ended(code, document if isinstance(document, dict) else None, _said(said))

    async def _run(self, words: list[str], seconds: float) -> tuple[int, bytes, bytes]:
        """Its exit code, stdout and stderr; it is killed where it breaks a limit."""
        output, said = bytearray(), bytearray()
        with anyio.move_on_after(seconds) as limit:
            # Left early, as when the client cancels, the process is killed: its hooks go with it.
            async with await anyio.open_process(
                [*self.prefix, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_environment(),
                start_new_session=True,
            ) as process:
                if process.stdout is None or process.stderr is None:
                    raise TooMuchError("the command has no output")
                async with anyio.create_task_group() as readers:
                    readers.start_soon(_keep, process.stderr, said, _MOST_SAID)
                    await _keep(process.stdout, output, _MOST_OUTPUT + 1)
                code = await process.wait()
        if limit.cancelled_caught:
            raise TooMuchError(
                f"the command took more than {seconds:.0f} s and was ended: the host is too busy, "
                "or the VM too large; ask for less, such as a shorter duration"
            )
        if len(output) > _MOST_OUTPUT:
            raise TooMuchError(
                f"the document is larger than {_MOST_OUTPUT >> 20} MiB; ask for less, such as "
                "fewer rows"
            )
        return code, bytes(output), bytes(said)


async def _keep(stream: ByteReceiveStream, kept: bytearray, most: int) -> None:
    """Read all of *stream*, and keep the first *most* bytes."""
    async for chunk in stream:
        kept += chunk[: most - len(kept)]


def _read(path: Path) -> bytes:
    """The file that a command has written into a folder of ours; nothing if there is none."""
    try:
        with path.open("rb") as file:
            found = file.read(_MOST_OUTPUT + 1)
    except OSError:
        return b""
    if len(found) > _MOST_OUTPUT:
        raise TooMuchError(
            f"the profile is larger than {_MOST_OUTPUT >> 20} MiB; ask for a shorter duration"
        )
    return found


def _environment() -> dict[str, str]:
    """Ours, in which the command finds the same package, wherever it was started."""
    places = [str(Path(scope_ebpf.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places)), "NO_COLOR": "1"}


def _said(raw: bytes) -> str:
    lines = raw.decode("utf-8", "replace").split("\n")
    texts = [line.removeprefix("scope-trace: ").strip() for line in lines]
    return plain(" ".join(line for line in texts if line and not line.startswith(_USUAL)))


def refusal(ended: Ended, *, redacted: bool) -> str:
    """Why there is no document: what the command said; its kind alone where texts are left out."""
    if not redacted and ended.said:
        return ended.said
    return f"{_kind(ended.code)} (exit code {ended.code} of scope-trace" + (
        "; its own words are left out, since they may have names in them)" if redacted else ")"
    )


def _kind(code: int) -> str:
    """The first sentence of the error with an exit code."""
    for error in (*vars(errors).values(), UsageError):
        if isinstance(error, type) and issubclass(error, ScopeError) and error.exit_code == code:
            return " ".join(str(error.__doc__).strip().split("\n\n")[0].split())
    return "The command was ended by a signal" if code < 0 else "The command failed."
