"""Params where they are: a path as it is, or what a gs:// URL names, copied here while it is read.

Orbax itself reads gs:// through packages that bring TensorFlow or gcsfs along, and nothing but its own
checkpoints. A copy is read as any path is, whatever form it has, and needs Google's client alone.
"""

import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from export.checkpoints import Tree, read_params
from export.errors import CheckpointError
from export.orbax_steps import MARKS
from runtime.errors import nearest
from runtime.localpaths import url_of, why_not_read
from runtime.scratch import temporary_directory
from runtime.storage.gcs import CloudStore
from runtime.storage.object_copy import ObjectCopy
from runtime.storage.store import FetchError
from runtime.storage.uri import CloudFolder, cloud_folder

_STEP = re.compile(r"(?:[A-Za-z][A-Za-z0-9]*[_-])?0*(\d+)")
# What Orbax writes last into a step in a bucket, where nothing can be renamed.
_COMMITTED = "commit_success.txt"


def read(
    path: str | os.PathLike[str], *, allow_pickle: bool = False, progress: Callable[[str], None]
) -> Tree:
    """Read params from a path or a gs:// URL; see `checkpoints.read_params`.

    Of a folder of steps in a bucket the newest one is copied, of anything else all of it.

    Args:
      path: of a file or directory, or gs://BUCKET/OBJECT or gs://BUCKET/FOLDER.
      allow_pickle: read a pickle, which can run any code.
      progress: called with a sentence before what takes long.

    Raises:
      CheckpointError: nothing there, not allowed, damaged, or of no known form.
    """
    url = url_of(path)
    if url is None:
        return read_params(path, allow_pickle=allow_pickle)
    if not url.startswith("gs://"):
        expected = str(why_not_read(path)).replace("on this machine", "on this machine or gs://", 1)
        raise CheckpointError(f"params: {expected}")
    try:
        folder = cloud_folder(url.rstrip("/") if url.strip("/") != "gs:" else url)
    except ValueError as error:
        raise CheckpointError(f"params: {error}") from None
    url = str(folder)
    with temporary_directory("hloserve-params-") as scratch:
        here = scratch / (folder.split()[1] or folder.bucket)
        try:
            _copy(folder, here, url, progress)
        except FetchError as error:
            raise CheckpointError(f"params {error}") from None
        except OSError as error:
            raise CheckpointError(
                f"params {url}: copying it to {tempfile.gettempdir()}: {error.strerror}; set TMPDIR to "
                "where there is enough space"
            ) from None
        try:
            return read_params(here, allow_pickle=allow_pickle)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(here), url)) from error


def expect_there(path: str | os.PathLike[str]) -> None:
    """Refuse at once params that are not there, or are not read from where they are.

    What is in a bucket is only looked for once it is read.

    Raises:
      CheckpointError: says what was expected.
    """
    url = url_of(path)
    if not os.path.lexists(path) if url is None else not url.startswith("gs://"):
        read(path, progress=lambda _: None)


def _copy(folder: CloudFolder, here: Path, url: str, progress: Callable[[str], None]) -> None:
    """Copy an object, or those of a folder, in the generations that were listed."""
    above, name = folder.split()
    store = ObjectCopy(CloudStore(above))
    single = store.find(name) if name else None
    if single is not None:
        wanted = {name: (single, here)}
    else:
        listed = store.below(name)
        if not listed:
            beside = nearest(name, store.names())
            raise CheckpointError(
                f"params {url}: expected a file or folder, got nothing there{beside}"
            )
        wanted = {
            f"{name}/{path}".lstrip("/"): (listed[path], _inside(here, path, url))
            for path in needed(list(listed), progress)
        }
        for path in listed:  # what is left out can still be named
            if "/" in path:
                _inside(here, path.partition("/")[0], url).mkdir(parents=True, exist_ok=True)
    size = sum(stored.bytes for stored, _ in wanted.values())
    progress(f"copying {len(wanted)} files of {url}, {size / 1e6:.1f} MB")
    store.copy(wanted)


def needed(paths: Sequence[str], progress: Callable[[str], None]) -> list[str]:
    """Return those files of a folder that its params are read from: of steps the newest's alone.

    A folder that is no checkpoint may be anything, and large: folders in it are left out.

    A step that Orbax wrote into a bucket itself is whole once it has said so; where one has, those
    that have not are left out. Steps that were copied there do not say it.

    Args:
      paths: below the folder, with slashes.
      progress: called with a sentence where a newer step is left out.
    """
    steps: dict[str, list[str]] = {}
    for path in paths:
        top, *rest = path.split("/")
        if _STEP.fullmatch(top) and (not rest or set(rest[:2]) & set(MARKS)):
            steps.setdefault(top, [])
        elif {top, *rest[:1]} & set(MARKS):
            return list(paths)  # a step itself, whose params may be called like steps
    for path in paths:
        steps.get(path.partition("/")[0], []).append(path)
    # Files beside the steps may describe them; where there are no steps, they are the checkpoint.
    beside = [path for path in paths if "/" not in path and path not in steps]
    committed = {s: files for s, files in steps.items() if f"{s}/{_COMMITTED}" in files}
    if not steps:
        return beside
    newest = max(committed or steps, key=_number)
    unfinished = [step for step in steps if _number(step) > _number(newest)]
    if unfinished:
        progress(f"leaving out {', '.join(unfinished)}, which have no {_COMMITTED} as {newest} has")
    return beside + steps[newest]


def _number(step: str) -> int:
    match = _STEP.fullmatch(step)
    return int(match[1]) if match else -1


def _inside(here: Path, path: str, url: str) -> Path:
    if any(part in ("", ".", "..") for part in path.split("/")) or "\0" in path:
        raise CheckpointError(f"params {url}: expected plain names, got {path!r}")
    return here / path
