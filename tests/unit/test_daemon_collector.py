# SPDX-License-Identifier: Apache-2.0
"""
What a scrape is made of: one reading of each node, and no two of one name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from test_metrics_exposition import reading

from scope_ebpf.daemon.looks.owners import ROOT, Owner
from scope_ebpf.daemon.web.collector import _PER_TARGET, Readings, _unique_nodes
from scope_ebpf.metrics.exposition import expose
from scope_ebpf.metrics.page import Page, label_value


@dataclass
class Reported:
    """
    The node of a reading, and nothing else.
    """

    node: str
    info: dict[str, str] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("nodes", "labels"),
    [
        (["a@b", "c@d"], ["a@b", "c@d"]),
        (["a@b", "a@b"], ["a@b", "a@b#2"]),
        (["a@b", "a@b#3", "a@b"], ["a@b", "a@b#3", "a@b#3#3"]),
        (["a@b#2", "a@b#2", "a@b#2"], ["a@b#2", "a@b#2#2", "a@b#2#3"]),
        (["x" * 300, "x" * 300], None),
        (["a\x1b@b", "a\x1b@b", "a\x1c@b"], None),
    ],
)
def test_no_label_occurs_twice(nodes: list[str], labels: list[str] | None):
    """
    The first node keeps its name; a name that is the label of another node is changed.
    """
    reported = [Reported(node, {"pid": str(pid)}) for pid, node in enumerate(nodes, 1)]
    found = [reading.node for reading in _unique_nodes(reported)]
    assert labels in (None, found)
    assert found[0] == nodes[0]
    assert len(nodes) == len({label_value(node) for node in found})


def test_a_scrape_has_no_more_than_max_series():
    """
    With room for three of seven targets, four are left out, but not the only target of an owner.
    """
    page = Page()
    expose(page, reading())
    one = page.samples
    most = 2 * one + max(one, _PER_TARGET)
    watches = [
        SimpleNamespace(reading=reading(f"evil{n}@b"), owner=Owner(666, "")) for n in range(6)
    ]
    watches.append(SimpleNamespace(reading=reading("ours@b"), owner=ROOT))
    daemon = SimpleNamespace(
        config=SimpleNamespace(max_series=most), targets=SimpleNamespace(watches=watches)
    )
    page = Page()
    assert 4 == Readings(daemon)._expose(page)
    assert 3 * one == page.samples
    nodes = {s.labels["node"] for family in page.families() for s in family.samples}
    assert {"ours@b", "evil0@b", "evil1@b"} == nodes
    daemon.config.max_series = 7 * most
    assert 0 == Readings(daemon)._expose(Page())
