"""What holds for every test: the longest begin early, none leaves its logging behind, and those on a cluster say at once what failed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings

settings.register_profile("quick", max_examples=25, deadline=None)  # on a loaded machine an example may take as long as it takes
settings.register_profile("thorough", max_examples=100, deadline=None)  # `make test`
settings.load_profile("quick")


@pytest.fixture(autouse=True)
def _logging_of_its_own() -> Iterator[None]:
    """A command or a job that ran in this process has sent the log to that test's captured stderr, which is closed after it."""
    yield
    structlog.reset_defaults()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Several workers end together only when no long test is left for the end.

    `--dist worksteal` gives each worker a share of neighbours, and who has nothing left takes from the end of another's. So the tests that
    share a vLLM server begin the first share, and the other long ones the share in the middle, counted when all that do not run are out.
    Who needs a cluster for itself comes last: it waits for all others.
    """
    kinds: dict[str, list[pytest.Item]] = {name: [] for name in ("alone", "slow", "vllm", "")}
    for item in items:
        kinds[next(name for name in kinds if not name or item.get_closest_marker(name))].append(item)
    quick, middle = kinds["vllm"] + kinds[""], len(items) // 2
    items[:] = quick[:middle] + kinds["slow"] + quick[middle:] + kinds["alone"]


class _SaysAtOnce:
    """Writes a failure out when it comes: tests on a cluster take long, and may be cut off before the summary."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self.terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and "cluster" in report.keywords:
            self.terminal.write_line(f"\n{report.nodeid} failed after {report.duration:.0f} s\n{report.longreprtext}")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Where there is a terminal: in the process that shares the tests out, if several run them."""
    if terminal := config.pluginmanager.get_plugin("terminalreporter"):
        config.pluginmanager.register(_SaysAtOnce(terminal))
