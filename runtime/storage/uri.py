"""Parser of bundle names: a path, `file://…` or `gs://…`. It accesses neither disk nor network."""

import dataclasses
import re
import urllib.parse
from pathlib import Path

from runtime.entries import MANIFEST_NAME

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")


@dataclasses.dataclass(frozen=True, slots=True)
class CloudFolder:
    """A folder of a Cloud Storage bucket: objects with a common prefix.

    Attributes:
      bucket: its name.
      prefix: of its objects' names, "" or with a slash at its end, so that models/ab is not
        in models/a.
    """

    bucket: str
    prefix: str

    def __str__(self) -> str:
        """Return it as `gs://…`."""
        return f"gs://{self.bucket}/{self.prefix}".rstrip("/")

    def split(self) -> tuple["CloudFolder", str]:
        """Return the folder above, and the name of this one in it; "" for a bucket itself."""
        above, slash, name = self.prefix.rstrip("/").rpartition("/")
        return CloudFolder(self.bucket, above + slash), name

    def name_of(self, path: str) -> str:
        """Return the object's name of a file of the bundle; manifests have plain paths only."""
        return self.prefix + path


def locate(text: str) -> Path | CloudFolder:
    """Return the place that a name means: a local path, `file://…` or `gs://…`.

    Raises:
      ValueError: it is none of these; names what was expected.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(text)
    if scheme == "gs":
        return cloud_folder(text)
    if scheme == "file":
        return _local_folder(text, rest)
    raise ValueError(f"expected a directory, gs:// or file://, got {text!r}")


def _local_folder(text: str, rest: str) -> Path:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise ValueError(f"expected file:///path on this machine, got {text!r}")
    return Path(slash + urllib.parse.unquote(path))


def cloud_folder(text: str) -> CloudFolder:
    """Return the folder that a `gs://…` URL names.

    Raises:
      ValueError: it names none; says what was expected.
    """
    bucket, _, folder = text.removeprefix("gs://").partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise ValueError(f"expected gs://BUCKET/FOLDER with a bucket's name, got {text!r}")
    folder = folder.removesuffix("/")
    parts = folder.split("/") if folder else []
    if any(part in ("", ".", "..") or not part.isprintable() for part in parts):
        raise ValueError(f"expected gs://BUCKET/FOLDER with plain names, got {text!r}")
    if parts[-1:] == [MANIFEST_NAME]:
        raise ValueError(f"expected the folder that holds {MANIFEST_NAME}, got {text!r}")
    return CloudFolder(bucket, f"{folder}/" if folder else "")
