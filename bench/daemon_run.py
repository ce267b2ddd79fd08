# SPDX-License-Identifier: Apache-2.0
"""A daemon for a bench: started on a port of its own, asked, and ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import beams_run
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATIENCE = 60.0


def alone(name: str) -> tuple[tuple[str, ...], str]:
    """Flags that call a VM *name*, and a config that observes no other VM of this machine."""
    port = str(beams_run.free_port())
    node = ("-name", f"{name}@127.0.0.1", "-kernel", "inet_dist_use_interface", "{127,0,0,1}")
    flags = (*node, "-start_epmd", "false", "-erl_epmd_port", port)
    return flags, f'include_nodes = ["^{name}@"]\n'


def cpu_seconds(pid: int) -> float:
    """The CPU clock of a process (clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


def value(page: str, series: str) -> float:
    """The first sample of *page* whose line begins with *series*."""
    return float(next(line for line in page.splitlines() if line.startswith(series)).split()[-1])


class Daemon:
    """A running daemon on *port*."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.port = process, port

    def page(self, path: str = "/metrics") -> str:
        """What a scrape gets."""
        url = f"http://127.0.0.1:{self.port}{path}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            text: str = answer.read().decode()
            return text

    def series_of(self, pid: int) -> dict[str, int]:
        """How many series each name has for the VM *pid*; none until it is observed."""
        counts: dict[str, int] = {}
        families = list(text_string_to_metric_families(self.page()))
        samples = [sample for family in families for sample in family.samples]
        infos = [s.labels for s in samples if s.name == "beam_target_info"]
        node = next((has["node"] for has in infos if has["pid"] == str(pid)), None)
        for sample in samples:
            if node is not None and sample.labels.get("node") == node:
                counts[sample.name] = counts.get(sample.name, 0) + 1
        return counts

    def value(self, series: str) -> float:
        """The first sample whose line begins with *series*, now."""
        return value(self.page(), series)

    def cpu_seconds(self) -> float:
        """CPU that it and the process that holds its breakpoints have used."""
        return sum(map(cpu_seconds, self.processes()))

    def resident_mb(self) -> float:
        """Resident memory of both."""
        pages = (Path(f"/proc/{pid}/statm").read_text().split()[1] for pid in self.processes())
        return sum(map(int, pages)) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def threads(self) -> int:
        """Threads of both."""
        return sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in self.processes())

    def processes(self) -> list[int]:
        """Its pid, and that of the process that holds its breakpoints."""
        own = self.process.pid
        children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
        return [own, *map(int, children)]

    def until_observed(self, pid: int, wanted: str = "beam_target_info") -> None:
        """Wait until *pid* has the series *wanted*."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            with suppress(OSError):
                if wanted in self.series_of(pid):
                    return
            time.sleep(0.2)
        raise SystemExit(f"the daemon does not show {wanted} of process {pid}")


@contextmanager
def daemon(folder: Path, config: str = "") -> Iterator[Daemon]:
    """A daemon with *config*, until the block ends."""
    port = beams_run.free_port()
    path = folder / "config.toml"
    path.write_text(config)
    options = ["--listen", f"127.0.0.1:{port}", "--config", str(path), "--log-level", "error"]
    process = subprocess.Popen([sys.executable, "-m", "scope_ebpf.cli.daemon", *options])
    try:
        yield Daemon(process, port)
    finally:
        process.terminate()
        process.wait(_PATIENCE)
