"""Whether a path is one on this machine, or a URL that pathlib would take for one.

What begins with a scheme of two or more letters and `:/` is a URL: `gs://bucket/x`, and `gs:/bucket/x`,
which is what `pathlib.Path` makes of it. So is a well-known scheme before a colon alone, `file:x`. It
is a path after all where there is one such file and only one slash or none stands behind a scheme that
is not well known; or where it is absolute, or has one letter before its colon, as Windows has.
"""

import os
import re
import shlex
import urllib.parse

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):(?P<slashes>/*)(?P<rest>.*)", re.DOTALL)
_WELL_KNOWN = frozenset(
    (
        *("file", "http", "https", "ftp", "sftp", "ssh", "scp"),
        *("gs", "gcs", "s3", "s3a", "s3n", "az", "azure", "adl", "abfs", "abfss", "wasb", "wasbs"),
        *("hf", "hdfs", "dbfs", "oss", "mlflow"),
    )
)

# What Hadoop calls S3.
_S3 = re.compile(r"^s3[an]:")


def url_of(path: str | os.PathLike[str]) -> str | None:
    """Return the URL that a path was meant as, its scheme in small letters, or None for a path."""
    text = os.fsdecode(path)
    match = _URL.match(text)
    if match is None:
        return None
    scheme, slashes, rest = match["scheme"].lower(), match["slashes"], match["rest"]
    if len(slashes) >= 2:
        return scheme + text[len(scheme) :]
    if scheme not in _WELL_KNOWN:
        return text if slashes and not os.path.lexists(text) else None
    if not slashes:
        return None if os.path.lexists(text) else text
    return f"{scheme}://{'/' if scheme == 'file' else ''}{rest}"


def why_not_read(path: str | os.PathLike[str]) -> str | None:
    """Return what is wrong with a path to be read that is a URL: expected, got, what to do; or None."""
    url = url_of(path)
    if url is None:
        return None
    name = url.rstrip("/").rpartition("/")[2]
    there = shlex.quote(_S3.sub("s3:", url))
    parts = urllib.parse.urlsplit(url)
    file = shlex.quote(parts.path.rpartition("/")[2])
    web = f"copy it here first: curl -L -o {file} {there} and pass {file}" if parts.path else ""
    hint = {
        "gs": f"copy it here first: gcloud storage cp -r {there} . and pass {name}",
        "s3": f"copy it here first: aws s3 cp --recursive {there} {name} and pass {name}",
        "hdfs": f"copy it here first: hdfs dfs -get {there} . and pass {name}",
        **dict.fromkeys(("http", "https", "ftp"), web),
    }
    known = hint.get(_S3.sub("s3:", url).partition(":")[0])
    return f"{_expected(url)}; {known or _pass(url) or 'copy it here first, and pass that'}"


def why_not_written(path: str | os.PathLike[str], *, file: bool = False) -> str | None:
    """Return what is wrong with a path to be written that is a URL: expected, got, what to do; or None.

    Args:
      path: to be written.
      file: whether it would be a file, not a directory.
    """
    url = url_of(path)
    if url is None:
        return None
    there = _S3.sub("s3:", url)
    folder = shlex.quote(there if there.endswith("/") else f"{there}/")
    hint = {
        "gs": f"gcloud storage cp FILE {shlex.quote(url)}"
        if file
        else f"gcloud storage cp -r DIR/* {folder}",
        "s3": f"aws s3 cp FILE {shlex.quote(there)}"
        if file
        else f"aws s3 cp --recursive DIR {folder}",
        "hdfs": f"hdfs dfs -put {'FILE' if file else 'DIR'} {shlex.quote(url)}",
    }.get(there.partition(":")[0])
    here = f"write {'FILE' if file else 'DIR'} here and copy it: {hint}" if hint else ""
    return f"{_expected(url)}; {here or _pass(url) or 'write it here, and copy it there'}"


def _expected(url: str) -> str:
    return f"expected a path on this machine, got {url!r}"


def _pass(url: str) -> str:
    """Return what to pass for a file:// URL of this machine, else nothing."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not parts.path:
        return ""
    return f"pass {shlex.quote(urllib.parse.unquote(parts.path))}"
