# SPDX-License-Identifier: Apache-2.0
"""
Names in the config of where to listen that no host and no group can have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scope_ebpf.daemon.config import Config, ConfigError
from scope_ebpf.daemon.web.listening import listeners

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("host", ["a\0b", "x" * 70 + ".\u00e9", ".."])
def test_a_host_that_cannot_be_has_its_line(host: str):
    """
    The error is the config's, and says where.
    """
    with pytest.raises(ConfigError, match="cannot listen on"):
        listeners(Config(listen=(host, 0)))


@pytest.mark.parametrize("group", ["\0", "no-such-group"])
def test_a_group_that_cannot_be_has_its_line(group: str, tmp_path: Path):
    """
    The same for the group of a Unix socket.
    """
    with pytest.raises(ConfigError, match="cannot listen on unix:"):
        listeners(Config(listen=tmp_path / "socket", socket_group=group))
