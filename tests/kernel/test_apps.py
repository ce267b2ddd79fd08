# SPDX-License-Identifier: Apache-2.0
"""
Real applications under their load clients, traced whole.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from apps.ejabberd import ejabberd
from apps.rabbitmq import rabbitmq
from tracing import require_root, trace

APPS = {"rabbitmq": (rabbitmq, "amqp"), "ejabberd": (ejabberd, "c2s")}
LOADS = Path(__file__).parent.parent / "apps"
GCS = "element(1, erlang:statistics(garbage_collection))"


@pytest.mark.parametrize("name", APPS)
def test_nothing_of_an_application_under_load_is_lost_and_its_collections_agree(name, tmp_path):
    """
    At the default ring size every line arrives, and the collections are as many as the VM counted
    within the trace, and no more than it counted around it.
    """
    require_root()
    start, port = APPS[name]
    client = [sys.executable, LOADS / f"load_{name}.py", "--seconds", "5"]
    with start() as app:
        outer = [int(app.eval(GCS))]
        output = tmp_path / "lines"
        with trace(app.pid, "--output", str(output), form="jsonl") as run:
            inner = [int(app.eval(GCS))]
            subprocess.run([*client, "--port", str(app.ports[port])], check=True, timeout=120)
            inner.append(int(app.eval(GCS)))
            outcome = run.stop()
        outer.append(int(app.eval(GCS)))
    assert "lost: 0 records" in outcome.errors
    lines = output.read_text().splitlines()
    seen = sum('"event":"gc"' in line and '"class":"hibernate"' not in line for line in lines)
    assert seen > 1000
    assert inner[1] - inner[0] <= seen <= outer[1] - outer[0]
