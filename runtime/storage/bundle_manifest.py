"""The manifest of a bundle by itself, wherever that is: to plan with, before any device is used."""

import hashlib
import threading
from pathlib import Path

from runtime.bundle import open_bundle
from runtime.manifest import Manifest
from runtime.storage.download import Download
from runtime.storage.uri import locate


def manifest_at(name: str) -> tuple[Manifest, str]:
    """Return the manifest of a bundle, and the SHA-256 of its bytes in hex, the bundle's digest.

    Args:
      name: of the bundle: a directory, `file://…` or `gs://…`.

    Raises:
      BundleError: it is not there, or no manifest.
      ValueError: the name is neither a path nor such a URL.
    """
    place = locate(name)
    if isinstance(place, Path):
        opened = open_bundle(place)
        return opened.manifest, opened.digest
    from runtime.storage.gcs import CloudStore

    stop = threading.Event()
    data = Download(CloudStore(place), stop.wait, stop).read_manifest()
    return Manifest.from_bytes(data), hashlib.sha256(data).hexdigest()
