"""Command lines that name the nearest valid word for a typo, in one line."""

import argparse
import contextlib
import difflib
import importlib.util
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, override

from runtime.errors import nearest
from runtime.invocation import error_line
from runtime.localpaths import why_not_read, why_not_written
from runtime.release import name_and_version

EXIT_USAGE = 2


@contextlib.contextmanager
def needing(extra: str, *packages: str) -> Iterator[None]:
    """Import what an extra of this project brings; where it is missing, say so and exit.

    Args:
      extra: its name, which is that of the command as well.
      packages: that are imported only later.
    """
    try:
        for package in packages:
            _expect(package)
        yield
    except ModuleNotFoundError as error:
        print(
            error_line(
                f"python -m {extra} needs {error.name}, which is not installed; "
                f"pip install 'hloserve[{extra}]'"
            ),
            file=sys.stderr,
        )
        sys.exit(EXIT_USAGE)


@contextlib.contextmanager
def reading_settings() -> Iterator[None]:
    """Import JAX, which reads its settings from the environment; where it refuses one, exit."""
    try:
        yield
    except ValueError as error:
        print(
            error_line(f"JAX does not take a setting of the environment: {error}"), file=sys.stderr
        )
        sys.exit(EXIT_USAGE)


def _expect(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(name=package)


def seconds(text: str) -> float:
    """Read a length of time, as the type of an option."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"expected seconds, more than 0, got {text!r}")
    return found


def to_read(text: str) -> Path:
    """Return the path of what is to be read, as the type of an option; a URL is none."""
    return _local(text, why_not_read)


def directory_to_write(text: str) -> Path:
    """Return the path of a directory to be written, as the type of an option; a URL is none."""
    return _local(text, why_not_written)


def file_to_write(text: str) -> Path:
    """Return the path of a file to be written, as the type of an option; a URL is none."""
    return _local(text, lambda path: why_not_written(path, file=True))


def _local(text: str, why_not: Callable[[str], str | None]) -> Path:
    reason = why_not(text)
    if reason:
        raise argparse.ArgumentTypeError(reason)
    return Path(text)


class _Version(argparse.Action):
    """Prints which release this is, whatever else is missing, and exits."""

    @override
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(name_and_version())
        parser.exit(0)


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add `--version`, which prints the name and version of this project and exits."""
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="print the name and version, and exit"
    )


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and name the nearest valid word."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Look at unknown options first: a typo of a required one is both unknown and missing."""
        words = sys.argv[1:] if args is None else list(args)
        # What follows a command is for the command's own parser.
        commands = any(action.nargs == argparse.PARSER for action in self._actions)
        known = [option for action in self._actions for option in action.option_strings]
        for word in itertools.takewhile(lambda w: w != "--", words[:1] if commands else words):
            name = word.partition("=")[0]
            if re.match(r"--?[A-Za-z]", name) and name not in known:
                # What looks a little like --version still asks for something else.
                meant = known if name.startswith(("-v", "--v")) else set(known) - {"--version"}
                close = difflib.get_close_matches(name, meant, n=1, cutoff=0.5)
                hint = f"; did you mean {close[0]}?" if close else ""
                self.error(f"{name}: no such option{hint}")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 and one line."""
        choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        hint = nearest(choice[1], re.findall(r"\w+", choice[2])) if choice else ""
        self.exit(EXIT_USAGE, f"{error_line(message)}{hint}\n")
