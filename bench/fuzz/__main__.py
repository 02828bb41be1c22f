"""`python -m bench.fuzz`: alter a bundle thousands of times, and open the result.

    python -m bench.fuzz --mutations 2000 --seed 1 --page docs/compatibility.md

Each alteration is tried twice:

* as an accident, with the digests as they were, by a server that requires the bundle's digest:
  it has to be refused
* as forgery, with the digests made to match: whatever it does to the process that opens it
  first, nothing may happen to the one behind

Ends with 1 if the server ended, or took an accident for the bundle.
"""

import argparse
import collections
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.fuzz.mutations import forge, mutate
from bench.fuzz.opening import OTHER, REFUSED, SAME, Opener
from runtime.bundle import open_bundle
from runtime.errors import BundleError

ACCEPTED = "accident accepted"
_USUAL = (REFUSED, SAME, OTHER)
BEGIN, END = "<!-- made by python -m bench.fuzz --page -->\n", "<!-- end of it -->\n"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.fuzz", description="Alter a bundle, and open the result."
    )
    parser.add_argument("--bundle", type=Path, help="to alter (default: a small one, made for it)")
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write each outcome there")
    parser.add_argument("--page", type=Path, help="put the table there, where the last one is")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        bundle = arguments.bundle or _made(Path(folder) / "small")
        outcomes = fuzz(bundle, arguments.mutations, arguments.seed)
    if arguments.json:
        arguments.json.write_text(json.dumps(outcomes))
    print(table(outcomes))
    if arguments.page:
        put_into(arguments.page, table(outcomes))
    return int(any(bad(outcome) for _, _, outcome in outcomes))


def _made(bundle: Path) -> Path:
    """Make a small bundle, in a process of its own: this one must not touch a device."""
    subprocess.run([sys.executable, "-m", "bench.fuzz.small", str(bundle)], check=True)
    return bundle


def fuzz(bundle: Path, mutations: int, seed: int) -> list[tuple[int, str, str]]:
    """Alter a bundle and open it; return (number, file, outcome) of each."""
    digest = f"sha256:{open_bundle(bundle).digest}"
    outcomes = []
    opener = Opener(bundle)
    begin = time.monotonic()
    for number in range(mutations):
        rng = random.Random(f"{seed}-{number}")  # noqa: S311 (no secret)
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            altered = Path(folder) / bundle.name
            name = mutate(bundle, altered, rng)
            if _accepted(altered, digest):
                outcomes.append((number, name, ACCEPTED))
            forge(altered, name)
            outcomes.append((number, name, opener.open(altered)))
        if number % 100 == 99:
            spent = time.monotonic() - begin
            print(f"{number + 1} of {mutations}, {spent:.0f} s", file=sys.stderr, flush=True)
    return outcomes


def _accepted(altered: Path, digest: str) -> bool:
    """Whether an accident passes for the bundle, as far as its bytes are read at all."""
    try:
        open_bundle(altered, require_digest=digest).check()
    except BundleError:
        return False
    return True


def bad(outcome: str) -> bool:
    """Whether this must never be."""
    return outcome.startswith("server: ") or outcome == ACCEPTED


def table(outcomes: list[tuple[int, str, str]]) -> str:
    """Write, in Markdown, how often what happened to which kind of file."""
    counts = collections.Counter((_kind(name), outcome) for _, name, outcome in outcomes)
    columns = [*_USUAL, *sorted({outcome for _, outcome in counts}.difference(_USUAL))]
    rows = [
        ["altered", *columns],
        ["---", *["---:"] * len(columns)],
        *(
            [kind, *(str(counts[kind, outcome]) for outcome in columns)]
            for kind in sorted({kind for kind, _ in counts})
        ),
    ]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    ended = sum(n for (_, outcome), n in counts.items() if outcome.startswith("server: "))
    unseen = sum(n for (_, outcome), n in counts.items() if outcome == OTHER)
    accepted = sum(n for (_, outcome), n in counts.items() if outcome == ACCEPTED)
    total = len({number for number, *_ in outcomes})
    return "\n".join(
        [
            *lines,
            "",
            (
                f"{total} alterations: {ended} ended the server, {accepted} accidents were "
                f"accepted; {unseen} forgeries answered otherwise and passed the goldens"
            ),
        ]
    )


def put_into(page: Path, text: str) -> None:
    """Replace what an earlier run put into a page."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}{text}\n{end}{after}")


def _kind(name: str) -> str:
    """Name the kind of a file: manifest, exported, stablehlo, params or golden."""
    path = Path(name)
    return path.suffix[1:] if path.parent.name == "programs" else (path.parent.name or path.stem)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
