# SPDX-License-Identifier: Apache-2.0
"""
Configs of the daemon.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import mutation

from scope_ebpf.daemon import config

if TYPE_CHECKING:
    from random import Random

_HASH = "pbkdf2:600000:00ff:" + "ab" * 32
_LINES = (
    'listen = "127.0.0.1:9568"', 'listen = "unix:/run/x"', 'hosts = ["a.b"]',
    'socket_group = "adm"',     'listen = "[::1]:1"', 'budget = "1%"', "budget = 0.01",
    "strict = true", 'scan_interval = "10s"', 'min_age = "500ms"', 'snapshot_interval = "1m"',
    "top = 5", 'compat = ["erlang-vm"]', 'include_nodes = ["^a.*@b$"]', 'exclude_paths = ["/x"]',
    'include_cgroups = ["k8s", "a|b"]', 'tls_cert = "/a"\ntls_key = "/b"',
    f'users = {{ a = "{_HASH}" }}',
)  # fmt: skip
_VALUES = (
    "nan", "inf", "-inf", "1e999", "-1", "0", "1" * 5000, "0x7fffffffffffffffff", "1979-05-27",
    "07:32:00", "[]", "{}", '[1, "a"]', "[[]]", '""', '"\\u0000"', '"1" * 9', '"(a"', '["("]',
    '["(?<n"]', '["a{99999999999}"]', '["[a"]', '"9" ', '"1.2.3s"', '".s"', '"1e5s"', '"99999h"',
    '"%"', '"1.1.1%"', '"' + "9" * 400 + '%"', '"' + "9" * 400 + 'h"', "true", '"localhost:99999"',
    '"[::]:80"', '":80"', '"a:b:c"', '"x:١٢"', "[" * 300, "[" * 5000, '{ a = "pbkdf2:1:00:" }',
)  # fmt: skip


class Configs:
    """
    One case is one file, read with options of a command line over it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "config.toml"

    def run(self, random: Random) -> None:
        """
        Raises ConfigError for what is refused.
        """
        chosen = random.sample(_LINES, random.randint(1, 6))
        lines = list({line.partition(" = ")[0]: line for line in chosen}.values())
        for _ in range(random.choice((0, 1, 1, 2))):
            index = random.randrange(len(lines))
            key = lines[index].partition(" = ")[0]
            lines[index] = f"{key} = {random.choice(_VALUES)}"
        data = "\n".join(lines).encode("utf-8", "replace")
        if random.random() < 0.2:
            data = mutation.spoil(random, data, random.randint(1, 4))
        self._path.write_bytes(data)
        overrides: dict[str, Any] = {}
        if random.random() < 0.1:
            key = random.choice(("listen", "budget", "strict", "compat"))
            overrides[key] = mutation.value(random)
        found = config.load(self._path, overrides)
        _sane(found)
        found.wants("a@b", "/x", "k8s")


def _sane(found: config.Config) -> None:
    """
    What is accepted is what the daemon counts on.
    """
    assert 0 < found.budget <= 0.5
    assert 0.1 <= found.scan_interval < float("inf")
    assert 1.0 <= found.snapshot_interval < float("inf")
    assert 0.0 <= found.min_age < float("inf")
    assert 0 <= found.top <= 20
    assert isinstance(found.listen, Path) or 0 <= found.listen[1] <= 65535
