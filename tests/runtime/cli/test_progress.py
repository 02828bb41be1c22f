"""How far a run is: plain lines every few seconds, with a rate and the time left."""

from runtime.batch_prediction.ledger import Progress
from runtime.cli.progress import Estimate, Lines, _as_json, _as_text


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self):
        return self.now


def test_a_line_every_ten_seconds(capsys):
    """Windows in between print nothing; the line has rows, part, errors, rate and time left."""
    clock = Clock()
    shown = Lines(_as_text, clock)
    shown.begin(False, Progress())
    for clock.now, rows in ((5.0, 500), (10.0, 1000), (12.0, 1200), (20.0, 2000)):
        shown.update(rows, 1, rows / 8000)

    assert capsys.readouterr().err.splitlines() == [
        "1000 rows (12%), 1 errors, 100 rows/s, 1:10 left",
        "2000 rows (25%), 1 errors, 100 rows/s, 1:00 left",
    ]
    assert shown.rows == 2000


def test_a_run_that_goes_on_counts_its_own_rows(capsys):
    """The rate, and the time left, are of the rows since it went on."""
    clock = Clock()
    shown = Lines(_as_text, clock)
    shown.begin(True, Progress(shards=3, rows=6000))
    clock.now = 10.0
    shown.update(7000, 0, 0.7)

    assert capsys.readouterr().err.splitlines() == [
        "going on after 6000 rows in 3 shards",
        "7000 rows (70%), 100 rows/s, 0:30 left",
    ]


def test_stdin_has_no_part_and_no_end():
    """Where the size of the input is not known neither is shown."""
    clock = Clock()
    estimate = Estimate(clock)
    clock.now = 2.0
    rate, left = estimate.update(100, None)

    assert _as_text(100, 0, None, rate, left) == "100 rows, 50 rows/s"
    assert _as_json(100, 0, None, rate, left) == (
        '{"rows": 100, "errors": 0, "done": null, "rows_per_second": 50.0, "seconds_left": null}'
    )
    assert _as_text(9, 0, 0.5, 1.0, 3725.0) == "9 rows (50%), 1 rows/s, 1:02:05 left"
