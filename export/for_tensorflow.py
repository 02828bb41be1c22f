"""The same model for TensorFlow: a SavedModel made, tried and put in place.

1. `symbolic.lower_symbolic`  the model becomes functions of any batch; where it does not allow
                              that, or TensorFlow does not run it, there is one for each bucket
2. `savedmodel.build`         a process with TensorFlow makes the SavedModel
3. `savedmodel.check`         a fresh one loads it, and runs every golden
4. `Writer.committed`         one rename puts it in place, for good once the bundle is there too

TensorFlow is never imported here: it would take the GPU that JAX works on.
"""

import contextlib
import importlib.metadata
import importlib.util
import itertools
import json
import keyword
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import jax

from export.errors import ExportError, UsageError, VerificationError
from export.plan import Plan
from export.report import SavedModelReport
from export.spec import ExportSpec
from export.symbolic import Function, lower_fixed, lower_symbolic
from export.verification import few
from runtime.child_process import python_command
from runtime.guard import signal_name
from runtime.signature import TensorSpec
from runtime.writer import DirectoryWriter

Tell = Callable[[str], None]

_NEEDED = ("tensorflow", "tensorflow_serving")
_INSTALL = "pip install 'hloserve[savedmodel]'"
_VERSION = r"(0|[1-9][0-9]{0,4})(\.(0|[1-9][0-9]{0,4})){2}"
# TensorFlow imports Keras where it finds it: nothing here needs it, and it takes seconds.
# Expendable: a process that writes where the staging was must not outlive the export.
_CHILD = (
    "import sys; sys.modules['keras'] = None; "
    "from runtime.guard import mark_expendable; mark_expendable(); "
    "from export.savedmodel import main; sys.exit(main(*sys.argv[1:]))"
)
# Nothing here needs what TensorFlow says on stderr while it starts.
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}


class Writer(DirectoryWriter):
    """Writes a SavedModel, whole or not at all."""

    kind = "SavedModel"
    marker = "saved_model.pb"


@contextlib.contextmanager
def target(
    savedmodel: str | os.PathLike[str] | None, bundle: Path, *, overwrite: bool
) -> Iterator[Writer | None]:
    """Open a place for a SavedModel, None if none is wanted.

    Raises:
      ExportError: TensorFlow is not installed, or the place is the bundle's.
      BundleError: something is there that is not to be replaced.
    """
    if savedmodel is None:
        yield None
        return
    for package in _NEEDED:
        if importlib.util.find_spec(package) is None:
            raise ExportError(f"savedmodel: needs {package}, which is not installed; {_INSTALL}")
    ours, theirs = Path(os.path.realpath(savedmodel)), Path(os.path.realpath(bundle))
    if ours.is_relative_to(theirs) or theirs.is_relative_to(ours):
        raise ExportError(f"savedmodel: expected a directory apart from the bundle, got {ours}")
    with Writer(Path(savedmodel), overwrite=overwrite) as writer:
        yield writer


def check(spec: ExportSpec, savedmodel: object, version: str | None) -> None:
    """Raise ExportError for what is known to be wrong before any work is done."""
    if version is not None and not re.fullmatch(_VERSION, str(version)):
        raise UsageError(f"tf_stablehlo: expected a version such as 1.13.7, got {version!r}")
    if version is not None and savedmodel is None:
        raise UsageError("tf_stablehlo: expected a savedmodel with it, got none")
    if savedmodel is not None:
        _check_names([i.name for i in cast("Sequence[TensorSpec]", spec.inputs)])


def _check_names(names: Sequence[str]) -> None:
    """Refuse names of inputs that TensorFlow would change, or cannot call a function with."""
    for name in names:
        if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name):
            raise ExportError(
                f"input {name!r}: expected a letter, then letters, digits and _ for a SavedModel: "
                "TensorFlow changes other names"
            )
        if keyword.iskeyword(name) or name == "self":
            raise ExportError(
                f"input {name!r}: expected a name that is no word of Python's for a SavedModel: "
                "TensorFlow calls functions with it"
            )
    for one, other in itertools.combinations(names, 2):
        if one.lower() == other.lower():
            raise ExportError(
                f"inputs {one!r} and {other!r}: expected names that differ in more than case for "
                "a SavedModel: TensorFlow changes one of them"
            )


