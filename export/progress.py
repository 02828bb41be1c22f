"""Progress of an export: one line of a terminal that changes with each step."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console


def stderr_console() -> Console:
    """Return what writes to stderr, as wide as a terminal there is."""
    return Console(stderr=True, soft_wrap=True)


@contextlib.contextmanager
def shown(console: Console, elsewhere: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """Yield what is called with a sentence before each slow step.

    Args:
      console: shows it, where that is a terminal.
      elsewhere: gets it where it is none.
    """
    if not console.is_terminal:
        yield elsewhere
        return
    with console.status("starting") as status:
        yield status.update


def silent(_: str) -> None:
    """Show nothing."""
