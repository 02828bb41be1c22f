"""What signals do to a process of ours; nothing else is imported, so that it holds from the start.

Of those that Python or the kernel would end a process by:

* DRAIN end it in order: the terminal is gone, the machine loses its power, the processor time is up
* IGNORED do nothing: they are for whoever installs a handler, or were sent by mistake
* all others are left as they are: SIGINT and SIGTERM are `process`'s, SIGQUIT and SIGABRT ask for a
  core dump, those of a fault (SIGSEGV …) have nothing to go on with, and those of job control stop
"""

import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn


def _found(*names: str) -> tuple[signal.Signals, ...]:
    """Return those that this platform has."""
    return tuple(signal.Signals[name] for name in names if name in signal.Signals.__members__)


DRAIN = _found("SIGTERM", "SIGHUP", "SIGPWR", "SIGXCPU")
IGNORED = _found(
    *("SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF"),
    *("SIGIO", "SIGSTKFLT", "SIGPIPE", "SIGXFSZ"),
)


def ignore() -> None:
    """Ignore what would end the process for no reason of its own; its children inherit that.

    What somebody has a handler for is left to it.
    """
    numbers: list[int] = [*IGNORED]
    if hasattr(signal, "SIGRTMIN"):
        numbers += range(signal.SIGRTMIN, signal.SIGRTMAX + 1)
    for number in numbers:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.SIG_IGN)


def end_at_interrupt() -> None:
    """Have SIGINT end the process without a word, also one that came while it was blocked.

    What somebody has a handler for is left to it.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@contextlib.contextmanager
def interrupt_blocked() -> Iterator[None]:
    """Have a process that is started within get SIGINT once it calls `end_at_interrupt`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def wanted(number: signal.Signals) -> bool:
    """Whether whoever started the process has not had it ignore a signal, as nohup does."""
    return signal.getsignal(number) is not signal.SIG_IGN


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """Make a signal that would end the process an exit, so that what it started is ended first."""

    def leave(number: int, _: object) -> NoReturn:
        sys.exit(128 + number)

    ends = (*DRAIN, *IGNORED, signal.SIGINT, signal.SIGQUIT)
    before = {
        n: signal.signal(n, leave) for n in ends if wanted(n) and signal.getsignal(n) is not None
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
