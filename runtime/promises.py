"""How long a bundle is promised to load, and in which jax. Read with the standard library alone.

JAX counts from the build dates of the jax that wrote and the jax that reads, not from today:
https://docs.jax.dev/en/latest/501/export.html#compatibility-guarantees and, for StableHLO,
https://github.com/openxla/stablehlo/blob/main/docs/compatibility.md
"""

import calendar
import dataclasses
import datetime as dt
import re

from runtime.manifest import Manifest

# When the releases of jax that this project knows were built: the days of their wheels.
JAX_BUILD_DATES = {
    "0.11.2": dt.date(2026, 9, 17),
    "0.12.0": dt.date(2026, 10, 19),
    "0.12.0.1": dt.date(2026, 10, 21),
}


@dataclasses.dataclass(frozen=True, slots=True)
class CompatibilityWindow:
    """In which jax one form of a bundle's programs is promised to load.

    Attributes:
      form: "exported" or "stablehlo".
      writer: the jax that wrote it.
      first: the build date of the oldest jax that reads it.
      last: the build date of the newest.
    """

    form: str
    writer: str
    first: dt.date
    last: dt.date

    def covers(self, built: dt.date) -> bool:
        """Return whether a jax built on a day is promised to read it."""
        return self.first <= built <= self.last

    def days_left(self, today: dt.date) -> int:
        """Count the days on which a jax that is built then still reads it; negative when past."""
        return (self.last - today).days


def compatibility_windows(manifest: Manifest) -> tuple[CompatibilityWindow, ...]:
    """Return what is promised of `.exported` and of `.stablehlo`, in the order they are tried.

    Returns:
      Nothing where a jax wrote them whose build date is not known.
    """
    # Refreshing wraps programs anew, and leaves the StableHLO inside as it was.
    first_export = manifest.refreshed_from[0].exporter if manifest.refreshed_from else None
    wrapper = manifest.exporter.get("jax", "")
    writer = (first_export or manifest.exporter).get("jaxlib", "")
    wrapped, written = built(wrapper), built(writer)
    if wrapped is None or written is None:
        return ()
    return (
        CompatibilityWindow(
            "exported", wrapper, wrapped - dt.timedelta(weeks=3), _later(wrapped, 6)
        ),
        CompatibilityWindow("stablehlo", writer, _later(written, -24), _later(written, 60)),
    )


def built(version: str) -> dt.date | None:
    """Return the day a jax was built, or for one that is not known the last day it was not yet.

    Releases come in order, so a bundle that an unknown one wrote lasts at least as long as
    the newest known one before it would let it.
    """
    earlier = [day for known, day in JAX_BUILD_DATES.items() if _order(known) <= _order(version)]
    return max(earlier, default=None)


def is_known(version: str) -> bool:
    """Return whether it is known when a jax was built."""
    return any(_order(known) == _order(version) for known in JAX_BUILD_DATES)


def assumed(version: str, today: dt.date) -> dt.date | None:
    """Return the day to take for a jax's build: of one that is newer than all known ones, today.

    Returns:
      None for one that is older than those that can read any bundle.
    """
    newest = all(_order(known) < _order(version) for known in JAX_BUILD_DATES)
    return today if newest else built(version)


def _order(version: str) -> tuple[int, ...]:
    """Return what versions are ordered by; 0.12 is 0.12.0, and what is absurd is no error."""
    numbers = [int(part) for part in re.findall(r"\d{1,9}", version)[:4]]
    return (*numbers, 0, 0, 0, 0)[:4]


def _later(day: dt.date, months: int) -> dt.date:
    """Return the day some months later, or the last of that month."""
    years, month = divmod(day.month - 1 + months, 12)
    year, month = day.year + years, month + 1
    return dt.date(year, month, min(day.day, calendar.monthrange(year, month)[1]))


def summary(manifest: Manifest, today: dt.date) -> str:
    """Return in a line how long the bundle is promised to load."""
    parts = [
        f"from .{p.form} with JAX built until {p.last} ({p.days_left(today)} days left)"
        for p in compatibility_windows(manifest)
    ]
    if not parts:
        return f"the bundle loads with no JAX for certain: jax {manifest.exporter.get('jax', '?')} wrote it"
    return "the bundle loads " + ", ".join(parts)


def today() -> dt.date:
    """Return the day it is, in UTC."""
    return dt.datetime.now(dt.UTC).date()
