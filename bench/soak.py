# SPDX-License-Identifier: Apache-2.0
"""
BEAMs that come and go under load, for an hour, and what that leaves in the daemon.

    bench/soak.py [--minutes 60] [--starts 2] [--crowd 12] [--cycle 60]
                  [--at-once 50] [--rush 20] [--rush-seconds 5]

There are cycles, in each of which VMs are started, ``--starts`` a second, at most ``--crowd`` at
once; some end within the tenth of a second, while the daemon takes them in, some are stopped and
killed. Beside them two VMs are under full load, and in one that stays events are planted and
compared with what the daemon counts. Before the first cycle, after it and after the last
``--at-once`` VMs are started at once, and ``--rush`` in each of a few seconds; each must be
observed, and is ended then. After the last of these rushes the daemon's memory, files, BPF maps and
programs, links and threads must be what they were after the second, once it has let go of the
programs that it keeps for a while: the first one fills the pools of the allocators. Its memory is
what is its own (RssAnon): pages of files go and come back as the kernel likes. Losses are read of
all VMs while those under load still run, and of the one that stays when all others are gone. Prints
a line for each cycle; exits 1 if anything grew, was missed or was lost. On SIGTERM and Ctrl-C it
ends what it has started.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter, deque
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import beams_run
from prometheus_client.parser import text_string_to_metric_families

from scope_ebpf.beam.vm.threads import threads

#: A VM whose schedulers ran for this long, in seconds, without being observed was missed: a second
#: until it is old enough (min_age), a second of a busy daemon, and one for a busy machine.
LONG_ENOUGH = 3.0
#: Seconds that a VM may live, drawn at random: some end before or while they are attached.
LIVES = (0.05, 0.3, 1.05, 1.2, 2.0, 4.0, 8.0)
#: MB by which memory at rest may differ after two such rushes: the allocator's noise.
ALLOWED_MB = 6.0
PLANTED = 23
PATIENCE = 60.0
#: Seconds without a decrease: by then the daemon has released what it keeps for a while.
STILL = 16.0
_OBSERVING = re.compile(r"message=observing pid=(\d+) .*age_seconds=([0-9.]+)")
_BOOT = """
    {{ok, Folder}} = {{ok, "{folder}"}},
    Stdlib = "$ROOT/lib/" ++ filename:basename(code:lib_dir(stdlib)) ++ "/ebin",
    Script = {{script, {{"soak", "1"}}, [{{preLoaded, []}}, {{progress, preloaded}},
        {{path, [Stdlib]}}, {{primLoad, [lists]}}, {{progress, started}}]}},
    ok = file:write_file(Folder ++ "/soak.boot", term_to_binary(Script)), halt().
