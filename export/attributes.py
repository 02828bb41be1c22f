"""MODEL of the command line: a module or a Python file, and an attribute of it."""

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

from export.errors import ExportError, UsageError, format_error
from runtime.errors import nearest
from runtime.localpaths import why_not_read

# Names of a module that a message lists.
_MAX_NAMES = 12


def find_attribute(text: str) -> Any:
    """Import `pkg.mod:attr` or `path/to/file.py:attr`.

    Raises:
      ExportError: there is no such module, file or attribute; names the nearest one.
    """
    if reason := why_not_read(text):
        raise UsageError(f"model: {reason}")
    if (Path(text) / "saved_model.pb").is_file():
        raise UsageError(
            f"model {text!r}: expected a model of JAX, got a SavedModel, a graph of TensorFlow; export "
            "what it was saved from, of Keras the .keras file or the Python that builds the model"
        )
    where, _, attribute = text.rpartition(":")
    if not where or not attribute:
        raise UsageError(
            f"model {text!r}: expected pkg.mod:attr, path/to/file.py:attr or path/to/model.keras"
        )
    try:
        module = (
            _import_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
        )
    except ExportError:
        raise
    except (Exception, SystemExit) as error:
        raise ExportError(
            f"model {text!r}: {where} cannot be imported: {format_error(error)}"
        ) from error
    here: Any = module
    for word in attribute.split("."):
        if not hasattr(here, word):
            names = [n for n in getattr(here, "__dict__", ()) if not n.startswith("_")]
            raise ExportError(
                f"model {text!r}: expected an attribute of {where}, got {word!r}"
                f"{nearest(word, names) or _own_names(here)}"
            )
        here = getattr(here, word)
    return here


def _own_names(module: Any) -> str:
    """List what a module itself defines that can be called or is no mere import, as far as it fits."""
    own = [
        name
        for name, value in getattr(module, "__dict__", {}).items()
        if not name.startswith("_") and not inspect.ismodule(value)
        # Instances have the module of their class, or none: they were made here.
        if not (inspect.isclass(value) or inspect.isroutine(value))
        or value.__module__ == module.__name__
    ]
    more = f" and {len(own) - _MAX_NAMES} more" if len(own) > _MAX_NAMES else ""
    return f"; it has {', '.join(own[:_MAX_NAMES])}{more}" if own else "; it has nothing of its own"


def _import_file(path: Path) -> Any:
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        got = "a directory" if path.is_dir() else f"nothing there{nearest(path.name, beside)}"
        raise ExportError(f"model file {path}: expected a Python file, got {got}")
    sys.path.insert(0, str(path.resolve().parent))
    # Where a module of that name is in use, such as ours, it stays, and this gets another name.
    name = f"model_file_{path.stem}" if path.stem in sys.modules else path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ExportError(f"model file {path}: cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
