# SPDX-License-Identifier: Apache-2.0
"""
Documents without names and texts of the application.

A text is replaced unless it is known to be no text of the application, so a field that a later
version adds is replaced until it is named here. Equal texts have equal pseudonyms until the
program ends; nobody can distinguish the text from one.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from scope_ebpf.attach.plan import EVENTS
from scope_ebpf.telemetry.specs import ANY, shipped

if TYPE_CHECKING:
    from collections.abc import Mapping

LEFT_OUT = "(left out)"
#: Fields whose texts are numbers of a VM, or words of the VM's, the kernel's or our own.
_KEPT = frozenset({
    "pid", "parent", "group_leader", "process", "port",
    "status", "priority", "message_queue_data", "kind", "doing", "flavor",
    "otp_release", "erts_version", "event", "state", "via", "hook", "hooks", "counted_by",
    "owner", "type", "protection", "held", "left", "moved", "detach", "stopped_because",
    "severity", "confidence", "outcome", "what", "checked", "next", "by",
    "class", "profile",
})  # fmt: skip
#: Sentences of ours that say why something cannot be seen; paths and the node's name are replaced.
_REASONS = frozenset({"reason", "why", "other_way", "on_request", "refused", "not_told"})
#: Sentences and terms with names in them that cannot be distinguished.
_DROPPED = frozenset({
    "trouble", "notes", "messages", "ancestors", "label", "title", "status_reason",
    "because", "summary",
})  # fmt: skip
#: Dictionaries whose keys are texts of the VM, and as which fields those are replaced.
KEYS = {"tags": "atom", "returned": "atom", "drivers": "driver"}
#: Those whose keys are words of ours, or of the configuration: of events, their classes, labels and
#: measurements, parts of the VM, kinds of findings. The keys of no other dictionary are texts.
OWN_KEYS = frozenset({
    "events", "by_class", "durations", "labels", "measurements", "hooks", "not_told", "refused",
    "left_out",
})  # fmt: skip
#: OTP's own drivers (OTP-25.2.3 and OTP-29.1.1 erts/emulator/sys/unix/sys_drivers.c, drivers/, and
#: lib/runtime_tools/c_src); efile, zlib_drv and tty_sl of older releases. "?" is one without name.
_DRIVERS = frozenset({
    "tcp_inet", "udp_inet", "sctp_inet", "spawn", "spawn_forker", "fd", "vanilla", "efile",
    "ram_file_drv", "zlib_drv", "tty_sl", "trace_file_drv", "trace_ip_drv", "?",
})  # fmt: skip
#: Fields with functions, as M:F/A or as symbols.
_FUNCTIONS = frozenset({
    "function", "current_function", "initial_call", "symbol", "name", "who",
})  # fmt: skip
#: Values of labels of telemetry events that are words of the libraries; others may be anything.
_LABELS = {
    "status": re.compile(r"[1-5](\d\d|xx)"),
    "method": re.compile("GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS"),
    "kind": re.compile("error|exit|throw"),
    "state": re.compile("success|failure|cancelled|snoozed|discard"),
    "result": re.compile("ok|error"),
}
_MFA = re.compile(r"(?P<module>[^:]+):(?P<function>[^:]+)/(?P<arity>\d+)", re.DOTALL)
_PATH = re.compile(r"(?<![\w/])/[^\s:;,'\"]+")
#: Behaviours whose initial call has the callback module for its function (beam.processes.names).
_OWN = frozenset({("supervisor", "1"), ("supervisor_bridge", "1")})
#: A symbol of native code; Erlang functions have a colon.
_SYMBOL = re.compile(r"\w[\w.]*(?:\+0x[0-9a-f]+)?", re.ASCII)
#: The emulator's own file, whose symbols are public.
_EMULATOR = "beam.smp"
#: Frames that stand for no code of the application (``runs.symbolizer``).
_MARKS = frozenset({
    "(scheduler)", "(dirty CPU scheduler)", "(dirty I/O scheduler)", "(poll thread)",
    "(aux thread)", "(port)", "(ended)", "[runtime]",
    "[waits for a message or a timeout]", "[waits in the run queue]", "[waits]",
    "[suspended: a busy port or node, or another process]",
    "[on a dirty scheduler, or waiting for one]",
})  # fmt: skip


@cache
def public_modules() -> frozenset[str]:
    """Modules of kernel, stdlib, ERTS and Elixir itself, which every VM may have."""
    names = resources.files(__package__).joinpath("public_modules.txt").read_bytes()
    return frozenset(names.decode("ascii").split())


@cache
def _libraries() -> frozenset[str]:
    """First atoms of the events of known libraries."""
    return frozenset(spec.event[0] for spec in shipped()) - {ANY}


@cache
def _events() -> frozenset[str]:
    """Names of events that are ours: of the VM, of specifications, of events without a row."""
    return frozenset((*EVENTS, *(spec.name for spec in shipped()), "(other events)"))


def _module(function: object) -> str | None:
    found = _MFA.fullmatch(str(function))
    return found and found["module"]


def _named(function: object) -> str | None:
    """The callback module that an initial call of a supervisor names as its function."""
    found = _MFA.fullmatch(str(function))
    return found["function"] if found and (found["module"], found["arity"]) in _OWN else None


def _is_public(text: str, key: str, record: Mapping[str, Any]) -> bool:
    """Whether a text is one that many VMs have: of OTP, of the emulator, or a mark of ours."""
    known = public_modules()
    if key in ("location", "file"):
        return _module(record.get("function")) in known
    if _named(text) is not None:
        return _named(text) in known
    if text in known or text in _MARKS or _module(text) in known:
        return True
    in_emulator = str(record.get("file") or "").rpartition("/")[2] == _EMULATOR
    return in_emulator and key == "function" and _SYMBOL.fullmatch(text) is not None


#: Labels whose pseudonyms begin with their names: those that other fields have as well.
_NAMED = frozenset({"route", "exception", "view", "plug", "repo", "source", "worker", "queue"})


class Redaction:
    """Replaces texts in documents; its pseudonyms are its own."""

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key or secrets.token_bytes(16)

    def document(self, document: dict[str, Any]) -> dict[str, Any]:
        """A copy of *document* with the same fields, its texts replaced."""
        node = str(document.get("target", {}).get("node") or "")
        made: dict[str, Any] = self._value(document, "", node, document)
        return made

    def word(self, text: str, key: str) -> str:
        """A text of the application that is the field *key* of a record, replaced."""
        return self._text(text, key, "", {})

    def _label(self, name: str, value: Any) -> Any:
        """The value of the label *name* of a telemetry event."""
        if not value or (name in _LABELS and _LABELS[name].fullmatch(value)):
            return value
        return self._pseudonym(name if name in _NAMED else "label", value)

    def _event(self, text: str) -> str:
        """The name of an event; that of a library which is not known may be the application's."""
        if text in _events() or text.partition(".")[0] in _libraries():
            return text
        return self._pseudonym("event", text)

    def _value(self, value: Any, key: str, node: str, record: Mapping[str, Any]) -> Any:
        if key == "host" and not isinstance(value, str):
            return value
        if isinstance(value, dict):
            if key in KEYS:
                return {self._key_of(k, KEYS[key]): v for k, v in value.items()}
            # The fields of a dictionary of reasons are names of events or of parts of the VM.
            if key == "labels":
                return {name: self._label(name, one) for name, one in value.items()}
            below = "reason" if key in (*_REASONS, "hooks") else None
            return {k: self._value(v, below or k, node, value) for k, v in value.items()}
        if isinstance(value, list):
            return [self._value(item, key, node, record) for item in value]
        return self._text(value, key, node, record) if isinstance(value, str) else value

    def _key_of(self, text: str, kind: str) -> str:
        """A key of a dictionary; the empty one stands for what has no such text."""
        kept = not text or (kind == "driver" and text in _DRIVERS)
        return text if kept else self._pseudonym(kind, text)

    def _text(self, text: str, key: str, node: str, record: Mapping[str, Any]) -> str:
        """A text of the field *key* of *record*, of a VM that is called *node*."""
        if key in _DROPPED:
            return LEFT_OUT
        if key == "event":
            return self._event(text)
        if key == "driver":
            return self._key_of(text, key)
        if key in _REASONS:
            return self._reason(text, node)
        if key in _KEPT or not text or _is_public(text, key, record):
            return text
        return self._function(text, key) if key in _FUNCTIONS else self._pseudonym(key, text)

    def _reason(self, text: str, node: str) -> str:
        if node:
            text = text.replace(node, self._pseudonym("node", node))
        return _PATH.sub(lambda found: self._pseudonym("path", found[0]), text)

    def _function(self, text: str, key: str) -> str:
        """A function, or the name of a process or of a symbol."""
        found = _MFA.fullmatch(text)
        if found is None:
            return self._pseudonym(key, text)
        if _named(text) is not None:
            callback = self._pseudonym("module", found["function"])
            return f"{found['module']}:{callback}/{found['arity']}"
        module = self._pseudonym("module", found["module"])
        function = self._pseudonym("function", found["function"])
        return f"{module}:{function}/{found['arity']}"

    def _pseudonym(self, kind: str, text: str) -> str:
        raw = text.encode("utf-8", "surrogatepass")
        return f"{kind}-{hashlib.blake2s(raw, key=self._key, digest_size=5).hexdigest()}"