"""


@dataclass(slots=True)
class Guest:
    """One VM that comes and goes."""

    process: subprocess.Popen[bytes]
    born: float
    life: float
    frozen: bool
    #: When its schedulers were seen first.
    up: float | None = None


@dataclass(slots=True)
class Rest:
    """Resources of the daemon at rest."""

    anon_mb: float
    files: int
    maps: int
    programs: int
    links: int
    threads: int

    def grown(self, first: Rest) -> list[str]:
        """The resources that are more than at *first*."""
        more = [
            f"{name} {getattr(first, name)} -> {getattr(self, name)}"
            for name in ("files", "maps", "programs", "links", "threads")
            if getattr(self, name) > getattr(first, name)
        ]
        if self.anon_mb > first.anon_mb + ALLOWED_MB:
            more.append(f"anon_mb {first.anon_mb:.1f} -> {self.anon_mb:.1f}")
        return more


@dataclass(slots=True)
class Count:
    """The counts of one cycle."""

    started: int = 0
    long: int = 0
    missed: list[int] = field(default_factory=list)
    most: int = 0
    #: Events that were lost, of all VMs but the one that stays, while those under load ran.
    lost: float = 0.0


class Daemon:
    """The daemon under test, and what it says."""

    def __init__(self, folder: Path, least_age: float) -> None:
        self.port, self._folder = beams_run.free_port(), folder
        config = folder / "config.toml"
        config.write_text(
            f'min_age = {least_age}\nbudget = "5%"\nsnapshot_interval = "2s"\n'
            'scan_interval = "2s"\n'
            f'include_paths = ["^{folder}/"]\n'
        )
        options = ["--listen", f"127.0.0.1:{self.port}", "--config", str(config)]
        command = [sys.executable, "-m", "scope_ebpf.cli.daemon", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        #: By pid of a VM: its age when it was observed first, seconds.
        self.observed: dict[int, float] = {}
        self.warnings: Counter[str] = Counter()
        self._last: deque[str] = deque(maxlen=30)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._last.append(line)
            if found := _OBSERVING.search(line):
                self.observed[int(found[1])] = float(found[2])
            elif line.startswith(("level=error", "Traceback")) or "message=refused" in line:
                self.warnings[line.strip()[:200]] += 1

    def samples(self) -> list[tuple[str, dict[str, str], float]]:
        """All series: names, labels, values."""
        url = f"http://127.0.0.1:{self.port}/metrics"
        try:
            with urllib.request.urlopen(url, timeout=20) as page:
                families = text_string_to_metric_families(page.read().decode())
        except OSError:
            if self.process.poll() is not None:
                self._reader.join(PATIENCE)
                raise SystemExit("soak: the daemon has ended:\n" + "".join(self._last)) from None
            raise
        return [(s.name, s.labels, s.value) for family in families for s in family.samples]

    def total(self, name: str, **labels: str) -> float:
        """The sum of a series over everything that *labels* leave open."""
        return sum(
            value
            for found, has, value in self.samples()
            if found == name and labels.items() <= has.items()
        )

    def lost(self, *, but: str | None = None) -> float:
        """Events that were lost of all VMs but the one with that label."""
        return sum(
            value
            for name, has, value in self.samples()
            if name == "scope_ebpf_events_lost_total" and has["node"] != but
        )

    def node_of(self, pid: int) -> str | None:
        """The label of a VM; None where it is not observed."""
        infos = (has for name, has, _ in self.samples() if name == "beam_target_info")
        return next((has["node"] for has in infos if has["pid"] == str(pid)), None)

    def rest(self) -> Rest:
        """Resources of it and of the process that holds its breakpoints, from /proc."""
        own = self.process.pid
        children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
        kinds: Counter[str] = Counter()
        sums: Counter[str] = Counter()
        for folder in (Path("/proc", pid) for pid in (str(own), *children)):
            for entry in (folder / "fd").iterdir():
                with suppress(OSError):
                    name = str(entry.readlink())
                    # Other VMs of the host are not observed: only their program is open.
                    kinds["" if _is_foreign(name, self._folder) else name] += 1
            kinds.pop("", None)
            for line in (folder / "status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in ("RssAnon", "Threads"):
                    sums[name] += int(value.split()[0])
        return Rest(
            anon_mb=sums["RssAnon"] / 1024,
            files=sum(kinds.values()),
            maps=kinds["anon_inode:bpf-map"],
            programs=kinds["anon_inode:bpf-prog"],
            links=kinds["anon_inode:bpf_link"] + kinds["anon_inode:[perf_event]"],
            threads=sums["Threads"],
        )

    def at_rest(self) -> Rest:
        """The same, after it released what it keeps, with all hooks of the VM that stays."""
        with suppress(SystemExit):  # a host that is busy with others may keep some out
            until(self._is_whole, "all hooks are in")
        rest, since = self.rest(), time.monotonic()
        while time.monotonic() - since < STILL:
            time.sleep(1.0)
            now = self.rest()
            if now.programs < rest.programs or now.files < rest.files:
                since = time.monotonic()
            rest = now
        return rest

    def _is_whole(self) -> bool:
        ratios = [v for name, _, v in self.samples() if name == "scope_ebpf_sampling_ratio"]
        return bool(ratios) and min(ratios) == 1

    def end(self) -> float:
        """End it; seconds that took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)
        return time.monotonic() - began


def _is_foreign(file: str, folder: Path) -> bool:
    return "beam" in Path(file).name and not file.startswith(f"{folder}/")


class Crowd:
    """The VMs that come and go."""

    def __init__(self, folder: Path, daemon: Daemon, most: int) -> None:
        boot = _BOOT.format(folder=folder)
        subprocess.run(["erl", "-noshell", "-boot", "no_dot_erlang", "-eval", boot], check=True)
        small = ("+S", "1:1", "+SDcpu", "1:1", "+SDio", "1", "+A", "1")
        self._command = [str(folder / "erlexec"), "-noshell", "-boot", str(folder / "soak"), *small]
        self._environment = environment(folder)
        self._daemon, self._most = daemon, most
        self._chance = random.Random(23)
        self.guests: list[Guest] = []

    def start(self, count: Count) -> None:
        """One more, if there is room."""
        if len(self.guests) >= self._most:
            return
        self.guest()
        count.started += 1
        count.most = max(count.most, len(self.guests))

    def guest(self) -> Guest:
        """Start one."""
        null = subprocess.DEVNULL
        process = subprocess.Popen(
            self._command, stdin=null, stdout=null, stderr=null, env=self._environment
        )
        life = self._chance.choice(LIVES)
        guest = Guest(process, time.monotonic(), life, self._chance.random() < 0.1)
        self.guests.append(guest)
        return guest

    def kill(self, guest: Guest) -> None:
        """End one."""
        guest.process.kill()
        guest.process.wait()
        self.guests.remove(guest)

    def close(self) -> None:
        """End all."""
        for guest in list(self.guests):
            self.kill(guest)

    def reap(self, count: Count) -> None:
        """End those whose time has come."""
        for guest in list(self.guests):
            now = time.monotonic()
            age = now - guest.born
            if guest.up is None and any(t.role == "normal" for t in threads(guest.process.pid)):
                guest.up = now
            if age < guest.life:
                if guest.frozen and age > guest.life / 2:
                    guest.process.send_signal(signal.SIGSTOP)
                continue
            self.kill(guest)
            if guest.up is not None and now - guest.up > LONG_ENOUGH:
                count.long += 1
                if guest.process.pid not in self._daemon.observed:
                    count.missed.append(guest.process.pid)


