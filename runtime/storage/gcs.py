"""Cloud Storage through Google's client; the one file that knows it. Needs the extra `gcs`.

Credentials are the environment's (Application Default Credentials): on Google Cloud those of
the service account that the container runs as.
"""

import contextlib
import http
from collections.abc import Iterator
from typing import Any

from runtime.storage.store import FetchError, ObjectChanged, ObjectInfo, Sink, TransientError
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
        return ObjectInfo(int(blob.size), int(blob.generation))

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

    @contextlib.contextmanager
    def _explained(self, path: str, pinned: ObjectInfo | None = None) -> Iterator[None]:
        """Turn what the client raises into what `download` knows."""
        from google.api_core.exceptions import GoogleAPICallError
        from google.auth.exceptions import GoogleAuthError, TransportError
        from requests.exceptions import RequestException
        from urllib3.exceptions import HTTPError

        where = f"{self.folder}/{path}"
        try:
            yield
        except GoogleAPICallError as error:
            code = int(error.code or 0)
            if code == 404 and pinned is not None:
                raise ObjectChanged(where) from None
            if code in (401, 403, 404):
                raise FetchError(_refusal(where, code, error)) from None
            if code not in (408, 429) and code < 500:
                raise FetchError(f"{where}: {code} {_reason(error)}") from None
            raise TransientError(f"{code} {_reason(error)}") from None
        except (RequestException, HTTPError, TransportError, ConnectionError) as error:
            raise TransientError(_cause(error)) from None
        except GoogleAuthError as error:
            if error.retryable:
                raise TransientError(_first_line(error)) from None
            raise FetchError(f"{where}: credentials were refused: {_first_line(error)}") from None


def _refusal(where: str, code: int, error: Any) -> str:
    if code == 404:
        return (
            f"{where}: expected an object, got 404; is the folder right, and the upload finished?"
        )
    return (
        f"{where}: {code} {_reason(error)}; give the account that the server runs as the role "
        "Storage Object Viewer on the bucket"
    )


def _reason(error: Any) -> str:
    """Return the service's message, without the request that it repeats."""
    _, _, reason = _first_line(error.message).partition(": ")
    return reason or http.HTTPStatus(int(error.code)).phrase


def _cause(error: object) -> str:
    """Return the cause of a connection error, without the layers that wrap it."""
    return _first_line(str(error).rpartition(": ")[2].rstrip("\"')"))


def _first_line(error: object) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
