"""`python -m runtime`: verify, inspect, bench, compile, examine and refresh a bundle, and predict."""

import os
import signal
import sys
from collections.abc import Sequence

from runtime.cli.commands import (
    EXIT_BUNDLE,
    EXIT_DEVICE,
    EXIT_GOLDEN,
    EXIT_USAGE,
    UsageError,
    say,
)
from runtime.cli.parser import STATUSES, parser
from runtime.errors import BundleError, DeviceUnavailable, ExecutionError, GoldenMismatch
from runtime.guard import run_in_child
from runtime.invocation import error_line

__all__ = ["STATUSES", "main", "parser"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    See `STATUSES` for what each says.
    """
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except MemoryError as error:
        print(error_line(f"not enough memory: {error}"), file=sys.stderr)
        return EXIT_DEVICE
    except (DeviceUnavailable, ExecutionError) as error:
        say(error_line(error))
        return EXIT_DEVICE
    except BundleError as error:
        say(error_line(error))
        return EXIT_GOLDEN if isinstance(error, GoldenMismatch) else EXIT_BUNDLE
    except UsageError as error:
        print(error_line(error), file=sys.stderr)
        return EXIT_USAGE
    except OSError as error:
        # A full disk does not say which; of these commands only refresh may fill one.
        where = error.filename or getattr(arguments, "out", None)
        print(error_line(f"{f'{where}: ' if where else ''}{error.strerror}"), file=sys.stderr)
        return EXIT_USAGE


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # ends quietly before `head`, as tools do
    run_in_child()
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # ends by the signal, without a word, so that a shell knows
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
