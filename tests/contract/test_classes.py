# SPDX-License-Identifier: Apache-2.0
"""
No class holds so much that nobody can say what it is for.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

#: Attributes of a class that is no record.
MOST = 16
PACKAGE = Path(__file__).parents[2] / "scope_ebpf"


def attributes(of: ast.ClassDef) -> set[str]:
    """
    The names that a class assigns on itself.
    """
    return {
        node.attr
        for node in ast.walk(of)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_classes_have_few_attributes(path: Path):
    """
    Records, whose fields are declared, may have more.
    """
    nodes = ast.walk(ast.parse(path.read_text()))
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    assert {} == {one.name: found for one in classes if len(found := attributes(one)) > MOST}
