"""What is called when the process has to end, since its device does not work any more."""

from typing import Protocol


class Failures(Protocol):
    """Ends the process, or passes on that it has to end: executor, scheduler, service, process.

    Each of them is the next one's caller, and adds what it has to do before: the scheduler changes
    to the event loop, the service refuses the requests that wait.
    """

    def on_fatal(self, reason: str) -> None:
        """End the process in order: the device failed for good.

        Args:
          reason: for the log, lower case, without a full stop.
        """

    def on_hang(self) -> None:
        """End the process at once: the event loop itself hangs in the device.

        Called on another thread than the loop's.
        """
