"""Compatibility windows of a bundle, counted from the build dates of the jax that wrote it."""

import datetime as dt
from types import SimpleNamespace

from pytest import mark

from runtime.entries import Origin
from runtime.promises import (
    JAX_BUILD_DATES,
    assumed,
    built,
    compatibility_windows,
    is_known,
    summary,
)

DAY = dt.date(2026, 11, 23)


def manifest(jax, *origins):
    """The part of a manifest about its writer."""
    return SimpleNamespace(
        exporter={"jax": jax, "jaxlib": jax},
        refreshed_from=tuple(
            Origin(sha256="0" * 64, exporter={"jax": o, "jaxlib": o}) for o in origins
        ),
    )


def test_promises_count_from_build_dates():
    """
    The wrapper lasts from three weeks before its jax to six months after, StableHLO from two
    years before to five after.
    """
    exported, stablehlo = compatibility_windows(manifest("0.12.0.1"))

    assert JAX_BUILD_DATES["0.12.0.1"] == dt.date(2026, 10, 21)
    assert (exported.form, exported.first, exported.last) == (
        "exported",
        dt.date(2026, 9, 30),
        dt.date(2027, 4, 21),
    )
    assert (stablehlo.form, stablehlo.first, stablehlo.last) == (
        "stablehlo",
        dt.date(2024, 10, 21),
        dt.date(2031, 10, 21),
    )


def test_refreshing_renews_the_wrapper_alone():
    """
    The StableHLO of a refreshed bundle is as old as its first export.
    """
    exported, stablehlo = compatibility_windows(manifest("0.12.0.1", "0.11.2", "0.12.0"))

    assert (exported.writer, exported.last) == ("0.12.0.1", dt.date(2027, 4, 21))
    assert (stablehlo.writer, stablehlo.last) == ("0.11.2", dt.date(2031, 9, 17))


def test_a_promise_covers_its_first_and_last_day():
    """
    Builds of the first and the last day are covered, those of a day beyond are not.
    """
    exported, _ = compatibility_windows(manifest("0.12.0.1"))
    day = dt.timedelta(days=1)

    assert exported.covers(exported.first)
    assert exported.covers(exported.last)
    assert not exported.covers(exported.first - day)
    assert not exported.covers(exported.last + day)


def test_days_left_become_negative():
    """
    Days are counted from today, below zero once a promise is over.
    """
    exported, _ = compatibility_windows(manifest("0.12.0.1"))

    assert exported.days_left(DAY) == 149
    assert exported.days_left(dt.date(2027, 5, 1)) == -10


def test_months_end_where_they_end():
    """
    Six months after the 31st of August is the last of February.
    """
    JAX_BUILD_DATES["0.11.1.5"] = dt.date(2026, 8, 31)
    try:
        assert compatibility_windows(manifest("0.11.1.5"))[0].last == dt.date(2027, 2, 28)
    finally:
        del JAX_BUILD_DATES["0.11.1.5"]


@mark.parametrize(
    ("version", "day"),
    [
        ("0.12.0.1", dt.date(2026, 10, 21)),
        ("0.12.0.2", dt.date(2026, 10, 21)),
        ("0.11.3", dt.date(2026, 9, 17)),
        ("0.13.0.dev20261201", dt.date(2026, 10, 21)),
        ("0.12", dt.date(2026, 10, 19)),
        ("9" * 5000, dt.date(2026, 10, 21)),
        ("0.4.30", None),
        ("?", None),
    ],
)
def test_unknown_writer_is_taken_for_older(version, day):
    """
    A jax whose build date is not known is at least as young as the known one before it.
    """
    assert built(version) == day


@mark.parametrize(
    ("version", "day"),
    [("0.14", DAY), ("0.12.0.1", dt.date(2026, 10, 21)), ("0.11.3", dt.date(2026, 9, 17))],
)
def test_unknown_reader_is_taken_for_todays(version, day):
    """
    A jax that is newer than all that are known is judged as if it was built today.
    """
    assert assumed(version, DAY) == day


@mark.parametrize(
    ("version", "known"),
    [("0.12", True), ("0.12.0", True), ("0.11.3", False), ("0.11", False), ("0.13", False)],
)
def test_release_goes_by_its_short_name_too(version, known):
    """
    0.12 is 0.12.0, whose build date is known; 0.11.3 is not 0.11.2, and neither is 0.11.
    """
    assert is_known(version) is known


def test_nothing_is_promised_of_an_unknown_jax():
    """
    A bundle of a jax that could not have written it has no compatibility window, and its summary states that.
    """
    assert compatibility_windows(manifest("0.1")) == ()
    assert (
        summary(manifest("0.1"), DAY)
        == "the bundle loads with no JAX for certain: jax 0.1 wrote it"
    )


def test_summary_is_a_line():
    """
    One line has both forms, with dates and days.
    """
    assert summary(manifest("0.12.0.1"), DAY) == (
        "the bundle loads from .exported with JAX built until 2027-04-21 (149 days left), "
        "from .stablehlo with JAX built until 2031-10-21 (1793 days left)"
    )
