"""`python -m runtime predict`: rows of files through a bundle, into a folder."""

import argparse
import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from runtime.cli.commands import EXIT_OK, UsageError, open_, say
from runtime.cli.progress import show_progress
from runtime.commandline import Parser, reading_settings
from runtime.errors import GoldenMismatch, printable
from runtime.invocation import spelled
from runtime.scratch import temporary_directory

if TYPE_CHECKING:
    from runtime.batch_prediction.job import Job
    from runtime.batch_prediction.ledger import Progress
    from runtime.startup import Started

EXIT_ROWS = 1
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal asks this process to end.

    Attributes:
      number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def add_arguments(parser: Parser) -> None:
    """Add what `predict` takes behind the bundle."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="a JSONL, Parquet, Arrow, npz or safetensors file, a folder of such or of texts, "
        "gs://BUCKET/PATH, or - for JSONL from stdin",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="folder of the predictions, or gs://BUCKET/FOLDER",
    )
    parser.add_argument(
        "--format",
        choices=("jsonl", "parquet", "arrow", "npz", "safetensors"),
        default="jsonl",
        help="of the predictions (default: jsonl)",
    )
    parser.add_argument(
        "--input-format",
        choices=("jsonl", "parquet", "arrow", "npz", "safetensors", "files"),
        help="of all inputs (default: by the ends of their names)",
    )
    parser.add_argument(
        "--key",
        metavar="FIELD",
        help="field that names a row, in place of `key`; each row must have it",
    )
    parser.add_argument(
        "--pass",
        action="append",
        default=[],
        dest="passed",
        metavar="FIELD",
        help="field that is no input, and is written beside the prediction; may be repeated",
    )
    parser.add_argument(
        "--raw", action="store_true", help="write outputs as they are, not labels and probabilities"
    )
    parser.add_argument("--limit", type=_count, metavar="N", help="read the first N rows")
    parser.add_argument(
        "--max-errors",
        type=_count,
        metavar="N",
        help="end with status 1 once more than N rows are refused (default: no limit)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what an earlier run left in the folder"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: JAX's default device)")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="executables, as the server's --cache-dir"
    )
    parser.add_argument(
        "--json", action="store_true", help="print progress and the summary for machines"
    )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number such as 1000, got {text!r}")
    return int(text)


def predict(arguments: argparse.Namespace) -> int:
    """Answer the rows of all inputs; return the exit status."""
    # What needs neither jax nor the bundle first: a folder that cannot be written is seen at once.
    from runtime.batch_prediction.ledger import expect_usable
    from runtime.batch_prediction.output import OutputError, open_output
    from runtime.batch_prediction.places import STDIN, output_place
    from runtime.storage.store import FetchError

    try:
        with (
            temporary_directory("hloserve-predict-") as scratch,
            open_output(output_place(arguments.out), scratch) as output,
            _ended_by_signals(),
        ):
            expect_usable(
                output, overwrite=arguments.overwrite, resumable=STDIN not in arguments.inputs
            )
            return _predict(arguments, output, scratch)
    except (OutputError, FetchError) as error:
        raise UsageError(str(error)) from None


def _predict(arguments: argparse.Namespace, output: Any, scratch: Path) -> int:
    bundle = open_(arguments)
    with reading_settings():
        from runtime.batch_prediction.job import FieldsError, Job, Options, TooManyErrors
        from runtime.batch_prediction.sources import SourceError, expect_pyarrow, find_sources
        from runtime.batch_prediction.writers import UnwritableError
    try:
        sources = find_sources(arguments.inputs, arguments.input_format)
        if arguments.format in ("parquet", "arrow"):
            expect_pyarrow(f"--format {arguments.format}")
        if any(source.place is None for source in sources):
            say("reading stdin: if this is interrupted it cannot go on, only start again")
        options = Options(
            format=arguments.format,
            key=arguments.key,
            passed=tuple(arguments.passed),
            raw=arguments.raw,
            limit=arguments.limit,
        )
        job = Job(_start(arguments, bundle), sources, options)
        return _run(arguments, job, output, scratch)
    except (SourceError, FieldsError, UnwritableError) as error:
        raise UsageError(str(error)) from None
    except TooManyErrors as error:
        say(spelled(f"error: {error}"))
        return EXIT_ROWS


def _start(arguments: argparse.Namespace, bundle: Any) -> "Started":
    from runtime.executable_cache import ExecutableCache
    from runtime.startup import start

    cache = ExecutableCache(arguments.cache, say) if arguments.cache else None
    quiet = (lambda _: None) if arguments.json else say
    started = start(bundle, arguments.device, cache=cache, isolated=False, progress=quiet)
    if started.failed:
        raise GoldenMismatch(
            f"{len(started.failed)} golden checks failed on this device, first: {started.failed[0]}"
        )
    if started.mixing or started.model.manifest.row_mixing:
        say("each row runs by itself, since rows of this bundle depend on each other")
    return started


def _run(arguments: argparse.Namespace, job: "Job", output: Any, scratch: Path) -> int:
    begin = time.monotonic()
    shown = show_progress(json_=arguments.json)
    with contextlib.closing(shown):
        try:
            progress = job.run(
                output,
                scratch,
                overwrite=arguments.overwrite,
                max_errors=arguments.max_errors,
                on_begin=shown.begin,
                on_window=shown.update,
                warn=say,
            )
        except Interrupted as interrupt:
            shown.close()
            say(
                f"interrupted; what is complete is in {arguments.out}, and the same command goes on from there"
            )
            signal.signal(interrupt.number, signal.SIG_DFL)
            os.kill(os.getpid(), interrupt.number)
            raise
    return _report(arguments, progress, shown.rows, time.monotonic() - begin)


def _report(arguments: argparse.Namespace, progress: "Progress", rows: int, seconds: float) -> int:
    rate = rows / seconds if seconds > 0 else 0.0
    summary = {
        "out": str(arguments.out),
        "rows": progress.rows,
        "predictions": progress.predictions,
        "errors": progress.errors,
        "shards": progress.shards,
        "seconds": round(seconds, 3),
        "rows_per_second": round(rate, 1),
    }
    if arguments.json:
        print(json.dumps(summary))
    else:
        refused = f", {progress.errors} errors in errors-*.jsonl" if progress.errors else ""
        print(
            printable(
                f"{progress.predictions} predictions of {progress.rows} rows in {arguments.out}{refused}; "
                f"{rate:,.0f} rows/s"
            )
        )
    return EXIT_ROWS if progress.errors and not progress.predictions else EXIT_OK


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Raise Interrupted for SIGINT and SIGTERM, so that no partial file is left."""

    def interrupt(number: int, _: FrameType | None) -> None:
        # A terminal, and what stops containers, may send it to each process and once more to all.
        for other in _SIGNALS:
            signal.signal(other, signal.SIG_IGN)
        raise Interrupted(number)

    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
