"""Params where they are: a path as it is, or what a gs:// URL names, copied here while it is read.

Orbax itself reads gs:// through packages that bring TensorFlow or gcsfs along, and nothing but its own
checkpoints. A copy is read as any path is, whatever form it has, and needs Google's client alone.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from export.checkpoints import Tree, read_params
from export.errors import CheckpointError, first_line
from export.orbax_steps import MARKS
from runtime.errors import nearest
from runtime.localpaths import url_of, why_not_read
from runtime.scratch import temporary_directory

# Longest waits for a connection and for the next bytes, and for all tries at an object, in seconds.
_TIMEOUT = (10, 60)
_PATIENCE = 120
# Files that are copied at once.
_AT_ONCE = 8
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
    match = re.fullmatch(r"gs://(?P<bucket>[^/]+)/?(?P<name>.*?)/*", url)
    if match is None:
        raise CheckpointError(f"params {url}: expected gs://BUCKET/FOLDER, got no bucket")
    name, url = match["name"], url.rstrip("/")
    with temporary_directory("hloserve-params-") as scratch:
        here = scratch / (PurePosixPath(name).name or match["bucket"])
        with _explained(url):
            _copy(_client().bucket(match["bucket"]), name, here, url, progress)
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


def _client() -> Any:
    from google.cloud import storage

    return storage.Client(project=None)


def _copy(bucket: Any, name: str, here: Path, url: str, progress: Callable[[str], None]) -> None:
    """Copy an object, or those of a folder, in the generations that were listed."""
    single = bucket.get_blob(name, timeout=_TIMEOUT, retry=_retry()) if name else None
    if single is not None:
        blobs, places = [single], [here]
    else:
        prefix = f"{name}/" if name else ""
        listed = {
            blob.name.removeprefix(prefix): blob
            for blob in bucket.list_blobs(prefix=prefix, timeout=_TIMEOUT, retry=_retry())
            if not blob.name.endswith("/")  # stands for a folder
        }
        if not listed:
            raise CheckpointError(
                f"params {url}: expected a file or folder, got nothing there{_beside(bucket, name)}"
            )
        wanted = needed(list(listed), progress)
        blobs, places = [listed[path] for path in wanted], [_inside(here, p, url) for p in wanted]
        for path in listed:  # what is left out can still be named
            if "/" in path:
                _inside(here, path.partition("/")[0], url).mkdir(parents=True, exist_ok=True)
    size = sum(blob.size or 0 for blob in blobs)
    progress(f"copying {len(blobs)} files of {url}, {size / 1e6:.1f} MB")
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
    from google.cloud.storage import transfer_manager

    transfer_manager.download_many(
        [(blob, str(place)) for blob, place in zip(blobs, places, strict=True)],
        download_kwargs={"timeout": _TIMEOUT, "retry": _retry()},
        max_workers=_AT_ONCE,
        worker_type=transfer_manager.THREAD,
        raise_exception=True,
    )


def _retry() -> Any:
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(_PATIENCE)


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
    # What lies beside the steps may tell what they are; without any it is what there is.
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


def _beside(bucket: Any, name: str) -> str:
    """Name what there is beside something absent."""
    above = f"{name.rpartition('/')[0]}/".lstrip("/")
    pages = bucket.list_blobs(
        prefix=above, delimiter="/", max_results=1000, timeout=_TIMEOUT, retry=_retry()
    )
    names = [blob.name for blob in pages] + list(pages.prefixes)
    return nearest(name.rpartition("/")[2], [n.removeprefix(above).rstrip("/") for n in names])


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn what Google's client raises into one line."""
    try:
        from google.api_core.exceptions import GoogleAPICallError, RetryError
        from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
        from google.cloud import storage  # noqa: F401 (only here to be missed)
        from requests.exceptions import RequestException
    except ImportError:
        raise CheckpointError(
            f"params {url}: needs google-cloud-storage, which is not installed; "
            "pip install 'hloserve[gcs]'"
        ) from None
    try:
        yield
    except DefaultCredentialsError:
        raise CheckpointError(
            f"params {url}: expected credentials, got none; run gcloud auth application-default login"
        ) from None
    except GoogleAuthError as error:
        raise CheckpointError(
            f"params {url}: credentials were refused: {first_line(error)}; run gcloud auth "
            "application-default login"
        ) from None
    except GoogleAPICallError as error:
        code = int(error.code or 0)
        hint = {
            401: "; run gcloud auth application-default login",
            403: "; it takes the role Storage Object Viewer on the bucket",
            404: "; is the name of the bucket right, and nothing being written there?",
        }.get(code, "")
        raise CheckpointError(f"params {url}: {code} {_reason(error)}{hint}") from None
    except (RetryError, RequestException, ConnectionError, TimeoutError) as error:
        cause = getattr(error, "cause", None) or error
        raise CheckpointError(
            f"params {url}: expected an answer of Cloud Storage, got {type(cause).__name__}; is the "
            "network there?"
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"params {url}: copying it to {tempfile.gettempdir()}: {error.strerror}; set TMPDIR to "
            "where there is room"
        ) from None


def _reason(error: Any) -> str:
    """Return what the service said, without the request that it repeats."""
    said = first_line(Exception(error.message))
    return said.partition(": ")[2] or said
