"""A run from inputs to a complete folder: the stages side by side, shard by shard."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import numpy as np

from runtime.batch_prediction.fields import MISSING, Fields
from runtime.batch_prediction.ledger import Ledger, Progress
from runtime.batch_prediction.output import Output
from runtime.batch_prediction.pipeline import ahead, mapped
from runtime.batch_prediction.prediction import AnsweredWindow, Predictor, ReadyWindow
from runtime.batch_prediction.reading import Limits, read_windows, window_limits
from runtime.batch_prediction.sources import Opener, Source
from runtime.batch_prediction.writers import Shard, Written, expect_writable, open_shard
from runtime.device import cpu_model, device_kind
from runtime.entries import OutputFormat
from runtime.model import Model
from runtime.preprocessing.tokenizer import library_version
from runtime.program import cpu_threads, environment
from runtime.release import version
from runtime.startup import Started

# A shard is so many full windows: what is lost at most when a run is killed.
_SHARD_WINDOWS = 16
_MAX_WORKERS = 4
# google.rpc.Code.INVALID_ARGUMENT, as Vertex AI's error files have it.
_INVALID_ARGUMENT = 3


# Of what is written for each row.
_RESERVED = ("key", "row", "instance", "prediction")


class FieldsError(Exception):
    """Fields that are named as no inputs cannot be that."""


class TooManyErrors(Exception):
    """More rows were refused than the user allows."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the bytes of a run follow from, beside the bundle and the inputs.

    Attributes:
      format: of the predictions; see `writers.FORMATS`.
      key: the name of the field that names a row; None for `key`, which a row need not have.
      passed: names of fields that are written beside predictions.
      raw: whether outputs are written as they are, whatever the bundle says of labels.
      limit: of rows; None for all.
    """

    format: str = "jsonl"
    key: str | None = None
    passed: tuple[str, ...] = ()
    raw: bool = False
    limit: int | None = None


class Job:
    """Answers all rows of some inputs.

    Args:
      started: a model that passed its check here.
      sources: the inputs.
      options: of the run.

    Raises:
      UnwritableError: the format has no way to write the outputs.
      FieldsError: a field that is named as no input is one.
    """

    def __init__(self, started: Started, sources: Sequence[Source], options: Options) -> None:
        self._model: Model = started.model
        self._started = started
        self._sources = sources
        self._options = options
        manifest = self._model.manifest
        inputs = {spec.name for spec in manifest.signature.inputs}
        inputs |= {name for stage in manifest.preprocess for name in stage.raw_names}
        _expect_no_inputs(options, inputs)
        key = options.key or ("_key" if "key" in inputs else "key")
        passed = tuple(dict.fromkeys((*options.passed, *manifest.passthrough)))
        self._fields = Fields(
            key, options.key is not None, tuple(name for name in passed if name != key)
        )
        self._written = Written(
            self._model.signature,
            OutputFormat() if options.raw else manifest.output_format,
            key,
            [name for name in self._fields.passed if name not in _RESERVED],
        )
        self._limits: Limits = window_limits(self._model)
        self._alone = bool(manifest.row_mixing or started.mixing)
        expect_writable(options.format, self._model.signature, self._written.form)

    def run(
        self,
        output: Output,
        scratch: Path,
        *,
        overwrite: bool = False,
        max_errors: int | None = None,
        on_begin: Callable[[bool, Progress], object] = lambda *_: None,
        on_window: Callable[[int, int, float | None], object] = lambda *_: None,
        warn: Callable[[str], object] = lambda _: None,
    ) -> Progress:
        """Answer all rows, from where an earlier run stopped.

        Args:
          output: the folder.
          scratch: a local directory for copies of objects.
          overwrite: whether what an earlier run left is removed.
          max_errors: rows that may be refused; None for any number.
          on_begin: called with whether the run goes on, and how far it is.
          on_window: called with the rows and errors so far, and the part of the inputs that is done.
          warn: called with sentences about columns that are not read.

        Returns:
          What was written.

        Raises:
          OutputError: the folder has something else, or another run writes it.
          TooManyErrors: rows beyond `max_errors` were refused; what is complete stays.
          ExecutionError: the device failed.
          OSError: a file cannot be written.
        """
        ledger = Ledger(output, self.describe(), {"startup_check": self._check()})
        stdin = any(source.place is None for source in self._sources)
        resumed = ledger.begin(overwrite=overwrite, resumable=not stdin)
        on_begin(resumed, ledger.progress)
        shards = _Shards(output, self._written, self._options.format, ledger)
        opener = Opener(self._model, self._fields, scratch, warn)
        predictor = Predictor(self._model, self._fields, alone=self._alone)
        with contextlib.closing(self._answered(predictor, opener, ledger.progress)) as windows:
            try:
                for answered in windows:
                    shards.add(answered)
                    shards.expect_errors(max_errors)
                    on_window(shards.rows, shards.errors, answered.window.done)
                    if shards.rows_in_shard >= _SHARD_WINDOWS * self._limits.rows:
                        shards.commit(complete=False)
                shards.commit(complete=True)
            except BaseException as error:
                shards.abandon()
                if isinstance(error, Exception):  # of a signal the process ends at once
                    predictor.stop()
                raise
        return ledger.progress

    def _answered(
        self, predictor: Predictor, opener: Opener, progress: Progress
    ) -> Generator[AnsweredWindow]:
        """Yield answered windows: reading, checking and running are each on threads of their own."""
        workers = max(1, min(_MAX_WORKERS, (os.cpu_count() or 1) - 1))
        read = ahead(
            read_windows(
                self._sources, opener, progress.position, self._limits, self._options.limit
            ),
            "read",
        )
        ready: Generator[ReadyWindow] = ahead(mapped(predictor.prepare, read, workers), "prepare")
        return ahead(map(predictor.answer, ready), "device")

    def describe(self) -> dict[str, Any]:
        """Return what the run is, as JSON values: all that its bytes follow from."""
        model, manifest = self._model, self._model.manifest
        options = {
            **dataclasses.asdict(self._options),
            "window": self._limits._asdict(),
            "rows_alone": self._alone,
        }
        return {
            "bundle": {
                "name": manifest.name,
                "version": manifest.version,
                "digest": f"sha256:{model.bundle.digest}",
            },
            "options": options,
            "inputs": [source.identity() for source in self._sources],
            "device": {
                "kind": device_kind(model.device),
                # XLA compiles for a CPU's instructions, and for a number of threads.
                "cpu": cpu_model() if model.platform == "cpu" else "",
                "threads": cpu_threads() if model.platform == "cpu" else 0,
            },
            "versions": {
                "hloserve": version(),
                "numpy": np.__version__,
                "tokenizers": library_version() if manifest.preprocess else "",
                **{name: str(value) for name, value in environment(model.device).items()},
            },
        }

    def _check(self) -> dict[str, Any]:
        """Return what the startup check found, as JSON values."""
        return {
            "check": "full" if self._started.full else "startup",
            "ok": not self._started.failed,
            "checked": list(self._started.groups),
            "row_mixing": list(self._started.mixing),
        }


def _expect_no_inputs(options: Options, inputs: AbstractSet[str]) -> None:
    """Raise FieldsError for a field that is an input, or whose name has a meaning in predictions."""
    named = [("--key", options.key), *(("--pass", name) for name in options.passed)]
    for flag, name in named:
        if name in inputs:
            raise FieldsError(f"{flag} {name}: expected a field that is no input, got an input")
        if flag == "--pass" and name in _RESERVED:
            raise FieldsError(
                f"{flag} {name}: expected another name than {', '.join(_RESERVED)}, got {name!r}"
            )


class _Shards:
    """Writes answered windows into shards, and errors beside them.

    Attributes:
      rows: of all shards, and of the one that is being written.
      errors: likewise.
      rows_in_shard: rows of the latter.
      last_error: the message of the last error.
    """

    def __init__(self, output: Output, written: Written, format_: str, ledger: Ledger) -> None:
        self._output = output
        self._written = written
        self._format = format_
        self._ledger = ledger
        self._shard: Shard | None = None
        self._errors: list[dict[str, Any]] = []
        self._predictions = ledger.progress.predictions
        self._position = ledger.progress.position
        self.rows = ledger.progress.rows
        self.errors = ledger.progress.errors
        self.rows_in_shard = 0
        self.last_error = ""

    def add(self, answered: AnsweredWindow) -> None:
        """Write a window."""
        self._open().add(answered)
        window = answered.window
        found = _errors(answered, self._written.key)
        self._errors += found
        self.errors += len(found)
        if found:
            self.last_error = found[-1]["error"]["message"]
        rows = sum(block.count for block in window.blocks)
        self.rows += rows
        self.rows_in_shard += rows
        self._predictions += len(window.good)
        self._position = window.end

    def expect_errors(self, limit: int | None) -> None:
        """Raise TooManyErrors for more errors than a limit; None for none."""
        if limit is not None and self.errors > limit:
            raise TooManyErrors(
                f"rows: expected at most {limit} that are refused, got {self.errors}; the last: "
                f"{self.last_error}"
            )

    def commit(self, *, complete: bool) -> None:
        """Put the shard into the folder, where there is one, and record it."""
        progress = self._ledger.progress
        number = progress.shards
        if self._shard is not None or not number:
            self._open().finish()
            if self._errors:
                lines = [json.dumps(error, ensure_ascii=False) for error in self._errors]
                data = "".join(f"{line}\n" for line in lines)
                self._output.write(f"errors-{number:05}.jsonl", data.encode("utf-8", "replace"))
            self._output.commit(self._name(number))
            self._shard = None
            number += 1
        self._ledger.record(
            Progress(number, self.rows, self._predictions, self.errors, self._position, complete)
        )
        self._errors, self.rows_in_shard = [], 0

    def abandon(self) -> None:
        """Remove the shard that is not complete."""
        if self._shard is not None:
            self._shard.abandon()
            self._output.partial(self._name(self._ledger.progress.shards)).unlink(missing_ok=True)

    def _open(self) -> Shard:
        if self._shard is None:
            path = self._output.partial(self._name(self._ledger.progress.shards))
            self._shard = open_shard(path, self._format, self._written)
        return self._shard

    def _name(self, number: int) -> str:
        return f"predictions-{number:05}.{self._format}"


def _errors(answered: AnsweredWindow, key: str) -> list[dict[str, Any]]:
    """Return what is written of the rows of a window that were refused, and of files."""
    found: list[dict[str, Any]] = []
    start = answered.window.first
    for block in answered.window.blocks:
        if block.misfit:
            found.append({"file": block.file, "error": _error(block.misfit)})
        keys = block.fields.get(key)
        for place, why in block.rows.refused.items():
            entry: dict[str, Any] = {"row": start + place}
            if keys is not None and keys[place] is not MISSING and keys[place] is not None:
                value = keys[place]
                entry["key"] = value.item() if isinstance(value, np.generic) else value
            entry |= {
                "file": block.file,
                "line" if block.lines else "file_row": block.places[place],
            }
            found.append({**entry, "error": _error(why)})
        start += block.count
    return found


def _error(message: str) -> Mapping[str, Any]:
    return {"code": _INVALID_ARGUMENT, "message": message[:1000]}
