"""Where a bundle comes from: what `--bundle` and AIP_STORAGE_URI may say.

Nothing is looked at here; names are held against what can be meant.
"""

import dataclasses
import re
import urllib.parse
from pathlib import Path

from runtime.entries import MANIFEST_NAME

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")


@dataclasses.dataclass(frozen=True, slots=True)
class CloudFolder:
    """A folder of a Cloud Storage bucket. Objects have names, folders are but a way to read them.

    Attributes:
      bucket: its name.
      prefix: what names of its objects begin with, "" or with a slash at its end: so
        that models/a is not taken for a part of models/ab.
    """

    bucket: str
    prefix: str

    def __str__(self) -> str:
        """Write it as `gs://…`."""
        return f"gs://{self.bucket}/{self.prefix}".rstrip("/")

    def name_of(self, path: str) -> str:
        """Name the object of a file of the bundle; the manifest allows plain paths only."""
        return self.prefix + path


def locate(text: str) -> Path | CloudFolder:
    """Read the name of a bundle: a local path, `file://…` or `gs://…`.

    Raises:
      ValueError: it can mean neither; says what was expected.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(text)
    if scheme == "gs":
        return _cloud_folder(text, rest)
    if scheme == "file":
        return _local_folder(text, rest)
    raise ValueError(f"expected a directory, gs:// or file://, got {text!r}")


def _local_folder(text: str, rest: str) -> Path:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise ValueError(f"expected file:///path on this machine, got {text!r}")
    return Path(slash + urllib.parse.unquote(path))


def _cloud_folder(text: str, rest: str) -> CloudFolder:
    bucket, _, folder = rest.partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise ValueError(f"expected gs://BUCKET/FOLDER with a bucket's name, got {text!r}")
    folder = folder.removesuffix("/")
    parts = folder.split("/") if folder else []
    if any(part in ("", ".", "..") or not part.isprintable() for part in parts):
        raise ValueError(f"expected gs://BUCKET/FOLDER with plain names, got {text!r}")
    if parts[-1:] == [MANIFEST_NAME]:
        raise ValueError(f"expected the folder that holds {MANIFEST_NAME}, got {text!r}")
    return CloudFolder(bucket, f"{folder}/" if folder else "")
