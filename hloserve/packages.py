"""The packages beside this one, whatever a user's folder has of the same names.

Python looks first into the folder of the script that runs, or where `python -m` is started: an
`export.py`, `runtime.py` or `server.py` there would be taken for ours.
"""

import importlib.util
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

NAMES = ("export", "runtime", "server")
_ROOT = Path(__file__).resolve().parents[1]


def expect_own() -> None:
    """Expect our packages where a program of the user's own would find others first.

    What is imported by `import_own` is ours in any case. But a script, or an interpreter, that has
    a `server.py` beside it would mean one by `import server` and get the other. A program from
    elsewhere, such as gunicorn or pytest, does not import by these names.

    Raises:
      ImportError: names the file in the way.
    """
    program = getattr(sys.modules.get("__main__"), "__file__", None)
    for name in NAMES:
        spec = importlib.util.find_spec(name)
        beside = program and spec and spec.origin and _folder(spec.origin) == _folder(program)
        if beside or not program:
            _expect(name, spec)


def import_own(*names: str) -> None:
    """Import packages from beside this one, whatever else Python would find first.

    Raises:
      ImportError: another module of such a name was imported before; names its file.
    """
    for name in names:
        if name in sys.modules:
            _expect(name, getattr(sys.modules[name], "__spec__", None))
            continue
        spec = PathFinder.find_spec(name, [str(_ROOT)])
        if spec is None or spec.loader is None:
            raise ModuleNotFoundError(f"No module named {name!r} in {_ROOT}", name=name)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise


def _folder(file: str) -> Path:
    """Return the folder that Python looks into to find a module or package."""
    path = Path(file).resolve()
    return path.parents[1] if path.name == "__init__.py" else path.parent


def _expect(name: str, spec: ModuleSpec | None) -> None:
    ours = _ROOT / name / "__init__.py"
    found = spec and spec.origin
    if not found or Path(found).resolve() != ours:
        advice = "; rename that file, which Python finds first" if found else ""
        raise ImportError(
            f"package {name!r}: expected hloserve's own, {ours}, got {found or 'none'}{advice}",
            name=name,
            path=found or None,
        )
