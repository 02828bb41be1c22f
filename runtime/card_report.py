"""The report of which cards a bundle compiles for: a file beside the bundle, since it changes with jaxlib.

The standard library alone, so that deploying reads it without jax.
"""

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.accelerators import CARDS, Card, card_named, size

# How long a program may take to compile by default: 0.5 to 182 s were seen, on a busy core.
LIMIT_S = 600.0

FORMAT = 1
_ENDING = ".cards.json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProgramOnCard:
    """What came of compiling a program for a card.

    Attributes:
      card: its name.
      program: its bucket.
      reason: why it does not compile; empty where it does.
      seconds: that compiling took.
      argument_bytes: of weights and inputs.
      temp_bytes: that a run takes beside them.
      output_bytes: of its outputs.
      custom_calls: libraries and kernels that it calls on the card, by their targets.
    """

    card: str
    program: str
    reason: str = ""
    seconds: float = 0.0
    argument_bytes: int = 0
    temp_bytes: int = 0
    output_bytes: int = 0
    custom_calls: tuple[str, ...] = ()

    @property
    def compiles(self) -> bool:
        """Whether it compiles."""
        return not self.reason

    @property
    def needed_bytes(self) -> int:
        """Return the memory that a run takes, weights included."""
        return self.argument_bytes + self.temp_bytes + self.output_bytes

    @property
    def fits(self) -> bool:
        """Whether it compiles, and JAX's part of the card's memory holds it."""
        return self.compiles and self.needed_bytes <= CARDS[self.card].usable_bytes()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CardReport:
    """Which programs of a bundle compile for which cards. None of them ran there.

    Attributes:
      bundle: digest.
      versions: of jax, and of the plugin that compiled.
      programs: by card, in the order of the manifest.
    """

    bundle: str
    versions: Mapping[str, str]
    programs: tuple[ProgramOnCard, ...]

    def of(self, card: Card) -> tuple[ProgramOnCard, ...]:
        """Return what is known of a card; nothing where it was not compiled for."""
        return tuple(one for one in self.programs if one.card == card.name)

    @property
    def refusals(self) -> tuple[str, ...]:
        """Return a line for each program that a card cannot run."""
        found = []
        for one in self.programs:
            where = f"program {one.program} on {one.card}"
            if not one.compiles:
                found.append(f"{where}: expected it to compile, got: {one.reason}")
            elif not one.fits:
                card = CARDS[one.card]
                found.append(
                    f"{where}: expected at most {size(card.usable_bytes())} of memory, got "
                    f"{size(one.needed_bytes)}; choose a card with more, or export smaller buckets"
                )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        cards: dict[str, Any] = {}
        for one in self.programs:
            card = CARDS[one.card]
            about = cards.setdefault(
                one.card,
                {
                    "memory_bytes": card.memory_bytes,
                    "usable_bytes": card.usable_bytes(),
                    "programs": [],
                },
            )
            fields = dataclasses.asdict(one)
            del fields["card"]
            about["programs"].append({**fields, "compiles": one.compiles, "fits": one.fits})
        return {
            "format": FORMAT,
            "bundle": self.bundle,
            "versions": dict(self.versions),
            "cards": cards,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "CardReport":
        """Return the report that `to_json` wrote.

        Raises:
          KeyError, TypeError, ValueError: it is no such report.
        """
        if found["format"] != FORMAT:
            raise ValueError(f"expected format {FORMAT}, got {found['format']!r}")
        programs = tuple(
            ProgramOnCard(
                card=card_named(card).name,
                program=str(program["program"]),
                reason=str(program["reason"]),
                seconds=float(program["seconds"]),
                argument_bytes=int(program["argument_bytes"]),
                temp_bytes=int(program["temp_bytes"]),
                output_bytes=int(program["output_bytes"]),
                custom_calls=tuple(map(str, program["custom_calls"])),
            )
            for card, about in found["cards"].items()
            for program in about["programs"]
        )
        return cls(bundle=found["bundle"], versions=found["versions"], programs=programs)


def report_file(bundle: Path) -> Path:
    """Return where the report of a bundle is: beside its directory."""
    whole = Path(os.path.abspath(bundle))
    return whole.with_name(whole.name + _ENDING)


def read_report(bundle: Path, digest: str) -> CardReport | None:
    """Return the report beside a bundle; None where there is none, or one of another bundle.

    Args:
      bundle: its directory.
      digest: its own.
    """
    try:
        found = CardReport.from_json(json.loads(report_file(bundle).read_bytes()))
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return None
    return found if found.bundle == digest else None


def keep_report(bundle: Path, report: CardReport) -> Path:
    """Write a report beside a bundle, with what was known of other cards by the same versions.

    Raises:
      OSError: it cannot be written; what was there stays.
    """
    before = read_report(bundle, report.bundle)
    if before is not None and dict(before.versions) == dict(report.versions):
        cards = {one.card for one in report.programs}
        others = tuple(one for one in before.programs if one.card not in cards)
        report = dataclasses.replace(report, programs=(*others, *report.programs))
    file = report_file(bundle)
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "w") as written:
            json.dump(report.to_json(), written, indent=1)
            written.write("\n")
            os.fchmod(descriptor, 0o644)
            os.fsync(descriptor)
        Path(temporary).replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
    return file


def cards_of(text: str) -> list[Card]:
    """Return the cards of a list with commas, each once.

    Raises:
      UnknownCard: one is not known.
    """
    names: Sequence[str] = text.split(",")
    return list({card.name: card for card in map(card_named, names)}.values())