def make(
    writer: Writer, bundle: Path, plan: Plan, wanted: str | None, progress: Tell
) -> tuple[SavedModelReport, list[str]]:
    """Make a SavedModel in TensorFlow and run every golden of the bundle in it.

    Sizes are symbolic as far as the model lowers with them and TensorFlow runs that.

    Args:
      writer: where to write.
      bundle: the written bundle: params, goldens, tolerances.
      plan: what was exported.
      wanted: the version of StableHLO to write, for a TensorFlow that is elsewhere.
      progress: called with a sentence before each slow step.

    Returns:
      What was made, and what was decided on the user's behalf, a sentence each.

    Raises:
      ExportError: TensorFlow cannot take the model.
      VerificationError: it does not answer as the model does.
    """
    functions, notes = lower_symbolic(plan, progress)
    if functions:
        try:
            return _make(writer, bundle, plan, functions, wanted, progress), notes
        except VerificationError as error:
            notes.append(f"the SavedModel has fixed sizes, since with symbolic ones {error}")
    try:
        return _make(writer, bundle, plan, lower_fixed(plan, progress), wanted, progress), notes
    except VerificationError as error:
        raise VerificationError(
            f"{error}; use other operations for inference, or leave out --savedmodel"
        ) from None


def _make(
    writer: Writer,
    bundle: Path,
    plan: Plan,
    functions: Sequence[Function],
    wanted: str | None,
    progress: Tell,
) -> SavedModelReport:
    with tempfile.TemporaryDirectory() as scratch:
        recipe = Path(scratch) / "recipe.json"
        recipe.write_text(json.dumps(_recipe(Path(scratch), writer, bundle, functions, wanted)))
        progress("making the SavedModel in TensorFlow")
        made = _tensorflow("build", recipe)
        platforms = [p for p in plan.spec.platforms if p in made["platforms"]]
        if not platforms and not plan.spec.unverified:
            raise ExportError(
                f"savedmodel: expected a platform that TensorFlow has here, to verify it on, got "
                f"{', '.join(plan.spec.platforms)} and a TensorFlow with "
                f"{', '.join(made['platforms'])}; add cpu, or pass --unverified"
            )
        errors = []
        for platform in platforms:
            progress(f"verifying the SavedModel on {platform}, in a fresh process")
            found = _tensorflow("check", recipe, platform)
            if found["mismatches"]:
                raise VerificationError(
                    "the SavedModel does not answer as the model does, in TensorFlow "
                    f"{made['tensorflow']} on {platform}: {few(found['mismatches'])}"
                )
            errors.append(found["max_error"])
    del made["platforms"]
    return SavedModelReport(
        path=str(writer.target),
        **made,
        written_as=functions[0].stablehlo,
        verified=tuple(platforms),
        max_error=max(errors, default=None),
    )


def _recipe(
    scratch: Path,
    writer: Writer,
    bundle: Path,
    functions: Sequence[Function],
    wanted: str | None,
) -> dict[str, Any]:
    """Write down, for the processes with TensorFlow, what is to be made."""
    entries = []
    for function in functions:
        file = scratch / f"{function.name}.exported"
        file.write_bytes(function.exported)
        entry = {"name": function.name, "sizes": function.sizes, "params": function.params}
        entries.append({**entry, "file": str(file)})
    return {
        "bundle": str(bundle),
        "out": str(writer.path),
        "target": str(writer.target),
        "written_as": functions[0].stablehlo,
        "wanted": wanted,
        "jax": jax.__version__,
        "functions": entries,
    }


def _tensorflow(*arguments: str | Path) -> dict[str, Any]:
    """Run a step in a process of its own that has TensorFlow.

    Raises:
      ExportError: TensorFlow cannot take the programs, or cannot be used.
      VerificationError: it cannot run them, or the process is killed by a signal.
      OSError: the SavedModel cannot be written.
    """
    command = [*python_command(_CHILD, "export"), *map(str, arguments)]
    environ = {**os.environ, **_QUIET}
    with subprocess.Popen(  # noqa: S603
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, errors="replace"
    ) as child:
        try:
            out, err = child.communicate()
        except BaseException:
            child.kill()
            child.wait()  # or it could still write where the staging is being removed
            raise
    last = (err.strip().splitlines() or [f"exit status {child.returncode}"])[-1].strip()
    if child.returncode < 0:
        name = signal_name(-child.returncode)
        said = f", {last}" if err.strip() else ""
        raise VerificationError(
            f"the model ends the process that runs it in TensorFlow: {name}{said}"
        )
    try:
        answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    except (ValueError, IndexError):
        raise ExportError(
            f"savedmodel: {_installed()} cannot be used: {last}; is it what {_INSTALL} brings?"
        ) from None
    return _answer(answer)


def _installed() -> str:
    """Name the package that TensorFlow comes from, and its version."""
    names = importlib.metadata.packages_distributions().get("tensorflow", [])
    return f"{names[0]} {importlib.metadata.version(names[0])}" if names else "TensorFlow"


def _answer(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer that is no refusal; raise those."""
    if "refused" in answer:
        raise ExportError(answer["refused"])
    if "failed" in answer:
        raise VerificationError(answer["failed"])
    if "unwritten" in answer:
        raise OSError(*answer["unwritten"])
    return answer
