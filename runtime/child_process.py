"""Command lines of processes of our own, which find our packages whatever else has their names.

In a folder with a `runtime.py` Python takes that for ours, and most processes start in a user's
folder. So ours are imported first, from where they lie, and the folders that the parent looks
into come behind those that any Python has.
"""

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_PREAMBLE = """\
import importlib, sys
root, packages, folders = sys.argv[1:4]
del sys.argv[1:4]
sys.path.insert(0, root)
for package in packages.split():
    importlib.import_module(package)
del sys.path[0]
sys.path += [folder for folder in folders.split("\\n") if folder not in sys.path]
"""


def python_command(code: str, *packages: str, python: str = "") -> list[str]:
    """Return a command line that runs code in a Python of its own; arguments are added behind it.

    Args:
      code: runs with the parent's arguments in `sys.argv[1:]`.
      packages: of this project that it imports, beside the runtime.
      python: the interpreter of another environment, which has its own packages; this one by default.
    """
    folders = "" if python else "\n".join(sys.path)
    found = [str(_ROOT), " ".join(("runtime", *packages)), folders]
    return [python or sys.executable, "-P", "-c", _PREAMBLE + code, *found]


def module_command(module: str) -> list[str]:
    """Return a command line that runs a module of this project as `python -m` does.

    Args:
      module: such as `server.worker`.
    """
    run = f"import runpy; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    return python_command(run, module.partition(".")[0])
