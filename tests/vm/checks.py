# SPDX-License-Identifier: Apache-2.0
"""
Checks inside a virtual machine: each is a line, and the last line says how many passed.

That is what ``run.sh`` judges by. Tests of ``tests/kernel`` run here as well, each as one check.
"""

# ruff: noqa: T201 - lines are what it is for

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    import pytest

#: Words of which the name of a check must have one; run.sh gives them to the kernel, that to us.
ONLY = os.environ.get("SCOPE_VM_ONLY", "").split(",")
TESTS = Path(__file__).parents[1]

results = {"ok": 0, "FAILED": 0, "skipped": 0}


def is_wanted(name: str) -> bool:
    """
    Whether this check is one of those that are asked for.
    """
    return any(word in name for word in ONLY)


def tell(name: str, result: str, said: str, seconds: float) -> None:
    """
    The line of a check.
    """
    results[result] += 1
    print(f"  {result} {name}{f' ({said})' if said else ''}, {seconds:.0f} s", flush=True)


def check(
    name: str,
    body: Callable[..., str | None],
    *arguments: object,
    on_failure: Callable[[], None] = lambda: None,
) -> None:
    """
    Run one check and print its line; what it returns is added to that.
    """
    if not is_wanted(name):
        return
    started = time.monotonic()
    try:
        result, said = "ok", body(*arguments) or ""
    except Exception as error:  # noqa: BLE001 - whatever it is, the next check runs
        result, said = "FAILED", f"{type(error).__name__}: {error}"
        traceback.print_exc(file=sys.stdout)
        on_failure()
    tell(name, result, said, time.monotonic() - started)


class _Lines:
    """
    Makes a line of each test that pytest runs.
    """

    def __init__(self, wanted: Collection[str]) -> None:
        self.missing = set(wanted)
        self._begun = 0.0

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            print(report.longreprtext)

    def pytest_runtest_logstart(self) -> None:
        self._begun = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.missing.discard(report.nodeid)
        # What comes before and after a test counts only where it fails.
        if report.when != "call" and not report.failed:
            return
        if not report.passed:
            print(report.longreprtext)
        seconds = time.monotonic() - self._begun
        tell(report.nodeid, "ok" if report.passed else "FAILED", "", seconds)


def run_tests(names: Collection[str]) -> None:
    """
    Run tests of the project, by where pytest finds them beneath ``tests``.

    One that is not there, or did not run, has failed.
    """
    import pytest  # not on every disk

    wanted = [name for name in names if is_wanted(name)]
    if not wanted:
        return
    lines = _Lines(wanted)
    options = ["-p", "no:terminal", "-p", "no:cacheprovider", f"--rootdir={TESTS}"]
    pytest.main([*options, *(f"{TESTS}/{name}" for name in wanted)], plugins=[lines])
    for name in sorted(lines.missing):
        tell(name, "FAILED", "it did not run", 0)


def conclude(main: Callable[[], None]) -> None:
    """
    Run all checks and print the last line, which is due whatever happens.
    """
    try:
        main()
    except Exception:  # noqa: BLE001 - see above
        traceback.print_exc(file=sys.stdout)
        results["FAILED"] += 1
    print(f"scope-vm: {results['ok']} passed, {results['FAILED']} failed", flush=True)
