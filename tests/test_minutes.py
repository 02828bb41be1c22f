"""The end of a test run reports how long each folder took."""

from types import SimpleNamespace

from pytest import approx

from tests.minutes import minutes_by_folder


def test_durations_add_up_by_folder():
    """Set-up, test and tear-down of all tests below a folder count for it, the longest first."""
    reports = [
        SimpleNamespace(nodeid=nodeid, duration=seconds)
        for nodeid, seconds in (
            ("tests/runtime/test_a.py::test_one", 6.0),
            ("tests/runtime/records/test_b.py::test_two[a/b]", 12.0),
            ("tests/test_c.py::test_three", 30.0),
        )
    ]

    assert minutes_by_folder(reports) == [("tests", approx(0.5)), ("tests/runtime", approx(0.3))]
