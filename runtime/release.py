"""Which release of this project runs: written in pyproject.toml alone."""

import importlib.metadata
import tomllib
from pathlib import Path

NAME = "hloserve"
_PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def version() -> str:
    """Return the version of the code that runs, such as `0.1.0`.

    A checkout's own pyproject.toml comes first: what is installed beside it may be another release.
    """
    try:
        project = tomllib.loads(_PROJECT.read_text("utf-8"))["project"]
        if project["name"] == NAME:
            return str(project["version"])
    except (OSError, ValueError, LookupError, TypeError):  # no checkout, or another project's
        pass
    try:
        return importlib.metadata.version(NAME)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def name_and_version() -> str:
    """Return what `--version` prints, such as `hloserve 0.1.0`."""
    return f"{NAME} {version()}"
