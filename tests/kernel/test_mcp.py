# SPDX-License-Identifier: Apache-2.0
"""
Every tool of ``scope-trace mcp`` on a live VM, by the reference client of the protocol.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import documents
import pytest
from beams_run import PATIENCE, start_beam
from mcp.shared.exceptions import MCPError
from mcp_client import WORDS, Refused, talk

from scope_ebpf.mcp.answers import NOTICE
from scope_ebpf.mcp.tools import TOOLS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import beams_run

ROOT = Path(__file__).parents[2]
TOOLS_OF_MARK = ROOT / "scope_mark/tools/escript.escript"
#: Arguments of each tool besides the VM's pid; the VM has no telemetry, so no tool for that.
ARGUMENTS = {
    "list": {},
    "doctor": {},
    "summary": {"duration": 1, "events": ["spawn", "gc"]},
    "top": {"sort": "memory", "limit": 3},
    "ps": {"process": "code_server"},
    "schedulers": {},
    "genservers": {"duration": 1},
    "links": {},
    "check": {"duration": 1},
    "ets": {"duration": 0.5},
    "ports": {"duration": 0.5},
    "stacks": {"limit": 3},
    "marks": {"duration": 0.5},
    "profile": {"duration": 1},
}


def arguments(name: str, pid: int) -> dict:
    """
    The arguments with which a test calls a tool.
    """
    return ARGUMENTS[name] | ({"pid": pid} if "pid" in TOOLS[name].parameters else {})


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """
    The pid of a VM with one marked module.
    """
    folder = tmp_path_factory.mktemp("marked")
    for path in (folder, *folder.parents[:-1]):
        path.chmod(path.stat().st_mode | 0o111)
    source = ROOT / "tests/mark/counted.erl"
    subprocess.run(["erlc", "-o", folder, source], check=True)
    subprocess.run(["escript", TOOLS_OF_MARK, folder / "scope-mark"], check=True)
    words = [folder / "scope-mark", folder, "--profile", "callbacks"]
    subprocess.run(words, check=True, capture_output=True)
    with start_beam("stock25", "-s", "counted", "main", module_dir=folder) as beam:
        beam.expect("ready")
        beam.send("load")
        beam.expect("loaded")
        yield beam.pid


def test_each_tool_answers(stock: beams_run.Beam, marked: int):
    """
    The client lists the tools of the table, and each answers about the VM as its schema says.
    """

    def use(ask):
        assert list(TOOLS) == list(ask.tools())
        return {name: ask(name, **arguments(name, pids[name])) for name in ARGUMENTS}

    pids = dict.fromkeys(TOOLS, stock.pid) | {"marks": marked}
    answers = talk(use)
    for name, made in answers.items():
        assert (name, "", {}) == (made["tool"], made["said"], made["left_out"])
        documents.validated(made, "mcp-answer")
        documents.validated(made["document"], TOOLS[name].schema)
    found = {name: made["document"] for name, made in answers.items()}
    assert stock.pid in [beam["pid"] for beam in found["list"]["beams"]]
    for name in (
        "doctor",
        "summary",
        "top",
        "ps",
        "schedulers",
        "genservers",
        "links",
        "check",
        "ets",
    ):
        assert stock.pid == found[name]["target"]["pid"]
    assert ["spawn", "gc"] == list(found["summary"]["events"])
    sizes = [row["memory_bytes"] for row in found["top"]["processes"]]
    assert (3, sorted(sizes, reverse=True)) == (len(sizes), sizes)
    assert "code_server" == found["ps"]["process"]["name"]


def test_names_are_left_out(stock: beams_run.Beam, marked: int):
    """
    With --redact no answer has the name of the node, of a process or module of the application.
    """
    plainly = talk(lambda ask: ask("top", pid=stock.pid, limit=200))["document"]
    rows = plainly["processes"]
    named = {row[key] for row in rows for key in ("initial_call", "current_function") if row[key]}
    planted = {text for text in named if text.startswith("planted")}
    assert planted

    def use(ask):
        pids = dict.fromkeys(TOOLS, stock.pid) | {"marks": marked}
        return [ask(name, **arguments(name, pids[name])) for name in ARGUMENTS]

    for made in talk(use, "--redact"):
        assert made["redacted"]
        documents.fits(made["document"], TOOLS[made["tool"]].schema)
        text = json.dumps(made)
        secrets = ["planted", plainly["target"]["node"], plainly["target"]["exe"]]
        if made["tool"] == "marks":  # its module and function; a field of others is called counted
            secrets += ['"counted"', '"handle_call"']
        for secret in secrets:
            assert secret not in text, made["tool"]


def test_errors_are_errors(stock: beams_run.Beam):
    """
    What cannot be answered has cause and remedy, the client's mistakes too; then it goes on.
    """
    wrong = [
        ("top", {"pid": os.getpid()}, "is no BEAM|not a BEAM|no Erlang"),
        ("top", {"pid": 4194304}, "no process|does not exist|there is no"),
        ("top", {}, "'pid' is a required property"),
        ("top", {"pid": stock.pid, "limit": 201}, "limit: 201 is greater than the maximum of 200"),
        ("summary", {"pid": stock.pid, "duration": 61}, "61 is greater than the maximum of 60"),
        ("summary", {"pid": stock.pid, "events": ["x"]}, "events: 0: 'x' is not one of"),
        ("ps", {"pid": stock.pid, "process": "--help"}, "process: .* does not match"),
        ("ps", {"pid": stock.pid, "process": "'--help'"}, "no Erlang process"),
        ("ps", {"pid": stock.pid, "process": "<0.0.99999>"}, "no Erlang process"),
        ("schedulers", {"pid": f"{stock.pid}"}, "is not of type 'integer'"),
        ("list", {"output": "/etc/passwd"}, "'output' was unexpected"),
    ]

    def use(ask):
        for name, given, why in wrong:
            with pytest.raises(Refused) as refused:
                ask(name, **given)
            assert re.search(why, refused.value.args[0]), refused.value
            by_command = "arguments" not in refused.value.args[0]
            assert by_command == (NOTICE in refused.value.args)
        with pytest.raises(MCPError, match="no tool 'record'; there are: list, doctor"):
            ask("record", pid=stock.pid)
        return ask("schedulers", pid=stock.pid)["document"]["target"]["pid"]

    assert stock.pid == talk(use)


#: What no client sends: bytes that are no text, no JSON, no request, too deep, too long.
NONSENSE = (
    b"\xff\xfe\x00garbage\n",
    b"\n\n{}\n[]\nnull\n17\n",
    b"[" * 200_000 + b"\n",
    b'{"jsonrpc":"2.0","id":' + b"9" * 5000 + b',"method":"tools/list"}\n',
    b'{"jsonrpc":"2.0","id":{},"method":7,"params":"x"}\n',
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"list"}}\n',
    b'{"jsonrpc":"1.0","result":{},"id":1}\n',
    b"x" * (3 << 20) + b"\n",
)


def test_nonsense_does_no_harm():
    """
    After bytes of every kind the server still shakes hands and lists its tools.
    """
    who = {"name": "x", "version": "1"}
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": who}
    requests = [
        {"jsonrpc": "2.0", "id": 700, "method": "initialize", "params": hello},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 701, "method": "tools/list"},
    ]
    with subprocess.Popen(
        [sys.executable, *WORDS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as server:
        server.stdin.write(b"".join(NONSENSE))
        for request in requests:
            server.stdin.write(json.dumps(request).encode() + b"\n")
        server.stdin.flush()
        answers = {}
        while 701 not in answers:
            line = server.stdout.readline()
            assert line, server.stderr.read()
            answer = json.loads(line)
            answers[answer.get("id")] = answer
        _, errors = server.communicate(timeout=PATIENCE)
    assert list(TOOLS) == [tool["name"] for tool in answers[701]["result"]["tools"]]
    assert (0, b"") == (server.returncode, errors)
