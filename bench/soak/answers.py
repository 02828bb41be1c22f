"""Requests and their expected answers: rows of the bundle's goldens, in any mixture."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from runtime.bundle import open_bundle
from runtime.compare import compare
from server.protocols.oip import DATATYPES

MAX_ROWS = 12


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """Inputs of a request, and the outputs of the un-exported model."""

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))


class Answers:
    """The goldens of a bundle."""

    def __init__(self, bundle: Path, platform: str = "cpu") -> None:
        opened = open_bundle(bundle)
        manifest = opened.manifest
        self.model = manifest.name
        self.dtypes = {
            s.name: s.dtype for s in (*manifest.signature.inputs, *manifest.signature.outputs)
        }
        # JSON has no bfloat16 nor any smaller kind.
        self.in_json = not any("bfloat16" in d or "float8" in d for d in self.dtypes.values())
        self.labelled = manifest.output_format.kind != "raw"
        self._mixing = bool(manifest.row_mixing)
        self._tolerances = manifest.tolerances[platform]
        self._goldens = []
        for golden in manifest.goldens:
            tensors = {name: np.array(a) for name, a in opened.map(golden.file).items()}
            self._goldens.append(
                Asked(
                    {n[6:]: a for n, a in tensors.items() if n.startswith("input/")},
                    {n[7:]: a for n, a in tensors.items() if n.startswith("output/")},
                )
            )

    def pick(self, rng: np.random.Generator) -> Asked:
        """Pick rows of a golden, in any order and any of them several times."""
        golden = self._goldens[rng.integers(len(self._goldens))]
        if self._mixing:
            return golden
        index = rng.integers(golden.rows, size=rng.integers(1, MAX_ROWS + 1))
        return Asked(
            {name: array[index] for name, array in golden.inputs.items()},
            {name: array[index] for name, array in golden.outputs.items()},
        )

    def datatype(self, name: str) -> str:
        return DATATYPES[self.dtypes[name]]

    def wrong(self, asked: Asked, got: Mapping[str, object]) -> str:
        """Return what is wrong with outputs, as lists or as bytes; empty if nothing is."""
        for name, expected in asked.outputs.items():
            value = got[name]
            if isinstance(value, bytes):
                array = np.frombuffer(value, expected.dtype)
            else:
                array = np.array(value, expected.dtype)
            if array.size != expected.size:
                return f"{name}: {expected.size} elements expected, got {array.size}"
            comparison = compare(
                array.reshape(expected.shape), expected, tolerance=self._tolerances[name]
            )
            if not comparison.ok:
                return f"{name}{list(comparison.where)}: {comparison.expected} expected, got {comparison.got}"
        return ""
