"""`python -m runtime compile --target`: its options, what it prints, and its exit status."""

import argparse
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from runtime.accelerators import CARDS, Card, UnknownCard
from runtime.card_report import LIMIT_S, cards_of, keep_report
from runtime.errors import printable
from runtime.invocation import error_line

if TYPE_CHECKING:
    from runtime.bundle import Bundle

EXIT_OK, EXIT_USAGE, EXIT_BUNDLE, EXIT_DEVICE = 0, 2, 3, 5


def add_target_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of compiling for GPUs that are not here."""
    group = parser.add_argument_group(
        "GPUs that are not here",
        "whether the programs compile for them, and fit into their memory; nothing runs, and nothing "
        "is kept but a report beside the bundle. Exit status 3 where one does not compile, 5 where "
        "one does not fit",
    )
    group.add_argument(
        "--target",
        type=cards,
        default=[],
        metavar="CARD[,CARD]",
        help=f"cards to compile for: {', '.join(CARDS)}",
    )
    group.add_argument(
        "--all",
        action="store_true",
        help="every program, not only the smallest and the largest batch of each group",
    )
    group.add_argument(
        "--limit",
        type=_seconds,
        default=LIMIT_S,
        metavar="SECONDS",
        help=f"time that each may take to compile (default: {LIMIT_S:g})",
    )
    group.add_argument("--json", action="store_true", help="print the report for machines")


def cards(text: str) -> list[Card]:
    """Return the cards that an option names.

    Raises:
      ArgumentTypeError: one is not known.
    """
    try:
        return cards_of(text)
    except UnknownCard as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"expected seconds, more than 0, got {text!r}")
    return value


def refusal(arguments: argparse.Namespace) -> str | None:
    """Return what is wrong with the options beside each other, if anything."""
    here = [name for name in ("cache", "device", "threads") if getattr(arguments, name)]
    here += ["portable"] * arguments.portable
    if arguments.target and here:
        return f"--{here[0]} and --target: expected one of them, got both: for a GPU that is not here nothing is kept"
    if not arguments.target:
        for name in ("all", "json"):
            if getattr(arguments, name):
                return f"--{name}: expected --target beside it"
        if not arguments.cache:
            return "--cache: expected a directory, got none; or pass --target for GPUs that are not here"
    return None


def compile_for_cards(
    arguments: argparse.Namespace, bundle: "Bundle", progress: Callable[[str], None]
) -> int:
    """Compile for the cards of `--target` and print a table, or JSON; return the exit status."""
    from runtime.gpu_check import NoPlugin, check_cards, table

    try:
        report = check_cards(
            bundle,
            arguments.target,
            everything=arguments.all,
            limit_s=arguments.limit,
            progress=progress,
        )
    except NoPlugin as error:
        print(error_line(f"--target: {error}"), file=sys.stderr)
        return EXIT_USAGE
    try:
        kept = f"report {keep_report(bundle.path, report)}"
    except OSError as error:
        kept = f"no report beside the bundle: {error.strerror}"
    if arguments.json:
        print(json.dumps(report.to_json()))
    else:
        versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
        print(f"compiled with {versions}; nothing ran on a card\n\n{table(report)}\n")
        for line in report.refusals:
            print(printable(f"FAILED {line}"))
        names = ", ".join(card.name for card in arguments.target)
        print(
            f"FAILED: does not run on {names}" if report.refusals else f"ok: compiles for {names}"
        )
    progress(kept)
    if not all(one.compiles for one in report.programs):
        return EXIT_BUNDLE
    return EXIT_OK if not report.refusals else EXIT_DEVICE
