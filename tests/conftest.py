# SPDX-License-Identifier: Apache-2.0
"""
Makes the modules beside this one importable from every test: ``beams_run`` and the workloads' kin.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from typing import Any

import documents
import pytest
from hypothesis import HealthCheck, settings

#: Folders whose tests share VMs, daemons and the host's hooks: they run one after the other.
ONE_BY_ONE = {"kernel", "hostile", "dashboards", "packages"}
#: Tests on VMs of their own that measure no time and no daemon: they run beside those.
BESIDE = {
    f"tests/kernel/test_{name}.py"
    for name in (
        *("beam_churn", "beam_stuck", "beam_truth", "beam_wedged", "calls", "calls_elixir"),
        *("calls_interpreter", "errors", "held", "layout_drift", "maps", "mcp", "merge"),
        *("privileges", "ps_truth", "record", "run", "telemetry", "top_screen", "top_truth"),
        *("trace_counts", "trace_dist", "trace_filters", "trace_toy"),
    )
}
#: Tests that compare rates and durations come last, when those beside them have ended.
LAST = ("tests/dashboards/", "tests/kernel/test_windows.py", "tests/kernel/test_budget.py")

# A busy machine makes an example slow, and that says nothing about the code under test.
settings.register_profile(
    "scope", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "scope"))

# What is found in programs is kept in a folder of the tests, not of the host.
if "SCOPE_EBPF_CACHE" not in os.environ:
    os.environ["SCOPE_EBPF_CACHE"] = tempfile.mkdtemp(prefix="scope-found-")
    atexit.register(shutil.rmtree, os.environ["SCOPE_EBPF_CACHE"], ignore_errors=True)

# A shell that starts the tests in the background lets them ignore Ctrl-C, and what they start, too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """
    Keep the tests on real VMs in two processes of ``pytest -n``; the others run beside them.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFolder(LoadScopeScheduling):
        """
        Gives a process all the tests of a scope.
        """

        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            if path in BESIDE:
                return "beside"
            return "vms" if path.split("/")[1] in ONE_BY_ONE else path

    return ByFolder(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Put the tests that compare rates and durations at the end.
    """
    items.sort(key=lambda item: item.nodeid.startswith(LAST))


def unseen(config: pytest.Config) -> list[str]:
    """
    Schemas of which no test saw a document; none where only some tests were to run.
    """
    if hasattr(config, "workerinput"):
        return []
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    chosen = config.option.keyword or config.option.markexpr or getattr(config.option, "lf", False)
    return (
        documents.missing() if whole and not chosen and "SCOPE_REQUIRE_KERNEL" in os.environ else []
    )


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """
    Add what the tests of one process saw.
    """
    documents.VALIDATED.update(getattr(node, "workeroutput", {}).get("validated", {}))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """
    Fail a run of the whole suite in which no test saw a document of some schema.
    """
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["validated"] = dict(documents.VALIDATED)
    if exitstatus == pytest.ExitCode.OK and unseen(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """
    Say how many documents of commands were validated against their schemas.
    """
    if documents.VALIDATED:
        counts = ", ".join(f"{name} {n:,}" for name, n in sorted(documents.VALIDATED.items()))
        terminalreporter.write_line(f"documents that fit their schemas: {counts}")
    if names := unseen(config):
        terminalreporter.write_line(f"no test validated a document of: {', '.join(names)}")
