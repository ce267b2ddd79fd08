# SPDX-License-Identifier: Apache-2.0
"""
The tools: which command each runs, what a client may ask of it, and its limits.

A command joins by a row in :data:`TOOLS`. It must print one JSON document, and change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scope_ebpf.attach.plan import EVENTS
from scope_ebpf.mcp.profile import hottest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

#: The longest time for which a client can have a VM observed, seconds.
MOST_SECONDS = 60
#: Rows of a table, by default and at most.
_ROWS, _MOST_ROWS = 20, 200


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a tool."""

    #: JSON schema of its values.
    schema: dict[str, Any]
    #: The option that it becomes; "" for a positional argument.
    option: str = ""
    #: Its value where the client gives none; None and False leave the option out.
    default: Any = None
    required: bool = False


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool."""

    #: What it answers, for a program that chooses among tools.
    description: str
    #: The words of the command line before its parameters.
    command: tuple[str, ...]
    #: The schema of its document: a file of ``scope_ebpf/schemas``.
    schema: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    #: Makes the document of what the command wrote to a file, for one that has no JSON of its own.
    convert: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    #: Ending of the name of that file.
    ending: str = ""

    def input_schema(self) -> dict[str, Any]:
        """The JSON schema of its arguments."""
        properties = {
            name: one.schema | ({} if one.default is None else {"default": one.default})
            for name, one in self.parameters.items()
        }
        return {
            "type": "object",
            "properties": properties | {"redact": _REDACT},
            "required": [name for name, one in self.parameters.items() if one.required],
            "additionalProperties": False,
        }

    def words(self, given: Mapping[str, Any]) -> list[str]:
        """The command line for arguments that :meth:`input_schema` allows."""
        words, places = list(self.command), []
        for name, one in self.parameters.items():
            value = given.get(name, one.default)
            if value is None or value is False:
                continue
            if not one.option:
                places.append(_text(value))
            elif value is True:
                words.append(one.option)
            else:
                words.append(f"{one.option}={_text(value)}")
        # No text of a client is an option: it stands behind the mark that ends them.
        return [*words, *(("--", *places) if places else ())]

    def seconds(self, given: Mapping[str, Any]) -> float:
        """How long it observes, at most."""
        return float(given.get("duration", MOST_SECONDS) if "duration" in self.parameters else 0)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value)


def _choice(*values: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


def _with(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return schema | {"description": description}


def _events(names: Sequence[str]) -> dict[str, Any]:
    return {"type": "array", "items": _choice(*names), "minItems": 1, "uniqueItems": True}


_REDACT = {
    "type": "boolean",
    "default": False,
    "description": "Replace names and texts of the application by pseudonyms, which stay the same "
    "until this server ends.",
}
_WHOLE = {"type": "integer", "minimum": 1, "maximum": 4194304}
_VM = Parameter(
    _with("Process id of the VM on this host; the tool list finds it.", _WHOLE),
    "--pid",
    required=True,
)
_DURATION = Parameter(
    {
        "type": "number",
        "minimum": 0.1,
        "maximum": MOST_SECONDS,
        "description": "Seconds to observe for.",
    },
    "--duration",
    10,
)
_LIMIT = Parameter(
    {"type": "integer", "minimum": 1, "maximum": _MOST_ROWS, "description": "Rows."},
    "--limit",
    _ROWS,
)


def _pattern(description: str) -> dict[str, Any]:
    schema = {"type": "string", "minLength": 1, "maxLength": 300, "pattern": r"^[^\x00]+$"}
    return _with(description, schema)


#: Every tool, by its name.
TOOLS: dict[str, Tool] = {
    "list": Tool(
        "The Erlang and Elixir VMs on this host, and what keeps each from its work. Only reads "
        "memory.",
        ("list", "--format", "json"),
        "list",
    ),
    "doctor": Tool(
        "What this host lacks, and which events of a VM can be seen and why others cannot.",
        ("doctor", "--format", "json"),
        "doctor",
        {"pid": Parameter(_with("Process id of a VM; without it, the host is looked at.", _WHOLE))},
    ),
    "summary": Tool(
        "What a VM does during some seconds: counts, rates and durations of its events, load, "
        "run queues, memory, longest mailbox. Attaches hooks that keep within 1 % of its CPU.",
        ("trace", "--format", "json"),
        "summary",
        {
            "pid": _VM,
            "duration": _DURATION,
            "events": Parameter(
                _with("Events to count; without it, those that cost little.", _events(EVENTS)),
                "--events",
            ),
        },
    ),
    "top": Tool(
        "The Erlang processes of a VM that use most: reductions and collections since each began, "
        "mailbox, memory. Only reads memory, so it works on a VM that is stopped or stuck.",
        ("top", "--once", "--format", "json"),
        "top",
        {
            "pid": _VM,
            "sort": Parameter(
                _with(
                    "What to sort by.", _choice("reductions", "memory", "mailbox", "gc", "binary")
                ),
                "--sort",
                "reductions",
            ),
            "limit": _LIMIT,
        },
    ),
    "ps": Tool(
        "Everything known of one Erlang process: its stack, mailbox, links, memory. Only reads "
        "memory.",
        ("ps", "--format", "json"),
        "ps",
        {
            "pid": _VM,
            "process": Parameter(
                {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 300,
                    "pattern": r"^[^\x00-][^\x00]*$",
                    "description": "Its pid such as <0.97.0>, or its registered name; in quotes if "
                    "that begins with a hyphen.",
                },
                required=True,
            ),
        },
    ),
    "schedulers": Tool(
        "What each scheduler thread of a VM does now, on which process and function, and for how "
        "long. Only reads memory, so it works on a VM that is stopped or stuck.",
        ("schedulers", "--once", "--format", "json"),
        "schedulers",
        {"pid": _VM},
    ),
    "genservers": Tool(
        "The servers of a VM by callback module: how busy, mailboxes, callers that wait and for "
        "whom, and a verdict: what most waiting goes through, or a deadlock. Only reads memory.",
        ("genservers", "--no-hooks", "--format", "json"),
        "genservers",
        {
            "pid": _VM,
            "duration": _DURATION,
            "by": Parameter(
                _with("What a row is.", _choice("module", "tag", "name", "process")),
                "--by",
                "module",
            ),
        },
    ),
    "links": Tool(
        "The connections of a VM to other nodes: state, traffic, what waits in the VM and its "
        "driver, which processes wait for a full one, and the TCP socket: round trip, "
        "retransmits, window. Only reads memory.",
        ("links", "--once", "--format", "json"),
        "links",
        {"pid": _VM},
    ),
    "check": Tool(
        "What is wrong with a VM: findings with severity, evidence and the next command, the cause "
        "first. Only reads memory, so it works on a VM that is stopped or stuck. Begin with it.",
        ("check", "--format", "json", "--fail-on", "never"),
        "check",
        {"pid": _VM, "duration": _DURATION},
    ),
    "ets": Tool(
        "The ETS tables of a VM: name, owner, type, objects, memory, growth between two looks. "
        "Only reads memory, so it works on a VM that is stopped or stuck.",
        ("ets", "--format", "json"),
        "ets",
        {
            "pid": _VM,
            "duration": Parameter(_DURATION.schema, "--duration", 1),
            "sort": Parameter(
                _with("What to sort by.", _choice("memory", "objects", "growth")),
                "--sort",
                "memory",
            ),
            "limit": _LIMIT,
        },
    ),
    "ports": Tool(
        "The ports of a VM: driver or program and its process, owner, bytes that wait in its "
        "queue, whether it is busy and how many processes it has suspended, bytes in and out. "
        "Only reads memory, so it works on a VM that is stopped or stuck.",
        ("ports", "--format", "json"),
        "ports",
        {
            "pid": _VM,
            "duration": Parameter(_DURATION.schema, "--duration", 1),
            "sort": Parameter(
                _with("What to sort by.", _choice("queue", "traffic", "bytes")),
                "--sort",
                "queue",
            ),
            "limit": _LIMIT,
        },
    ),
    "stacks": Tool(
        "All processes of a VM in groups of equal stacks, initial calls, functions or labels, the "
        "largest first, with sums of messages and heaps and the pid of one of each. Only reads "
        "memory, so it works on a VM that is stopped or stuck.",
        ("stacks", "--format", "json"),
        "stacks",
        {
            "pid": _VM,
            "by": Parameter(
                _with("What to group by.", _choice("stack", "call", "function", "label")),
                "--by",
                "stack",
            ),
            "limit": _LIMIT,
        },
    ),
    "memory": Tool(
        "Where the memory of a VM is: kinds as erlang:memory/0 has them, allocators, what is not "
        "theirs, limits of cgroup and tables, and the processes, binaries, ETS tables, persistent "
        "terms and atoms that take most, with growth between two looks. Only reads memory, so it "
        "works on a VM that is stopped or stuck.",
        ("memory", "--format", "json"),
        "memory",
        {
            "pid": _VM,
            "duration": Parameter(_DURATION.schema, "--duration", 1),
            "sort": Parameter(
                _with("What to sort holders by.", _choice("size", "growth")), "--sort", "size"
            ),
            "limit": _LIMIT,
        },
    ),
    "marks": Tool(
        "Calls, rates and durations of the functions of a VM that scope-mark has marked, by "
        "function; refused for a VM without marked code. Hooks keep within 1 % of its CPU.",
        ("marks", "--format", "json"),
        "marks",
        {"pid": _VM, "duration": _DURATION},
    ),
    "profile": Tool(
        "Where the CPU time of a VM goes, or what its processes wait in: the stacks and functions "
        "that took most. Samples 99 times a second.",
        ("profile",),
        "mcp-profile",
        {
            "pid": _VM,
            "duration": _DURATION,
            "off_cpu": Parameter(
                {
                    "type": "boolean",
                    "description": "What processes wait in, instead of what they run; costs the "
                    "VM two breakpoints for each wait.",
                },
                "--off-cpu",
                default=False,
            ),
        },
        hottest,
        ".speedscope.json",
    ),
    "telemetry": Tool(
        "The events of Elixir's libraries in a VM, by route, LiveView, query or job: counts, "
        "rates, errors, durations. Only for a VM with the library telemetry. Attaches a hook that "
        "keeps within 1 % of its CPU; where that is little, counts are estimates with errors.",
        ("telemetry", "--format", "json"),
        "telemetry",
        {
            "pid": _VM,
            "duration": _DURATION,
            "events": Parameter(
                _pattern(
                    "Patterns of event names, with commas: phoenix.*,*.query. All without it."
                ),
                "--events",
            ),
            "limit": Parameter(
                _with("Rows of one event; the others are one row.", _LIMIT.schema),
                "--limit",
                _ROWS,
            ),
        },
    ),
    "requests": Tool(
        "The slowest requests of an Elixir application, and those that failed, as trees of spans: "
        "server, endpoint, router, queries, with route, status and exception. Attaches a hook that "
        "keeps within 1 % of the VM's CPU; where that is little, some requests are not seen.",
        ("requests", "--format", "json"),
        "requests",
        {
            "pid": _VM,
            "duration": _DURATION,
            "slower": Parameter(
                {
                    "type": "number",
                    "minimum": 0,
                    "maximum": 3600,
                    "description": "Only requests that took so many seconds or more.",
                },
                "--slower",
            ),
            "route": Parameter(_pattern("Only of routes like this: /api/*."), "--route"),
            "limit": _LIMIT,
        },
    ),
}
