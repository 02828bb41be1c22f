"""The rows of a bundle's goldens, as instances of a request."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from runtime.bundle import Bundle
from runtime.entries import Golden
from runtime.preprocessing.raw_goldens import as_json, read_raw


def golden_instances(bundle: Bundle) -> list[dict[str, Any]]:
    """Return the rows of a bundle's goldens by name: arrays; raw inputs as JSON, where it has these."""
    goldens = bundle.manifest.goldens
    return [
        instance
        for golden in [one for one in goldens if one.raw] or goldens
        for instance in _instances(bundle, golden, bundle.map(golden.file))
    ]


def _instances(
    bundle: Bundle, golden: Golden, tensors: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    raw = [as_json(row) for row in read_raw(bundle, golden)]
    made = {n for stage in bundle.manifest.preprocess for n in stage.made} if raw else set()
    arrays = {
        spec.name: tensors[f"input/{spec.name}"]
        for spec in bundle.manifest.signature.inputs
        if spec.name not in made
    }
    for i in range(golden.rows):
        yield (raw[i] if raw else {}) | {
            name: array[i].astype(np.float32) if array.dtype.kind == "V" else array[i]
            for name, array in arrays.items()
        }
