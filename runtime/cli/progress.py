"""How far a run is: a bar in a terminal, plain lines elsewhere, JSON for machines."""

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

from runtime.cli.commands import say

# Between two lines where there is no terminal.
_PAUSE_S = 10.0


class Shown(Protocol):
    """Shows how far a run is.

    Attributes:
      rows: of this run so far, without those of an earlier one.
    """

    rows: int

    def begin(self, resumed: bool, progress: Any) -> None:
        """Show where the run begins."""

    def update(self, rows: int, errors: int, done: float | None) -> None:
        """Show how far it is."""

    def close(self) -> None:
        """Leave the terminal as it was."""


def show_progress(*, json_: bool) -> Shown:
    """Return what shows progress on stderr."""
    if not json_ and sys.stderr.isatty() and importlib.util.find_spec("rich") is not None:
        return _Bar()
    return Lines(_as_json if json_ else _as_text)


class Lines:
    """A line every few seconds.

    Args:
      write: returns the line of rows, errors, the part that is done, rows a second and seconds left.
      clock: in seconds.

    Attributes:
      rows: likewise.
    """

    def __init__(
        self,
        write: Callable[[int, int, float | None, float, float | None], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rows = 0
        self._write = write
        self._clock = clock
        self._estimate = Estimate(clock)
        self._last = clock()

    def begin(self, resumed: bool, progress: Any) -> None:
        """See `Shown`."""
        self._estimate.begin(progress.rows)
        if resumed:
            say(f"going on after {progress.rows} rows in {progress.shards} shards")

    def update(self, rows: int, errors: int, done: float | None) -> None:
        """See `Shown`."""
        rate, left = self._estimate.update(rows, done)
        self.rows = self._estimate.rows
        if self._clock() - self._last >= _PAUSE_S:
            self._last = self._clock()
            say(self._write(rows, errors, done, rate, left))

    def close(self) -> None:
        """See `Shown`."""


class Estimate:
    """Rows a second, and the seconds that are left.

    Args:
      clock: in seconds.

    Attributes:
      rows: since the beginning of this run.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.rows = 0
        self._clock = clock
        self._begin = clock()
        self._before = 0
        self._first: float | None = None

    def begin(self, rows: int) -> None:
        """Begin behind the rows of an earlier run."""
        self._before = rows
        self._begin = self._clock()

    def update(self, rows: int, done: float | None) -> tuple[float, float | None]:
        """Return rows a second, and the seconds left where they are known."""
        self.rows = rows - self._before
        seconds = max(self._clock() - self._begin, 1e-9)
        if done is None or not self.rows or not 0 < done <= 1:
            return self.rows / seconds, None
        # What an earlier run did took no time of this one.
        before = done * self._before / rows
        own = max(done - before, 1e-9)
        return self.rows / seconds, seconds * (1 - done) / own


def _as_text(rows: int, errors: int, done: float | None, rate: float, left: float | None) -> str:
    part = "" if done is None else f" ({done:.0%})"
    wait = "" if left is None else f", {_duration(left)} left"
    refused = f", {errors} errors" if errors else ""
    return f"{rows} rows{part}{refused}, {rate:,.0f} rows/s{wait}"


def _as_json(rows: int, errors: int, done: float | None, rate: float, left: float | None) -> str:
    return json.dumps(
        {
            "rows": rows,
            "errors": errors,
            "done": None if done is None else round(done, 4),
            "rows_per_second": round(rate, 1),
            "seconds_left": None if left is None else round(left, 1),
        }
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Bar:
    """A bar in a terminal, with rows/s and the time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.rows = 0
        self._estimate = Estimate(time.monotonic)
        self._progress: Any = Progress(
            BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True)
        )
        self._task = self._progress.add_task("starting", total=1.0)

    def begin(self, resumed: bool, progress: Any) -> None:
        """See `Shown`."""
        if resumed:
            say(f"going on after {progress.rows} rows in {progress.shards} shards")
        self._estimate.begin(progress.rows)
        self._progress.start()

    def update(self, rows: int, errors: int, done: float | None) -> None:
        """See `Shown`."""
        rate, left = self._estimate.update(rows, done)
        self.rows = self._estimate.rows
        text = _as_text(rows, errors, done, rate, left)
        total = None if done is None else 1.0
        self._progress.update(self._task, description=text, completed=done or 0.0, total=total)

    def close(self) -> None:
        """See `Shown`."""
        self._progress.stop()
