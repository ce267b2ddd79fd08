# SPDX-License-Identifier: Apache-2.0
"""
The checks of the installed systemd unit, inside a virtual machine whose first process is systemd.

``run.sh unit`` installs the package there and starts this.
"""

# ruff: noqa: T201 - lines are what it is for

from __future__ import annotations

import functools
import os
import platform
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import beams_run
import checks
import tracing

#: Seconds. All is ten times slower here than where the tests run.
PATIENCE = beams_run.PATIENCE
UNIT = "scope-ebpfd.service"
CONFIG = Path("/etc/scope-ebpf/config.toml")


def journal() -> None:
    """
    Print what systemd and the daemon say, for a check that failed.
    """
    print(systemctl("status", UNIT, fine=(0, 3, 4)))
    lines = ["journalctl", "--no-pager", "-o", "cat", "-n", "60", "-u", UNIT]
    print(subprocess.run(lines, capture_output=True, text=True).stdout)


def systemctl(*words: str, fine: tuple[int, ...] = (0,)) -> str:
    """
    What systemctl says.
    """
    done = subprocess.run(["systemctl", "--no-pager", *words], capture_output=True, text=True)
    assert done.returncode in fine, f"systemctl {words}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def shown(name: str) -> str:
    """
    A property of the unit.
    """
    return systemctl("show", "-P", name, UNIT)


def page(path: str = "metrics") -> str:
    """
    A page of the daemon; nothing while it does not answer.
    """
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:9568/{path}", timeout=60) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def wait_for(text: str) -> None:
    tracing.wait_until(lambda: text in page(), f"{text!r} among the metrics", PATIENCE)


def not_by_itself() -> None:
    """
    The package is installed and its daemon neither enabled nor started.
    """
    assert systemctl("is-enabled", UNIT, fine=(1,)) == "disabled"
    assert shown("ActiveState") == "inactive"


def starts() -> str:
    """
    The start returns when the daemon has said that it is ready (Type=notify), and it is.
    """
    # A hit is dear where the CPU is emulated: with less of a budget the hooks are hardly ever in.
    CONFIG.write_text('budget = "50%"\n')
    systemctl("enable", "--now", UNIT)
    assert shown("ActiveState") == "active"
    assert page("readyz"), "it is not ready"
    held = Path(f"/proc/{shown('MainPID')}/status").read_text()
    (line,) = [line for line in held.splitlines() if line.startswith("CapEff")]
    return line.replace("\t", " ")


def observes(beam: beams_run.Beam, places: dict[int, int]) -> str:
    """
    Under the unit's restrictions a VM of another user is observed, hooks and threads.
    """
    wait_for("beam_target_info{")
    wait_for("beam_thread_switches_total{")
    tracing.wait_until(
        lambda: tracing.breakpoints(beam.pid, places) > 0, "a breakpoint in the VM", PATIENCE
    )
    return f"{tracing.breakpoints(beam.pid, places)} breakpoints"


def reloads() -> None:
    """
    A reload takes a new config, and refuses a wrong one without ending.
    """
    CONFIG.write_text('budget = "40%"\n')
    systemctl("reload", UNIT)
    wait_for('scope_ebpf_config_reloads_total{result="ok"} 1.0')
    CONFIG.write_text('bugdet = "40%"\n')
    systemctl("reload", UNIT)
    wait_for('scope_ebpf_config_reloads_total{result="refused"} 1.0')
    assert shown("ActiveState") == "active"
    CONFIG.write_text('budget = "50%"\n')


def watched() -> None:
    """
    The daemon informs the watchdog that it lives.
    """
    first = int(shown("WatchdogTimestampMonotonic"))
    assert first > 0
    tracing.wait_until(
        lambda: int(shown("WatchdogTimestampMonotonic")) > first, "a sign of life", PATIENCE
    )


def comes_back(beam: beams_run.Beam, places: dict[int, int]) -> None:
    """
    Killed, it leaves no breakpoint, is started again and observes again.
    """
    pid = int(shown("MainPID"))
    os.kill(pid, signal.SIGKILL)
    tracing.wait_until(lambda: shown("NRestarts") == "1", "a restart", PATIENCE)
    tracing.wait_until(lambda: shown("ActiveState") == "active", "the daemon", PATIENCE)
    observes(beam, places)


def stops(beam: beams_run.Beam, places: dict[int, int], before: dict[str, set[int]]) -> str:
    """
    It ends by itself when it is asked to, and leaves nothing in the VM or in the kernel.
    """
    began = time.monotonic()
    systemctl("stop", UNIT)
    took = time.monotonic() - began
    assert (shown("ActiveState"), shown("Result")) == ("inactive", "success")
    assert tracing.breakpoints(beam.pid, places) == 0, "breakpoints are left"
    tracing.wait_until(
        lambda: not ours(before)["prog_id"] | ours(before)["map_id"], "the end of all", PATIENCE
    )
    beam.plant("spawns 23", PATIENCE)
    return f"in {took:.1f} s"


def ours(before: dict[str, set[int]]) -> dict[str, set[int]]:
    """
    What the kernel has now and had not, but for what systemd itself loads.
    """
    own = tracing.bpf_numbers(1)
    return {
        kind: numbers - before[kind] - own[kind] for kind, numbers in tracing.in_kernel().items()
    }


def goes() -> None:
    """
    A purge stops a daemon that runs, and takes unit and config away.
    """
    systemctl("start", UNIT)
    subprocess.run(["dpkg", "--purge", "scope-ebpf"], check=True, stdout=subprocess.DEVNULL)
    assert not page("healthz"), "it still answers"
    assert not CONFIG.parent.exists()
    assert systemctl("is-enabled", UNIT, fine=(1, 4)) in ("", "not-found")


check = functools.partial(checks.check, on_failure=journal)


def main() -> None:
    print(f"Linux {platform.release()}, systemd")
    check("nothing is started by the package", not_by_itself)
    with beams_run.planted("stock25") as beam:
        places = tracing.hooked_addresses(beam.pid)
        before = tracing.in_kernel()
        check("start", starts)
        check("observe", observes, beam, places)
        check("reload", reloads)
        check("watchdog", watched)
        check("kill and restart", comes_back, beam, places)
        check("stop", stops, beam, places, before)
        check("purge", goes)


if __name__ == "__main__":
    checks.conclude(main)
