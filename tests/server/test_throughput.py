"""The estimated throughput of several processes, from which parts of a request can run in parallel."""

from pytest import approx, mark

from server.throughput import process_gain, share_seconds


@mark.parametrize(
    ("handling", "run", "share", "processes", "overlaps", "gain"),
    [
        (100.0, 0.0, 0.0, 2, False, 2.0),  # nothing but handling
        (0.0, 100.0, 200.0, 2, False, 1.0),  # threads gain all that processes would
        (0.0, 100.0, 150.0, 2, False, 4 / 3),  # and less than that
        (100.0, 100.0, 100.0, 4, False, 4.0),  # threads gain nothing
        (100.0, 100.0, 100.0, 2, True, 1.0),  # one process does both at the same time
        (100.0, 900.0, 1700.0, 2, True, 1.0),
    ],
)
def test_processes_gain_by_handling_and_by_threads_that_gain_little(
    handling, run, share, processes, overlaps, gain
):
    """Handling is done by as many as there are; a program gains what its threads did not."""
    found = process_gain(handling, run, share, processes, overlaps=overlaps)

    assert found == approx(gain)


def test_a_share_that_was_not_measured_lies_between_none_and_all_of_what_threads_gain():
    """On a part of the cores a program takes longer, but less so than the part is smaller."""
    assert share_seconds(0.01, 1) == 0.01
    assert 0.01 < share_seconds(0.01, 2) < 0.02
    assert share_seconds(0.01, 2) < share_seconds(0.01, 4) < 0.04
