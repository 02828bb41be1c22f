"""Open an altered bundle the way a server does: in a child first, and then for good.

Each process here is forked off one that has imported JAX and not touched a device yet, so that
a bundle takes a part of a second and not two; but for that it is what `runtime.probe` does.
"""

import contextlib
import os
import pickle
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from runtime.bundle import open_bundle
from runtime.compare import compare
from runtime.errors import BundleError, ExecutionError
from runtime.golden_check import check_goldens
from runtime.loading import load
from runtime.manifest import Manifest
from runtime.model import Model
from runtime.probed import run_each

REFUSED, SAME, OTHER = "refused", "same answers", "other answers"
_STATUS = {SAME: 0, REFUSED: 3, OTHER: 4}
_TIMEOUT_S = 60


class Opener:
    """Opens alterations of one bundle.

    Args:
      original: the bundle; it is loaded once, for its answers to inputs that are no golden.
    """

    def __init__(self, original: Path) -> None:
        self._manifest = open_bundle(original).manifest
        with tempfile.TemporaryFile() as answers:
            status = _in_a_fork(lambda: _keep(answers, _answers(load(original, "cpu"))))
            if status != SAME:
                raise RuntimeError(f"{original}: {status}")
            answers.seek(0)
            self._expected = pickle.load(answers)  # noqa: S301 (our own child wrote it)

    def open(self, altered: Path) -> str:
        """Open a bundle that may be anything.

        Returns:
          What became of it: refused, same answers or other answers than the original's; or
          what ended the child ("child: SIGSEGV") or, which must never be, the server
          ("server: …").
        """
        for who, task in (("child", _probe), ("server", self._serve)):
            outcome = _in_a_fork(lambda task=task: task(altered))
            if outcome not in _STATUS:
                return f"{who}: {outcome}"
            if outcome == REFUSED:
                break
        return outcome

    def _serve(self, altered: Path) -> str:
        model = load(open_bundle(altered), "cpu")
        if not all(check.ok for check in check_goldens(model)[0]):
            return REFUSED
        manifest = model.manifest
        same = (manifest.signature, manifest.output_format) == (
            self._manifest.signature,
            self._manifest.output_format,
        )
        return SAME if same and self._alike(_answers(model)) else OTHER

    def _alike(self, got: list[dict[str, Any]]) -> bool:
        tolerances = self._manifest.tolerances["cpu"]
        return all(
            compare(answer[name], values, tolerance=tolerances[name]).ok
            for answer, expected in zip(got, self._expected, strict=True)
            for name, values in expected.items()
        )


def _probe(altered: Path) -> str:
    # What Python can catch is for the server to meet, as it is behind `runtime.probed`.
    with contextlib.suppress(Exception):
        run_each(open_bundle(altered), "cpu")
    return SAME


def _answers(model: Model) -> list[dict[str, Any]]:
    """Answer rows that are no golden."""
    return [model.predict(_rows(model.manifest, rows)) for rows in (1, 3, 8)]


def _rows(manifest: Manifest, rows: int) -> dict[str, Any]:
    rng = np.random.default_rng(rows)
    inputs = {}
    for spec in manifest.signature.inputs:
        shape = spec.concrete(rows, {a.name: a.sizes[-1] for a in manifest.signature.axes})
        if "float" in spec.dtype:
            inputs[spec.name] = rng.normal(size=shape).astype(spec.dtype)
        else:
            low, high = spec.minimum or 0, 1 if spec.maximum is None else spec.maximum
            inputs[spec.name] = rng.integers(low, high + 1, shape).astype(spec.dtype)
    return inputs


def _keep(file: BinaryIO, value: object) -> str:
    pickle.dump(value, file)
    file.flush()
    return SAME


def _in_a_fork(task: Callable[[], str]) -> str:
    """Run a task in a fork; return its result, or what ended the fork."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _be_quiet()
            signal.alarm(_TIMEOUT_S)
            status = _STATUS[task()]
        except (BundleError, ExecutionError):
            status = _STATUS[REFUSED]
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return signal.Signals(-code).name
    return next((name for name, known in _STATUS.items() if known == code), f"exit status {code}")


def _be_quiet() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
