# SPDX-License-Identifier: Apache-2.0
"""
The scene of the dashboards' tests, played when a test first asks for it.
"""

from __future__ import annotations

import pytest
import scene as scenes


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> scenes.Scene:
    """
    What Prometheus answered while the daemon watched RabbitMQ.
    """
    return scenes.play(tmp_path_factory.mktemp("scene"))
