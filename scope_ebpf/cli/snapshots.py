# SPDX-License-Identifier: Apache-2.0
"""Files with what the daemon kept of a VM's memory, which may be any other files."""

from __future__ import annotations

import datetime as dt
import json
import os
from importlib import resources
from typing import TYPE_CHECKING, Any, cast

from scope_ebpf.errors import ScopeError, UsageError
from scope_ebpf.sandbox.files import open_regular

if TYPE_CHECKING:
    from scope_ebpf.results.documents.memory import MemoryDocument

#: A file of the daemon is smaller (daemon.blackbox.MOST_BYTES).
_MOST_BYTES = 1 << 20
#: No figure of a VM is larger.
_MOST = 1 << 64
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}


def read_snapshot(path: str) -> MemoryDocument:
    """Read a file of the daemon. Raises UsageError for any other."""
    try:
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = open_regular(root, os.path.realpath(path), most=_MOST_BYTES)
        finally:
            os.close(root)
        with os.fdopen(fd, "rb") as file:
            found = json.loads(file.read(_MOST_BYTES))
        known = _is_snapshot(found)
    except (OSError, ScopeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"cannot read {path}: {why}") from None
    except (ValueError, RecursionError):
        known = False
    if not known:
        raise UsageError(f"{path} is no snapshot of a VM's memory")
    return cast("MemoryDocument", found)


def when(found: MemoryDocument) -> str:
    """When it was read, as ISO 8601 has it."""
    moment = dt.datetime.fromtimestamp(found["time"], dt.UTC)
    return moment.isoformat(timespec="seconds")


def _is_snapshot(found: Any) -> bool:
    file = resources.files("scope_ebpf") / "schemas/v1/memory.json"
    schema = json.loads(file.read_bytes())
    if not conforms(found, schema, schema["$defs"]):
        return False
    try:
        when(found)
    except (ValueError, OverflowError, OSError):
        return False
    return True


def conforms(value: Any, schema: dict[str, Any], named: dict[str, Any]) -> bool:
    """
    Whether *value* is as *schema* says, and each number in it is one that a VM can have.

    Of JSON Schema it knows what ``packaging/make_schemas.py`` writes; *named* are its ``$defs``.
    Fields that are not in the schema are not looked at: a later version may have written them.

    >>> conforms({"a": float("inf")}, {"properties": {"a": {"type": "number"}}}, {})
    False
    """
    if "$ref" in schema:
        return conforms(value, named[schema["$ref"].removeprefix("#/$defs/")], named)
    others = schema.get("anyOf")
    if others is not None and not any(conforms(value, one, named) for one in others):
        return False
    return _is_allowed(value, schema) and _is_possible(value) and _parts(value, schema, named)


def _is_allowed(value: object, schema: dict[str, Any]) -> bool:
    """Whether it is of the type, and one of the values, that *schema* lists."""
    types = schema.get("type", ())
    values = [schema["const"]] if "const" in schema else schema.get("enum", ())
    return not (
        (types and not _is_one_of(value, [types] if isinstance(types, str) else types))
        or (values and not any(_same(value, one) for one in values))
    )


def _is_possible(value: object) -> bool:
    return not isinstance(value, int | float) or -_MOST < value < _MOST  # false for NaN


def _parts(value: Any, schema: dict[str, Any], named: dict[str, Any]) -> bool:
    """Whether what is in a list or an object conforms."""
    if isinstance(value, list):
        return all(conforms(one, schema.get("items", {}), named) for one in value)
    if not isinstance(value, dict):
        return True
    fields = schema.get("properties", {})
    return all(name in value for name in schema.get("required", ())) and all(
        conforms(value[name], one, named) for name, one in fields.items() if name in value
    )


def _same(value: object, other: object) -> bool:
    """Whether they are equal, and of one type: 1 is not true."""
    return type(value) is type(other) and value == other


def _is_one_of(value: object, types: list[str]) -> bool:
    if isinstance(value, bool):
        return "boolean" in types
    return any(isinstance(value, _TYPES[name]) for name in types)
