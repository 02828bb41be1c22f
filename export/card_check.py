"""GPUs that are not here: whether the written bundle compiles for them, before it is there to be served."""

from collections.abc import Sequence
from pathlib import Path

from export.errors import ExportError, VerificationError, few_names
from export.report import Progress
from export.spec import ExportSpec
from runtime.accelerators import Card, UnknownCard, card_named
from runtime.bundle import open_bundle
from runtime.card_report import LIMIT_S, CardReport
from runtime.gpu_check import NoPlugin, check_cards, find_environment


def cards_for(names: Sequence[str] | str, spec: ExportSpec) -> list[Card]:
    """Return the cards that are to be checked, before anything is traced.

    Args:
      names: of cards.
      spec: checked.

    Raises:
      ExportError: one is not known, the bundle would not be for GPUs, or nothing here compiles for them.
    """
    named = names.split(",") if isinstance(names, str) else list(names)
    if not named:
        return []
    try:
        cards = [card_named(name) for name in named]
        if "cuda" not in spec.platforms:
            raise ExportError(
                f"check_gpu: expected cuda among the platforms, got {', '.join(spec.platforms)}; add "
                "it to --platforms"
            )
        find_environment()
    except (UnknownCard, NoPlugin) as error:
        raise ExportError(f"check_gpu: {error}") from error
    return list({card.name: card for card in cards}.values())


def check(bundle: Path, cards: Sequence[Card], progress: Progress) -> CardReport:
    """Compile the smallest and the largest program of each group for each card.

    Args:
      bundle: staged, with its last manifest.
      cards: to compile for.
      progress: called with a sentence before each program.

    Raises:
      VerificationError: a card cannot run a program, or has not enough memory for it.
    """
    report = check_cards(open_bundle(bundle), cards, limit_s=LIMIT_S, progress=progress)
    if report.refusals:
        more = len(report.refusals) - 1
        names = few_names(list(dict.fromkeys(one.card for one in report.programs if not one.fits)))
        raise VerificationError(
            f"the bundle does not run on {names}: {report.refusals[0]}"
            + (f" (and {more} more)" if more else "")
        )
    return report
