"""What preparing raw inputs may use: memory, and time while its result is wanted."""

import contextlib
from typing import Protocol


class Resources(Protocol):
    """Limits of one request's preparation. Called in the thread that prepares it."""

    def memory(self, size: int) -> contextlib.AbstractContextManager[None]:
        """Return a context that `size` bytes may be used in; entering it may wait for others."""

    def check(self) -> None:
        """Raise an error where the result is not wanted any more."""


class Unlimited:
    """No limits: a program's own call, which waits for the result."""

    def memory(self, size: int) -> contextlib.AbstractContextManager[None]:  # noqa: ARG002 (any)
        """Return a context that nothing is counted in."""
        return contextlib.nullcontext()

    def check(self) -> None:
        """Go on: the caller waits."""


UNLIMITED = Unlimited()
