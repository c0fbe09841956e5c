"""
What a machine may lack, and what becomes of the tests that need it.

A test whose program is missing is skipped with the program's name. With REQUIRE_ALL=1, as continuous
integration sets it, a run with any skipped test fails: otherwise a forgotten program would pass for a green
run.
"""

import os
import shutil
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

OTHER_NAMES = {
    "chromium": ("chromium-browser", "google-chrome"),
    "node": ("nodejs",),
}

# Debian installs PgBouncer where the PATH of an ordinary user does not lead.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"])


def require(program: str) -> Path:
    """The program's path; the test is skipped, with its name, when it is not installed."""
    for name in (program, *OTHER_NAMES.get(program, ())):
        if path := shutil.which(name, path=SEARCH_PATH):
            return Path(path)
    pytest.skip(f"{program} is not installed")


def require_network_namespaces() -> None:
    """Skip the test, with the reason, where this user may make no network namespaces; only root usually may."""
    if reason := _refusal_of_namespaces(str(require("ip"))):
        pytest.skip(f"network namespaces cannot be made: {reason}")


@cache
def _refusal_of_namespaces(program: str) -> str:
    """Why a namespace with a link of its own cannot be made; empty where it can."""
    name = f"pgngtry{os.getpid()}"
    added = subprocess.run([program, "netns", "add", name], capture_output=True, text=True, check=False)
    if added.returncode:
        return added.stderr.strip()
    try:
        link = [program, "-n", name, "link", "add", "type", "veth"]
        return subprocess.run(link, capture_output=True, text=True, check=False).stderr.strip()
    finally:
        subprocess.run([program, "netns", "del", name], capture_output=True, check=False)


class SkippedTests:
    """The pytest plugin that lists why tests were skipped and, if `fatal`, fails the run for it."""

    def __init__(self, *, fatal: bool) -> None:
        self.fatal = fatal
        self.reasons: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._count(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._count(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.fatal and self.reasons and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.reasons:
            return
        title = "REQUIRE_ALL is set, and tests were skipped" if self.fatal else "not tested on this machine"
        terminalreporter.section(title, red=self.fatal, yellow=not self.fatal)
        for reason, count in sorted(self.reasons.items()):
            terminalreporter.line(f"{reason} ({count} skipped)")

    def _count(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        # An expected failure is reported as skipped as well, but nothing is missing.
        if report.skipped and not hasattr(report, "wasxfail") and isinstance(report.longrepr, tuple):
            self.reasons[report.longrepr[2].removeprefix("Skipped: ")] += 1