def emulator(folder: Path) -> None:
    """A copy of the emulator, by whose path the daemon knows our VMs from others."""
    (source,) = Path("/usr/lib/erlang").glob("erts-*/bin")
    for program in ("beam.smp", "erlexec", "erl_child_setup", "inet_gethost"):
        shutil.copy(source / program, folder)


def environment(folder: Path) -> dict[str, str]:
    """The environment for erlexec."""
    root = {"ROOTDIR": "/usr/lib/erlang", "EMU": "beam", "PROGNAME": "erl"}
    return {**os.environ, **root, "BINDIR": str(folder)}


def planted(folder: Path) -> AbstractContextManager[beams_run.Beam]:
    """A VM that runs ``planted.erl`` on our copy: of this kind the script lets us choose it."""
    return beams_run.planted("usdt25", "+S", "1:1", env={"BINDIR": str(folder)})


def until(holds: object, what: str) -> None:
    """Wait until *holds* says so."""
    assert callable(holds)
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit(f"soak: never: {what}")
        time.sleep(0.2)


def plant(daemon: Daemon, stays: beams_run.Beam) -> tuple[int, float]:
    """Plant exits in the VM that stays; how many, and how many the daemon has counted of them."""
    node = daemon.node_of(stays.pid) or ""

    def counted() -> float:
        return daemon.total("beam_process_exits_total", node=node, reason="error")

    before = counted()
    planted_exits = stays.plant(f"exits error {PLANTED}")
    with suppress(SystemExit):
        until(lambda: counted() - before >= planted_exits, "the planted exits are counted")
    return planted_exits, counted() - before


def cycle(
    folder: Path, daemon: Daemon, stays: beams_run.Beam, crowd: Crowd, wanted: argparse.Namespace
) -> Count:
    """VMs come and go for a while, two of them under load; at the end all are gone."""
    count, ends = Count(), time.monotonic() + wanted.cycle
    with ExitStack() as stack:
        for storm in ("storm pingpong 2", "storm spawn 1"):
            beam = stack.enter_context(planted(folder))
            for task in Path(f"/proc/{beam.pid}/task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(task.name), 10)
            beam.send(storm)
        due = time.monotonic()
        while time.monotonic() < ends:
            if time.monotonic() >= due:
                crowd.start(count)
                due += 1 / wanted.starts
            crowd.reap(count)
            time.sleep(min(0.05, 1 / wanted.starts))
        count.lost = daemon.lost(but=daemon.node_of(stays.pid))
        while crowd.guests:
            crowd.reap(count)
            time.sleep(0.05)
    until(lambda: daemon.total("scope_ebpf_targets") <= 1, "the daemon lets go")
    return count


def rush(daemon: Daemon, crowd: Crowd, number: int, rate: float) -> list[str]:
    """
    Start *number* VMs, some a second or all at once; each ends when it is observed.

    Those that were started at once end when all are. Says what was wrong.
    """
    here: dict[int, Guest] = {}
    ages, most, started, began = [], 0, 0, time.monotonic()
    last = began
    while started < number or here:
        while started < number and (not rate or time.monotonic() >= began + started / rate):
            guest = crowd.guest()
            here[guest.process.pid], started, last = guest, started + 1, time.monotonic()
        most = max(most, len(here))
        seen = [pid for pid in here if pid in daemon.observed]
        late = time.monotonic() - last > PATIENCE
        if rate or late or len(seen) == number:
            for pid in [*here] if late else seen:
                crowd.kill(here.pop(pid))
                ages.append(daemon.observed.get(pid))
        time.sleep(0.01)
    until(lambda: daemon.total("scope_ebpf_targets") <= 1, "the daemon lets go")
    old = sorted(age for age in ages if age is not None)
    took = max(1e-3, last - began)
    print(
        f"{number} VMs, {number / took:.1f} a second, {most} at once: {len(old)} observed, at the "
        f"age of {old[len(old) // 2]:.2f} s (median) to {old[-1]:.2f} s",
        flush=True,
    )
    return [f"{len(ages) - len(old)} of {number} VMs never seen"] if len(old) < number else []


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="default: 60")
    parser.add_argument("--starts", type=float, default=2.0, help="VMs a second (default: 2)")
    parser.add_argument("--crowd", type=int, default=12, help="VMs at once (default: 12)")
    parser.add_argument("--cycle", type=float, default=60.0, help="seconds (default: 60)")
    parser.add_argument("--at-once", type=int, default=50, help="VMs (default: 50)")
    parser.add_argument("--rush", type=float, default=20.0, help="VMs a second (default: 20)")
    parser.add_argument("--rush-seconds", type=float, default=5.0, help="default: 5")
    wanted = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return soak(Path(folder), wanted)
    except KeyboardInterrupt:
        sys.exit("soak: it was ended")


