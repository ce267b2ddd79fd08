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


def unseen(config: pytest.Config) -> list[str]:
    """
    Schemas of which no test saw a document; none where only some tests were to run.
    """
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    chosen = config.option.keyword or config.option.markexpr
    return (
        documents.missing() if whole and not chosen and "SCOPE_REQUIRE_KERNEL" in os.environ else []
    )


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """
    Fail a run of the whole suite in which no test saw a document of some schema.
    """
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
