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
    """The CPU clock of a process (clock_getcpuclockid(3)), and that of children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ended = (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime((~pid << 3) | 2) + ended


def pss_mb(pid: int) -> float:
    """The proportional share of memory of a process: what several share counts once."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(text.partition("\nPss:")[2].split()[0]) * 1024 / 1e6


def family(pid: int) -> list[int]:
    """A process and all that descend from it, whichever thread started them."""
    found = [pid]
    for one in found:
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            with suppress(OSError):  # threads end
                found += map(int, children.read_text().split())
    return found


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
        """CPU that it and all its processes have used."""
        return sum(map(cpu_seconds, self.processes()))

    def resident_mb(self) -> float:
        """Memory of all its processes, what they share counted once."""
        return sum(map(pss_mb, self.processes()))

    def threads(self) -> int:
        """Threads of all its processes."""
        return sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in self.processes())

    def each(self) -> dict[int, float]:
        """CPU seconds of each process so far."""
        return {pid: cpu_seconds(pid) for pid in self.processes()}

    def parts(self, seconds: float, before: dict[int, float]) -> list[tuple[str, str]]:
        """What each process is, and what it has taken of a core and takes of memory."""
        found = []
        for pid, spent in self.each().items():
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            name = next((Path(word).name for word in words if word.endswith(".py")), "the daemon")
            share = (spent - before.get(pid, 0.0)) / seconds
            found.append((name, f"{share:7.2%} {pss_mb(pid):6.1f} MB"))
        return found

    def processes(self) -> list[int]:
        """Its pid, and those of its processes: they hold breakpoints, read memory, parse files."""
        return family(self.process.pid)

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