def soak(folder: Path, wanted: argparse.Namespace) -> int:
    """All cycles; then the daemon is ended while VMs are under load. The exit code."""
    emulator(folder)
    daemon = Daemon(folder, 1.0)
    try:
        until(lambda: _ready(daemon), "the daemon is ready")
        with planted(folder) as stays, closing(Crowd(folder, daemon, wanted.crowd)) as crowd:
            until(lambda: daemon.node_of(stays.pid) is not None, "the VM that stays is observed")
            wrong = _cycles(folder, daemon, stays, crowd, wanted)
            took = _end_under_load(folder, daemon)
    finally:
        daemon.process.kill()
        daemon.process.wait()
    print(f"SIGTERM to end, VMs under load: {took:.2f} s, exit code {daemon.process.returncode}")
    for line, times in daemon.warnings.most_common(10):
        print(f"{times} x {line}")
    if daemon.process.returncode != 0:
        wrong.append(f"exit code {daemon.process.returncode}")
    print("soak: " + ("; ".join(wrong) if wrong else "nothing grew, nothing was missed or lost"))
    return 1 if wrong else 0


def _end_under_load(folder: Path, daemon: Daemon) -> float:
    """End the daemon with three VMs under load in its hands; seconds that took."""
    with ExitStack() as stack:
        for storm in ("storm pingpong 2", "storm spawn 1", "storm gc 1"):
            beam = stack.enter_context(planted(folder))
            beam.send(storm)
        until(lambda: daemon.total("scope_ebpf_targets") == 4, "all are observed")
        until(lambda: daemon.total("scope_ebpf_windows_total") > 10, "windows are open")
        return daemon.end()


def _ready(daemon: Daemon) -> bool:
    with suppress(OSError):
        return daemon.total("scope_ebpf_targets") >= 0
    return False


def _cycles(
    folder: Path, daemon: Daemon, stays: beams_run.Beam, crowd: Crowd, wanted: argparse.Namespace
) -> list[str]:
    lost_under_load: list[float] = []

    def rushes() -> list[str]:
        number = round(wanted.rush * wanted.rush_seconds)
        at_once = rush(daemon, crowd, wanted.at_once, 0.0)
        return at_once + rush(daemon, crowd, number, wanted.rush)

    def observe() -> None:
        seen = set(daemon.observed)
        count = cycle(folder, daemon, stays, crowd, wanted)
        planted_exits, counted = plant(daemon, stays)
        rest = daemon.rest()
        fresh = sorted(age for pid, age in daemon.observed.items() if pid not in seen)
        lost_under_load.append(count.lost)
        lost = sum(lost_under_load) + daemon.lost()
        misses = daemon.total("scope_ebpf_program_misses_total")
        at = [fresh[int(len(fresh) * part)] if fresh else 0.0 for part in (0.5, 0.99)]
        print(
            f"{count.started:6} {count.most:4} {count.long:4} {len(count.missed):6} "
            f"{at[0]:6.2f} {at[1]:6.2f} {rest.anon_mb:7.1f} {rest.files:5} {rest.maps:4} "
            f"{rest.programs:5} {rest.links:5} {rest.threads:7} {lost:4.0f} {misses:6.0f}",
            flush=True,
        )
        if count.missed:
            wrong.append(f"missed {count.missed}")
        if counted != planted_exits:
            wrong.append(f"planted {planted_exits}, counted {counted:g}")
        if lost:
            wrong.append(f"{lost:g} events lost")

    wrong = rushes()
    print(
        "starts most  long missed  age50  age99 anon_MB files maps progs links threads lost misses"
    )
    ends = time.monotonic() + 60 * wanted.minutes
    observe()
    wrong += rushes()
    first = daemon.at_rest()
    while True:
        observe()
        if time.monotonic() > ends:
            break
    wrong += rushes()
    last = daemon.at_rest()
    print(f"at rest, after the second rush: {first}\nat rest, at last: {last}")
    return wrong + last.grown(first)


if __name__ == "__main__":
    sys.exit(main())
