"""Signals: which ones drain the server, which are ignored. Imports nothing else, to apply from the start.

Of the signals that would end a process by default:

* DRAIN shuts down gracefully: SIGTERM, the terminal is gone, power fails, the CPU time limit is reached
* IGNORED have no effect: they are meant for programs with a handler, or were sent by mistake
* all others keep their default: SIGINT is handled in `lifecycle`, SIGQUIT and SIGABRT ask for a
  core dump, after a fault (SIGSEGV …) nothing can go on, and those of job control stop the process
"""

import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn


def _available(*names: str) -> tuple[signal.Signals, ...]:
    """Return the signals of these names that this platform has."""
    return tuple(signal.Signals[name] for name in names if name in signal.Signals.__members__)


DRAIN = _available("SIGTERM", "SIGHUP", "SIGPWR", "SIGXCPU")
IGNORED = _available(
    *("SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF"),
    *("SIGIO", "SIGSTKFLT", "SIGPIPE", "SIGXFSZ"),
)


def ignore() -> None:
    """Ignore `IGNORED` and the real-time signals; child processes inherit that.

    Signals with a handler keep it.
    """
    numbers: list[int] = [*IGNORED]
    if hasattr(signal, "SIGRTMIN"):
        numbers += range(signal.SIGRTMIN, signal.SIGRTMAX + 1)
    for number in numbers:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.SIG_IGN)


def end_at_interrupt() -> None:
    """Make SIGINT end the process without a traceback, also one that was sent while it was blocked.

    A handler that was set stays.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@contextlib.contextmanager
def interrupt_blocked() -> Iterator[None]:
    """Block SIGINT in child processes that are started within, until `end_at_interrupt`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def wanted(number: signal.Signals) -> bool:
    """Whether a signal is not ignored already, as nohup makes a process ignore SIGHUP."""
    return signal.getsignal(number) is not signal.SIG_IGN


@contextlib.contextmanager
def exiting_on_signals() -> Iterator[None]:
    """Turn signals that would end the process into SystemExit, so that its children end first."""

    def on_signal(number: int, _: object) -> NoReturn:
        sys.exit(128 + number)

    ends = (*DRAIN, *IGNORED, signal.SIGINT, signal.SIGQUIT)
    before = {
        n: signal.signal(n, on_signal)
        for n in ends
        if wanted(n) and signal.getsignal(n) is not None
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
