"""The rows of a bundle's goldens, as instances of a request."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from runtime.bundle import Bundle
from runtime.signature import Signature


def golden_instances(bundle: Bundle) -> list[dict[str, Any]]:
    """Return the rows of a bundle's goldens: arrays by the names of the inputs."""
    signature = bundle.manifest.signature
    return [
        instance
        for golden in bundle.manifest.goldens
        for instance in _instances(signature, bundle.map(golden.file), golden.rows)
    ]


def _instances(
    signature: Signature, tensors: Mapping[str, Any], rows: int
) -> Iterator[dict[str, Any]]:
    arrays = {spec.name: tensors[f"input/{spec.name}"] for spec in signature.inputs}
    for i in range(rows):
        yield {
            name: array[i].astype(np.float32) if array.dtype.kind == "V" else array[i]
            for name, array in arrays.items()
        }
