"""Cloud Storage through Google's client; the one file that knows it. Needs the extra `gcs`.

Credentials are the environment's (Application Default Credentials): on Google Cloud those of
the service account that the container runs as.
"""

import contextlib
import http
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from runtime.storage.store import FetchError, ObjectChanged, ObjectInfo, Sink, TransientError
from runtime.storage.transfer import Digest
from runtime.storage.uri import CloudFolder

# Longest waits for a connection and for the next bytes, in seconds.
_TIMEOUT = (10, 60)


class CloudStore:
    """The objects of a folder. Retries nothing: `download` does.

    Raises:
      FetchError: there is no client, or there are no credentials.
    """

    def __init__(self, folder: CloudFolder) -> None:
        self.folder = folder
        try:
            from google.auth.exceptions import DefaultCredentialsError
            from google.cloud import storage
        except ImportError:
            raise FetchError(
                f"{folder}: expected google-cloud-storage, got none; pip install 'hloserve[gcs]'"
            ) from None
        try:
            client = storage.Client(project=None)
        except DefaultCredentialsError:
            raise FetchError(
                f"{folder}: expected credentials, got none; run as a service account, or run "
                "gcloud auth application-default login"
            ) from None
        self._bucket = client.bucket(folder.bucket)

    def __str__(self) -> str:
        """Return the folder as `gs://…`."""
        return str(self.folder)

    def stat(self, path: str) -> ObjectInfo:
        """Return the object of a path; see `store.Store`."""
        blob = self._bucket.blob(self.folder.name_of(path))
        with self._explained(path):
            blob.reload(timeout=_TIMEOUT, retry=None)
        return _info(blob)

    def find(self, path: str) -> ObjectInfo | None:
        """Return the object of a path, or None where there is none; raises as `stat`."""
        with self._explained(path):
            blob = self._bucket.get_blob(self.folder.name_of(path), timeout=_TIMEOUT, retry=None)
        return None if blob is None else _info(blob)

    def below(self, path: str) -> dict[str, ObjectInfo]:
        """Return the objects below a path, by their names from there on; raises as `stat`."""
        prefix = self.folder.name_of(f"{path}/" if path else "")
        with self._explained("", listing=True):
            return {
                blob.name.removeprefix(prefix): _info(blob)
                for blob in self._bucket.list_blobs(prefix=prefix, timeout=_TIMEOUT, retry=None)
                if not blob.name.endswith("/")  # stands for a folder
            }

    def names(self) -> list[str]:
        """Return names of objects and folders in this folder, at most a thousand; raises as `stat`."""
        prefix = self.folder.prefix
        with self._explained("", listing=True):
            pages = self._bucket.list_blobs(
                prefix=prefix, delimiter="/", max_results=1000, timeout=_TIMEOUT, retry=None
            )
            found = [blob.name for blob in pages] + list(pages.prefixes)
        return sorted(name.removeprefix(prefix).rstrip("/") for name in found)

    def read(self, path: str, stored: ObjectInfo, start: int, sink: Sink) -> None:
        """Stream an object from a byte on; see `store.Store`."""
        name = self.folder.name_of(path)
        blob = self._bucket.blob(name, generation=stored.generation)
        with self._explained(path, stored):
            # As stored: a transparently unpacked object could not be resumed.
            blob.download_to_file(
                sink,
                start=start or None,
                raw_download=True,
                checksum=None,
                timeout=_TIMEOUT,
                retry=None,
            )

    def write(self, path: str, source: Path, generation: int | None) -> int:
        """Write a file as an object, and return its generation; raises as `stat`.

        Args:
          path: below the folder.
          source: the file; the store compares a checksum of it before the object is there.
          generation: that what is there has to have, 0 for none; None for any.

        Raises:
          ObjectChanged: it is another one.
        """
        blob = self._bucket.blob(self.folder.name_of(path))
        with self._explained(path, writing=True):
            blob.upload_from_filename(
                str(source),
                content_type="application/octet-stream",
                if_generation_match=generation,
                checksum="crc32c",
                timeout=_TIMEOUT,
                retry=None,
            )
        return int(blob.generation)

    def remove(self, path: str) -> None:
        """Remove the object of a path, if there is one; raises as `stat`."""
        if self.find(path) is not None:
            with self._explained(path, writing=True):
                self._bucket.blob(self.folder.name_of(path)).delete(timeout=_TIMEOUT, retry=None)

    @contextlib.contextmanager
    def _explained(
        self,
        path: str,
        pinned: ObjectInfo | None = None,
        *,
        listing: bool = False,
        writing: bool = False,
    ) -> Iterator[None]:
        """Turn what the client raises into what `download` knows."""
        from google.api_core.exceptions import GoogleAPICallError
        from google.auth.exceptions import GoogleAuthError, TransportError
        from requests.exceptions import RequestException
        from urllib3.exceptions import HTTPError

        where = f"{self.folder}/{path}".rstrip("/")
        try:
            yield
        except GoogleAPICallError as error:
            code = int(error.code or 0)
            if code == 404 and pinned is not None:
                raise ObjectChanged(where) from None
            if code == 404 and listing:
                raise FetchError(
                    f"{where}: expected a bucket, got 404; is its name right?"
                ) from None
            if code == 412 and writing:
                raise ObjectChanged(where) from None
            if code in (401, 403, 404):
                raise FetchError(_refusal(where, code, error, writing=writing)) from None
            if code not in (408, 429) and code < 500:
                raise FetchError(f"{where}: {code} {_reason(error)}") from None
            raise TransientError(f"{code} {_reason(error)}") from None
        except (RequestException, HTTPError, TransportError, ConnectionError) as error:
            raise TransientError(_cause(error)) from None
        except GoogleAuthError as error:
            if error.retryable:
                raise TransientError(_first_line(error)) from None
            raise FetchError(f"{where}: credentials were refused: {_first_line(error)}") from None


def crc32c() -> Digest:
    """Return a CRC32C of no bytes; Google's client brings along the package that computes it."""
    import google_crc32c

    return cast("Digest", google_crc32c.Checksum())  # type: ignore[no-untyped-call]


def _info(blob: Any) -> ObjectInfo:
    return ObjectInfo(
        int(blob.size), int(blob.generation), blob.crc32c or "", blob.content_encoding or ""
    )


def _refusal(where: str, code: int, error: Any, *, writing: bool) -> str:
    if writing:
        return (
            f"{where}: {code} {_reason(error)}; give the account that writes it the role "
            "Storage Object User on the bucket"
        )
    if code == 404:
        return (
            f"{where}: expected an object, got 404; is the folder right, and the upload finished?"
        )
    return (
        f"{where}: {code} {_reason(error)}; give the account that reads it the role "
        "Storage Object Viewer on the bucket"
    )


def _reason(error: Any) -> str:
    """Return the service's message, without the request that it repeats.

    An upload's error has the whole response in its message, others what the service says alone.
    """
    with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
        return _first_line(error.response.json()["error"]["message"])
    _, _, reason = _first_line(error.message).partition(": ")
    return reason or http.HTTPStatus(int(error.code)).phrase


def _cause(error: object) -> str:
    """Return the cause of a connection error, without the layers that wrap it."""
    return _first_line(str(error).rpartition(": ")[2].rstrip("\"')"))


def _first_line(error: object) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
