"""A command run in a child, so that a crash of native code is an error in one line.

Forking is safe here, before JAX is imported: there are no threads yet.
"""

import contextlib
import ctypes
import itertools
import os
import resource
import signal
import sys
from pathlib import Path
from types import FrameType

from runtime.invocation import error_line

EXIT_BUNDLE, EXIT_DEVICE = 3, 5

# The ways in which native code ends a process; the others are sent on purpose.
_CRASHES = {
    *(signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS),
    *(signal.SIGFPE, signal.SIGILL, signal.SIGTRAP),
}

_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def run_in_child() -> None:
    """Go on in a child; this process waits for it, and ends as it did.

    A crash is reported as an error with the signal, and the exit status of a bundle that cannot
    be used.
    """
    # One that arrives between the fork and the handlers would end this process alone.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    child = os.fork()
    if child == 0:
        mark_expendable()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return

    def pass_on(number: int, _: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(child, number)

    def interrupted(_: int, __: FrameType | None) -> None:
        # A terminal sends it to the child as well. Native code does not hear it: the second
        # time is meant in earnest.
        if next(interrupts):
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            pass_on(signal.SIGTERM, None)

    interrupts = itertools.count()
    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGHUP, pass_on)
    signal.signal(signal.SIGINT, interrupted)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        sys.stdout.flush()
        os._exit(os.waitstatus_to_exitcode(status))
    os._exit(_ended_by(os.WTERMSIG(status)))


def mark_expendable() -> None:
    """Leave no core file, end with the process that started this one, and go first if memory does."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:  # Linux
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def exit_description(status: int) -> str:
    """Return what ended a process, and what it is a sign of.

    Args:
      status: the process's exit status, negative for a signal.
    """
    if status == -signal.SIGKILL:
        return "SIGKILL; was there memory enough?"
    ended = signal_name(-status) if status < 0 else f"exit status {status}"
    return f"{ended}; it is damaged, or made to do that"


def signal_name(number: int) -> str:
    """Name a signal; most of those of real time have a number alone."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _ended_by(number: int) -> int:
    if number in _CRASHES or number == signal.SIGKILL:
        _say(
            error_line(f"the bundle ended the process that opened it: {exit_description(-number)}")
        )
        return EXIT_BUNDLE if number in _CRASHES else EXIT_DEVICE
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
