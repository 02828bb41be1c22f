"""The state of a service, and whom its changes concern. Used on one event loop."""

import enum
from collections.abc import Callable


class State(enum.Enum):
    """The state of a service.

    DRAINING still accepts requests but is not ready, so that load balancers stop sending them;
    STOPPING answers only the requests that it has. FAILED is the last: nothing follows it.
    """

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    FAILED = "failed"


class ServiceState:
    """The current state.

    Attributes:
      listeners: called at every change.
    """

    def __init__(self) -> None:
        self.listeners: list[Callable[[], object]] = []
        self._current = State.LOADING

    @property
    def current(self) -> State:
        """Return the state."""
        return self._current

    def change(self, state: State) -> None:
        """Change the state; one that has failed stays so."""
        if self._current is State.FAILED:
            return
        self._current = state
        for listener in self.listeners:
            listener()
