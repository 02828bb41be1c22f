"""How many minutes each folder of tests took, printed at the end of a run."""

from collections import Counter
from collections.abc import Iterable

from pytest import CollectReport, TerminalReporter, TestReport, hookimpl


def minutes_by_folder(reports: Iterable[TestReport]) -> list[tuple[str, float]]:
    """Add up the durations of tests by their folder below `tests`; the longest first.

    A session's fixture counts where it is first used.
    """
    seconds = Counter[str]()
    for report in reports:
        parts = report.nodeid.partition("::")[0].split("/")
        seconds["/".join(parts[:2]) if len(parts) > 2 else parts[0]] += report.duration
    return [(folder, total / 60) for folder, total in seconds.most_common()]


@hookimpl
def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Print the folders that took a tenth of a minute or more."""
    reports = [
        report
        for group in terminalreporter.stats.values()
        for report in group
        if isinstance(report, TestReport) and not isinstance(report, CollectReport)
    ]
    slow = [(folder, taken) for folder, taken in minutes_by_folder(reports) if taken >= 0.1]
    if slow:
        terminalreporter.section("minutes per folder")
    for folder, taken in slow:
        terminalreporter.line(f"{taken:6.1f} min  {folder}")
