# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import importlib
import re
import subprocess
import sys
from pathlib import Path

import documents
import jsonschema
import pytest

from scope_ebpf.mcp.redaction import KEYS, OWN_KEYS
from scope_ebpf.mcp.tools import TOOLS

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "packaging"))

import make_schemas  # noqa: E402


def instances(schema: dict, definitions: dict) -> list:  # noqa: PLR0911 - a case each
    """
    Documents that a schema allows: one for each of its alternatives, with every field.
    """
    if "$ref" in schema:
        return instances(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return [each for one in schema["anyOf"] for each in instances(one, definitions)]
    if "const" in schema or "enum" in schema:
        return [schema["const"]] if "const" in schema else schema["enum"][:1]
    kind = schema["type"] if isinstance(schema["type"], str) else schema["type"][0]
    if kind == "array":
        return [instances(schema["items"], definitions)]
    if kind == "object" and "properties" in schema:
        fields = schema["properties"].items()
        return [{key: instances(one, definitions)[0] for key, one in fields}]
    if kind == "object":
        more = schema["additionalProperties"]
        below = instances(more, definitions) if isinstance(more, dict) else []
        return [{f"key{n}": one for n, one in enumerate(below)}]
    return [{"string": "text", "integer": 23, "number": 0.5, "boolean": True, "null": None}[kind]]


def samples(name: str) -> list[dict]:
    """
    Documents that the schema of that name allows.
    """
    schema = documents.schema(name)
    return instances({k: schema[k] for k in ("$ref", "anyOf") if k in schema}, schema["$defs"])


def test_schemas_are_what_the_records_say():
    """
    Each file is the one that the typed records make.
    """
    command = [sys.executable, str(ROOT / "packaging/make_schemas.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (0, "") == (done.returncode, done.stderr)


@pytest.mark.parametrize("name", documents.NAMES)
def test_a_schema_is_one(name: str):
    """
    Each file is a schema of the dialect that it names, and its name is its version's.
    """
    schema = documents.schema(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert f"urn:scope-ebpf:schema:1:{name}" == schema["$id"]


@pytest.mark.parametrize("name", documents.NAMES)
def test_records_are_closed(name: str):
    """
    A record allows no field that it does not name, except where a user's probe names them.
    """
    for key, record in documents.schema(name)["$defs"].items():
        if key not in ("UserEvent", "CountLine"):
            assert False is record["additionalProperties"], key


def places(document: object, path: tuple = ()) -> list[tuple]:
    """
    The path of every field of a document, as keys and positions.
    """
    if isinstance(document, dict):
        below = [(*path, key) for key in document]
    elif isinstance(document, list):
        below = [(*path, index) for index in range(len(document))]
    else:
        return []
    here = document
    return [*below, *(p for at in below for p in places(here[at[-1]], at))]


def renamed(document: dict, path: tuple) -> dict:
    """
    A copy in which the field at *path* has another name.
    """
    changed = copy.deepcopy(document)
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    parent[f"{path[-1]}_"] = parent.pop(path[-1])
    return changed


@pytest.mark.parametrize("name", documents.NAMES)
def test_a_renamed_field_fails(name: str):
    """
    Whichever field of a document is renamed, its schema refuses the document.
    """
    for sample in samples(name):
        assert sample == documents.fits(copy.deepcopy(sample), name)
        fields = [path for path in places(sample) if isinstance(path[-1], str)]
        fields = [path for path in fields if not path[-1].startswith("key")]
        if name == "run-line":  # other fields are the user's
            fields = [path for path in fields if path[-1] != "who"]
        assert fields
        for path in fields:
            with pytest.raises(AssertionError, match=name):
                documents.fits(renamed(sample, path), name)


def test_a_wrong_value_is_named():
    """
    The failure says where in the document it is, and what is there.
    """
    (document,) = samples("list")
    document["beams"][0]["usage"]["atoms"]["limit"] = "many"
    with pytest.raises(AssertionError, match=r"beams\[0\]\.usage.*'many' is not of type 'integer'"):
        documents.fits(document, "list")


def test_a_field_cannot_be_taken_away():
    """
    A field that is renamed in the record too, or may be missing now, is named and refused.
    """
    old = documents.schema("top")
    new = copy.deepcopy(old)
    row = new["$defs"]["TopRow"]
    row["properties"]["mailbox"] = row["properties"].pop("message_queue_len")
    row["required"].remove("status")
    assert ["TopRow.message_queue_len", "TopRow.status, which may be missing"] == (
        make_schemas.removed(old, new)
    )
    assert [] == make_schemas.removed(old, old)


def test_schemas_are_read_without_what_made_them():
    """
    A command imports no record and no library for schemas: they would slow its start down.
    """
    code = (
        "import sys; from scope_ebpf.cli import main\n"
        "[main.parser_of(name) for name in main.COMMANDS]\n"
        "print([n for n in sys.modules if n.startswith(('pydantic', 'scope_ebpf.results.doc'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "[]\n" == done.stdout, done.stderr
    assert importlib.util.find_spec("pydantic")


def test_every_schema_and_tool_is_documented():
    """
    The pages have a row for each schema and each tool, and none for one that is not there.
    """
    page = (ROOT / "docs/schemas.md").read_text()
    cells = re.findall(r"^\| (`[^|]*) \|", page, re.MULTILINE)
    assert set(documents.NAMES) == set(re.findall(r"`([\w-]+)`", " ".join(cells)))
    page = (ROOT / "docs/mcp.md").read_text().partition("\n## Tools\n")[2].partition("\n\nEach ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", page, re.MULTILINE)
    found = {name: re.findall(r"`(\w+)`", cell) for name, cell in rows}
    assert {name: list(tool.parameters) for name, tool in TOOLS.items()} == found


def free(schema: object, field: str = "") -> set[str]:
    """
    The fields of a schema that are objects whose keys are not in it.
    """
    if isinstance(schema, list):
        return {name for one in schema for name in free(one, field)}
    if not isinstance(schema, dict):
        return set()
    own = {field} if schema.get("additionalProperties", False) is not False else set()
    below = (
        free(one, key)
        for fields in ("properties", "$defs")
        if fields in schema
        for key, one in schema[fields].items()
    )
    rest = (
        free(schema[key], field)
        for key in ("anyOf", "items", "additionalProperties")
        if key in schema
    )
    return own.union(*below, *rest)


@pytest.mark.parametrize("tool", TOOLS)
def test_redaction_knows_every_object_with_free_keys(tool: str):
    """
    Their keys are texts of the VM, which it replaces, or words of ours.
    """
    assert free(documents.schema(TOOLS[tool].schema)) <= {*KEYS, *OWN_KEYS}


def test_redaction_names_no_object_that_is_not_there():
    """
    A name that no document has would hide one that means something else later.
    """
    found = {name for tool in TOOLS.values() for name in free(documents.schema(tool.schema))}
    assert {*KEYS, *OWN_KEYS} == found
