# SPDX-License-Identifier: Apache-2.0
"""
Makes the modules beside this one importable from every test: ``beams_run`` and the workloads' kin.
"""

from __future__ import annotations

import os
import signal

import documents
import pytest
from hypothesis import HealthCheck, settings

# A busy machine makes an example slow, and that says nothing about the code under test.
settings.register_profile(
    "scope", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "scope"))

# A shell that starts the tests in the background lets them ignore Ctrl-C, and what they start, too.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """
    Say how many documents of commands were validated against their schemas.
    """
    if documents.VALIDATED:
        counts = ", ".join(f"{name} {n:,}" for name, n in sorted(documents.VALIDATED.items()))
        terminalreporter.write_line(f"documents that fit their schemas: {counts}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """
    Fail a run of the whole suite in which no test saw a document of some schema.
    """
    whole = session.config.args_source is pytest.Config.ArgsSource.TESTPATHS
    chosen = session.config.option.keyword or session.config.option.markexpr
    privileged = os.environ.get("SCOPE_REQUIRE_KERNEL")
    if whole and not chosen and privileged and exitstatus == 0 and documents.missing():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        names = ", ".join(documents.missing())
        session.config.get_terminal_writer().line(f"no test validated a document of: {names}")
