"""Shell completion: the options of every command, from the parsers that read them."""

import argparse
import importlib
from collections.abc import Iterator

import shtab

from hloserve.commands import COMMANDS, COMPLETION, SHELLS, Command
from hloserve.packages import import_own

# Where the parser of each command is: those of a package that has one parser with
# subcommands, and of one where each has its own.
_PARSERS = {
    "export": "export.parser",
    "runtime": "runtime.cli.parser",
    "server": "server.options",
    "serve bench": "server.bench.cli",
    "serve doctor": "server.doctor.cli",
}
# What a shell completes by the placeholder of a value.
_DIRECTORIES = {"DIR", "NEW", "BUNDLE"}
_FILES = {"FILE", "PATH", "PEM", "MODEL", "NAMES", "INPUT"}


def script(shell: str) -> str:
    """Return what completes `hloserve` in a shell.

    Args:
      shell: bash, zsh or fish.
    """
    import_own("runtime", "export", "server")
    root = argparse.ArgumentParser(prog="hloserve")
    root.add_argument("--version", action="store_true", help="print the name and version")
    commands = root.add_subparsers()
    served: argparse._SubParsersAction[argparse.ArgumentParser] | None = None
    for command in COMMANDS:
        outer, _, inner = command.words.partition(" ")
        if not inner:
            added = commands.add_parser(
                outer, parents=[*_parsers(command)], add_help=False, help=command.summary
            )
            if outer == "serve":
                served = added.add_subparsers()
        elif served is not None:
            served.add_parser(
                inner, parents=[*_parsers(command)], add_help=False, help=command.summary
            )
    completion = commands.add_parser(COMPLETION, help="print what completes all this in a shell")
    completion.add_argument("shell", choices=SHELLS)
    return str(shtab.complete(root, shell))


def _parsers(command: Command) -> Iterator[argparse.ArgumentParser]:
    """Yield the parser of a command; none where a package that it needs is not installed."""
    home = _PARSERS.get(command.words) or _PARSERS[command.package]
    try:
        parser: argparse.ArgumentParser = importlib.import_module(home).parser()
    except ModuleNotFoundError:
        return
    subcommands = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]  # noqa: SLF001
    if subcommands:
        parser = subcommands[0].choices[command.arguments[0]]
    for action in parser._actions:  # noqa: SLF001 (shtab reads them as well)
        if action.metavar in _DIRECTORIES:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    yield parser
