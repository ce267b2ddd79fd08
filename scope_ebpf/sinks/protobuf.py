# SPDX-License-Identifier: Apache-2.0
"""
Messages of published protobuf formats, described by those of their fields that are used.

Protobuf's own library reads and writes them; no generated module of the format is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

if TYPE_CHECKING:
    from collections.abc import Mapping

    #: By message, of each field: its name, number and type. A type is one of protobuf's or a
    #: message; a star before it stands for "repeated".
    Schema = Mapping[str, tuple[tuple[str, int, str], ...]]


def messages(package: str, schema: Schema, syntax: str) -> dict[str, Any]:
    """The class of each message; *syntax* is ``proto2`` or ``proto3``, as the format has it."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"scope_ebpf/{package}.proto", package=package, syntax=syntax
    )
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, fields in schema.items():
        described = file.message_type.add(name=name)
        for field, number, kind in fields:
            added = described.field.add(name=field, number=number)
            added.label = kinds.LABEL_REPEATED if kind[0] == "*" else kinds.LABEL_OPTIONAL
            plain = kind.lstrip("*")
            if plain in schema:
                added.type, added.type_name = kinds.TYPE_MESSAGE, f".{package}.{plain}"
            else:
                added.type = getattr(kinds, f"TYPE_{plain.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: _class(pool, f"{package}.{name}") for name in schema}


def _class(pool: Any, name: str) -> Any:
    found = pool.FindMessageTypeByName(name)
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(found)
    return message_factory.MessageFactory(pool).GetPrototype(found)  # until protobuf 4.22
